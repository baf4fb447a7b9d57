"""Moves what a stage has written out of the way of its next run. Files are renamed, never deleted."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from lnlit.cli.pipeline import OF_A_RUN, Stage
from lnlit.errors import UserError
from lnlit.files import expanded


def put_aside(stage: Stage, stages: Sequence[Stage], outs: Sequence[str] | None = None) -> Iterator[str]:
    """Renames every result of a stage, including unfinished ones, or only `outs`. Yields a line for each.

    Raises `UserError` before anything is moved if the stage replaces something that it or an earlier stage reads or
    wrote: its original input no longer exists.
    """
    found = list(_results(stage)) if outs is None else [expanded(out) for out in outs]
    before = stages[: stages.index(stage)]
    for path in found:
        for other in (*before, stage):
            used = [text for text, paths in other.reads().items() if any(_same(path, one) for one in paths)]
            used += [out for out in other.outs if other is not stage and _same(path, expanded(out))]
            if used:
                raise UserError(
                    f"{stage.file}: cannot be run again from what it began with: it wrote over {path}, which "
                    f"{other.file.name} names too. Give this stage an output of its own."
                )
    for path in found:
        target = next(new for n in range(1, 10**6) if not (new := path.with_name(f"{path.name}.{n}")).exists())
        path.rename(target)
        yield f"{path} is put aside as {target}"


def _results(stage: Stage) -> Iterator[Path]:
    for out in map(Path, [*stage.outs, *stage.beside]):
        path = expanded(out)
        ranks = path.parent.glob(f"{glob.escape(path.stem)}.rank-*{glob.escape(path.suffix)}")
        beside = [path.with_name(f"{path.name}{kind}") for kind in (".partial", ".completions")]
        yield from (each for each in (path, *beside, *sorted(ranks)) if each.exists())
    if stage.root is not None:
        yield from (each for name in OF_A_RUN if (each := expanded(stage.root) / name).exists())


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)

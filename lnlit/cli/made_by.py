"""Records what a stage's result was made by: its configuration, the content of every file it read, libraries and
code."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import lnlit
from lnlit import registry
from lnlit.cli.pipeline import Stage
from lnlit.files import expanded

#: A file changed less than so many seconds before it was read may change again without a change of its times.
_SETTLED_S = 2.0


class Digests:
    """SHA-256 of files by content. A file that was read before is only read again if its size or times have changed.

    `known` holds digests of earlier processes: absolute path -> [size, mtime_ns, ctime_ns, digest].
    """

    def __init__(self, known: Mapping[str, list[Any]]) -> None:
        self._known = known
        #: The digests that were requested, to be stored.
        self.used: dict[str, list[Any]] = {}

    def of(self, paths: Iterable[Path], without: Sequence[Path] = ()) -> str:
        """One digest of files, and of folders with everything in them except what lies at `without` (absolute)."""
        digest = hashlib.sha256()
        for path in paths:
            for name, file in _files(path, without):
                digest.update(f"{name}\0{self._file(file)}\0".encode())
        return digest.hexdigest()

    def _file(self, file: Path) -> str:
        key, about = str(file.absolute()), file.stat()
        stamp = [about.st_size, about.st_mtime_ns, about.st_ctime_ns]
        entry = self.used.get(key) or self._known.get(key)
        if entry is None or entry[:3] != stamp:
            with file.open("rb") as stream:
                entry = [*stamp, hashlib.file_digest(stream, "sha256").hexdigest()]
        if time.time_ns() - max(stamp[1:]) > _SETTLED_S * 1e9:
            self.used[key] = entry
        return entry[3]


def made_by(stage: Stage, later: Sequence[Stage], digests: Digests) -> dict[str, Any]:
    """Everything that the result of `stage` depends on, as it is now: {"recipe", "inputs": {text: digest},
    "made_with"}.

    What the stage itself and `later` ones write is not an input, because it is replaced.
    """
    replaced = [expanded(path).absolute() for each in (stage, *later) for path in each.writes]
    inputs = {}
    for text, paths in stage.reads().items():
        if kept := [path for path in paths if expanded(path).absolute() not in replaced]:
            inputs[text] = digests.of(kept, replaced)
    return {"recipe": digests.of([stage.file, *stage.included]), "inputs": inputs, "made_with": made_with()}


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A description of what a stage read and has changed since: its configuration and its inputs."""
    if "recipe" not in then:
        return ["the form of its record, which an older lnlit wrote"]
    changed = ["its configuration"] if then["recipe"] != now["recipe"] else []
    before, after = then.get("inputs", {}), now["inputs"]
    return changed + sorted(text for text in before.keys() | after.keys() if before.get(text) != after.get(text))


def other_versions(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """ "made with torch 2.12 (now 2.13) and other code of lnlit", or an empty string."""
    told = [
        "other code of lnlit" if name == "code" else f"{name} {then.get(name, 'none')} (now {now.get(name, 'none')})"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    return f"made with {' and '.join(told)}" if told else ""


@cache
def made_with() -> dict[str, str]:
    """Versions of Python, lnlit, its plugins and what they are built on, and a digest of lnlit's and their code."""
    plugins = {e.distribution: e for kind in registry.kinds() for e in registry.entries(kind) if e.version != "?"}
    names = {"lnlit", *plugins, *(name for plugin in ("lnlit", *plugins) for name in _requirements(plugin))}
    versions = {name: found for name in sorted(names) if (found := _version(name))}
    packages = {
        e.target.partition(":")[0].partition(".")[0] for kind in registry.kinds() for e in registry.entries(kind)
    }
    code = hashlib.sha256()
    for folder in sorted({Path(lnlit.__file__).parent, *(f for name in packages for f in _sources(name))}):
        for name, file in _files(folder, ()):
            if file.suffix == ".py":
                code.update(f"{name}\0".encode() + file.read_bytes())
    return {"python": sys.version.partition(" ")[0], **versions, "lnlit": lnlit.__version__, "code": code.hexdigest()}


def _requirements(distribution: str) -> Iterator[str]:
    try:
        listed = requires(distribution) or []
    except PackageNotFoundError:
        return
    for line in listed:
        if "extra ==" not in line or 'extra == "dev"' not in line:
            yield re.split(r"[^\w.-]", line, maxsplit=1)[0]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _sources(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        return []
    folders = list(map(Path, spec.submodule_search_locations or ()))
    return folders or ([Path(spec.origin)] if spec.origin else [])


def _files(path: Path, without: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name, file) of a file, or of all files in a folder by their relative names, in the same order everywhere."""
    if not path.is_dir():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        here = file.absolute()
        if file.is_file() and not any(here == gone or gone in here.parents for gone in without):
            yield file.relative_to(path).as_posix(), file

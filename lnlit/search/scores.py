"""The scores of a library on disk, `scores.jsonl`: a header, then one line per candidate.

    {"format": 1, "model": ..., "library": ..., "metric": "kl", "granularity": "subblock", "tokens": 16384, ...}
    {"layer": 0, "slot": "attention", "name": "kv1", "score": 0.012, "kl": 0.012, "lm_loss": 3.1, "seconds": 0.8}
    {"layer": 0, "slot": "block", "name": "kv1+i768", "score": 0.015, "kl": 0.015, "lm_loss": 3.1, "seconds": 0.9}

Slots are "attention", "ffn", and "block" for a pair that was trained together; with granularity "block" that alone.

Lines are only ever appended, and each is on the disk before the next candidate starts; so an interrupted run loses at
most the candidate it was at. A score is how much worse than the parent one replaced block makes it (lower is better,
whatever the metric); the parent's own choices, 0 by definition, are not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lnlit.errors import UserError
from lnlit.files import expanded
from lnlit.journal import Journal, check_header, is_cut_header, line, read_lines, write_lines
from lnlit.schema import Whole, read
from lnlit.search.library import SLOTS, Library, pair_name

FORMAT = 1
WHAT = "scores"
#: (layer, slot, name) of a candidate.
Key = tuple[int, str, str]
#: Header entries that two runs may differ in: results, by rounding, and where the library lies (its digest counts).
_FREE = {"parent", "library"}


_THEN = "Delete this line and run `lnlit search score` again: it adds what is missing."


@dataclass(frozen=True)
class _BlockScore:
    """What each line has, where whole blocks were scored; measurements stand beside it."""

    layer: Whole
    slot: Literal["block"]
    name: str
    score: float


@dataclass(frozen=True)
class _SubblockScore(_BlockScore):
    slot: Literal["attention", "ffn", "block"]  # type: ignore[assignment]


@dataclass(frozen=True)
class Scores:
    """Attributes:
    header: metric, granularity, text and parent's values, as in the file.
    table: `table[layer][slot][name]` is a score, a loss against the parent also of a metric that itself rises with
        quality. The parent's own choices are in it with 0.
    """

    header: Mapping[str, Any]
    table: tuple[Mapping[str, Mapping[str, float]], ...]

    def of(self, layer: int, attention: str, ffn: str) -> float:
        """The score of a whole layer's choice: its block's where blocks were scored and where the two were trained
        together, else the sum of its sub-blocks'. `UserError` when it has none.
        """
        slots, pair = self.table[layer], pair_name(attention, ffn)
        whole = "attention" not in slots or pair in self.header.get("pairs", {}).get(str(layer), ())
        names = [("block", pair)] if whole else [("attention", attention), ("ffn", ffn)]
        for slot, name in names:
            if name not in slots.get(slot, {}):
                raise UserError(
                    f"layer {layer}: {slot} {name!r} has no score. Run `lnlit search score` again, which adds what is "
                    "missing, or leave the variant out."
                )
        return sum(slots[slot][name] for slot, name in names)

    def check_library(self, library: Library) -> None:
        """Raises `UserError` unless these are scores of `library` as it is now."""
        if self.header.get("library_sha256") != library.identity["sha256"]:
            raise UserError(
                f"{library.folder}: the scores are of {self.header.get('library')}, which is another library or was "
                "other when it was scored. Score this one, or name the one that was scored."
            )


def make_header(library: Library, model: str, **about: Any) -> dict[str, Any]:
    """The header of scores of `library`; `about` says what was measured, on what. "pairs" lists, by layer, those that
    were trained together.
    """
    pairs = {str(layer): list(variants.pairs) for layer, variants in enumerate(library.layers) if variants.pairs}
    return {
        "format": FORMAT,
        "model": model,
        "library": str(library.folder),
        "library_sha256": library.identity["sha256"],
        "parent_names": [list(library.parent_names(layer)) for layer in range(len(library.layers))],
        **({"pairs": pairs} if pairs else {}),
        **about,
    }


def read_scores(path: str | Path) -> Scores:
    """Raises `UserError` naming the line that is no finite score of a candidate."""
    file = expanded(path)
    if not file.exists():
        raise UserError(f"{file}: cannot be read as scores: there is no such file. `lnlit search score` makes them.")
    header, entries = _parsed(file)
    if header["granularity"] == "block":
        table = [{"block": {pair_name(*own): 0.0}} for own in header["parent_names"]]
    else:
        table = [{slot: {name: 0.0} for slot, name in zip(SLOTS, own, strict=True)} for own in header["parent_names"]]
    for entry in entries:
        layer, slot, name = key_of(entry)
        table[layer].setdefault(slot, {})[name] = float(entry["score"])
    return Scores(header, tuple(table))


def read_done(files: Iterable[Path], header: Mapping[str, Any]) -> dict[Key, dict[str, Any]]:
    """The entries of those `files` that exist. Raises `UserError` when one is no journal of scores, or its header
    differs from `header`: those scores could not be compared.
    """
    done = {}
    for file in files:
        if file.is_file() and not is_cut_header(file.read_bytes(), line(header)):
            there, entries = _parsed(file)
            check_header(file, line(there), header, WHAT, _FREE)
            for entry in entries:
                before = done.setdefault(key_of(entry), entry)
                if before["score"] != entry["score"]:
                    raise UserError(
                        f"{file}: scores {_candidate(entry)} as {entry['score']}, and another file of the same run as "
                        f"{before['score']}. Delete the wrong line, or the file."
                    )
    return done


def open_scores(file: Path, header: Mapping[str, Any]) -> Journal:
    """Scores to be added to: a file that `read_done` has accepted is gone on with. Raises `UserError` while another
    process is writing it.
    """
    return Journal(file, header, WHAT, _FREE)


def merge(out: Path, parts: Iterable[Path], header: Mapping[str, Any], order: Mapping[Key, int]) -> None:
    """Collect the journals `parts` in `out`, in `order`, and delete those that are not `out` itself."""
    parts = [part for part in parts if part.is_file()]
    done = read_done(parts, header)
    ordered = sorted(done, key=lambda key: order.get(key, len(order)))
    write_lines(out, [header, *(done[key] for key in ordered)])
    for part in parts:
        if part != out:
            part.unlink()


def key_of(entry: Mapping[str, Any]) -> Key:
    return entry["layer"], entry["slot"], entry["name"]


def _parsed(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(header, entries) of a journal's whole lines."""
    rows = [row for _, row in read_lines(file, WHAT)]
    if not rows or not _is_header(rows[0]):
        raise UserError(f"{file}: not a file of scores: its first line is no header. Choose another path.")
    header, *entries = rows
    if header.get("format") != FORMAT:
        raise UserError(f"{file}: format {header.get('format')!r}; this lnlit reads {FORMAT}. Update lnlit.")
    kind = _SubblockScore if header["granularity"] == "subblock" else _BlockScore
    places: dict[Key, int] = {}
    for number, entry in enumerate(entries, start=2):
        read(kind, entry, f"{file}:{number}:", then=_THEN, others=True)
        if entry["layer"] >= len(header["parent_names"]):
            last = len(header["parent_names"]) - 1
            raise UserError(f"{file}:{number}: layer: there are 0 to {last}, got {entry['layer']}. {_THEN}")
        if (first := places.setdefault(key_of(entry), number)) != number:
            raise UserError(
                f"{file}:{number}: {_candidate(entry)} has a score in line {first} already. Delete one of the two "
                "lines, or both and run `lnlit search score` again."
            )
    return header, entries


def _candidate(entry: Mapping[str, Any]) -> str:
    return f"layer {entry['layer']} {entry['slot']} {entry['name']!r}"


def _is_header(row: Any) -> bool:
    names = row.get("parent_names") if isinstance(row, dict) else None
    pairs = isinstance(names, list) and all(isinstance(own, list) and len(own) == len(SLOTS) for own in names)
    return pairs and row.get("granularity") in ("subblock", "block")

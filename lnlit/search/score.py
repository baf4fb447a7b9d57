"""Replace-one-block scoring (Puzzle section 4.2): the parent with one block replaced, compared with the parent.

Everything below the replaced block is the parent's, so a candidate costs itself, the layers behind it and the metric.

On disk scores are `scores.jsonl`, a header and one line per candidate:

    {"format": 1, "model": ..., "library": ..., "metric": "kl", "granularity": "subblock", "tokens": 16384, ...}
    {"layer": 0, "slot": "attention", "name": "kv1", "score": 0.012, "kl": 0.012, "lm_loss": 3.1, "seconds": 0.8}
    {"layer": 0, "slot": "block", "name": "kv1+i768", "score": 0.015, "kl": 0.015, "lm_loss": 3.1, "seconds": 0.9}

Slots are "attention", "ffn", and "block" for a pair that was trained together; with granularity "block" that alone.

Lines are only ever appended, and each is on the disk before the next candidate starts; so an interrupted run loses at
most the candidate it was at, or of a parent that does not fit into memory or is divided among ranks, those of one pass
over its layers. A score is how much worse than the parent one replaced block makes it (lower is better, whatever the
metric); the parent's own choices, 0 by definition, are not written.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.files import check_format, expanded
from lnlit.journal import Journal, check_header, is_cut_header, line, read_lines, write_lines
from lnlit.models.block import Block
from lnlit.models.build import block_weights, build_block, load_block, parameter_count
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.schema import Whole, read
from lnlit.search.choice import SLOTS, At, BlockChoice, Slot
from lnlit.search.library import Library
from lnlit.search.metrics import BIGGER_IS_BETTER, Metric, MetricName
from lnlit.search.walk import Walk

Granularity = Literal["subblock", "block"]
FORMAT = 1
WHAT = "scores"
#: Header entries that two runs may differ in: results, by rounding, and where the library lies (its digest counts).
_FREE = {"parent", "library"}
_THEN = "Delete this line and run `lnlit search score` again: it adds what is missing."


def candidates(library: Library, granularity: Granularity) -> list[At]:
    """What there is to score, in the order of the walk; the parent's own choices, whose scores are 0, are left out.

    Among sub-blocks are the pairs that were trained together: their weights are not those of their halves.
    """
    found = []
    for layer, variants in enumerate(library.layers):
        own = variants.parent
        if granularity == "subblock":
            found += [At(layer, "attention", name) for name in variants.attention if name != own.attention]
            found += [At(layer, "block", name) for name in variants.pairs]
            found += [At(layer, "ffn", name) for name in variants.ffn if name != own.ffn]
        else:
            found += [At(layer, "block", str(choice)) for choice in variants.choices() if choice != own]
    return found


@dataclass(frozen=True)
class Score:
    """How much worse than the parent a candidate makes it, and the values behind that."""

    candidate: At
    score: float
    values: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The score as a line of `scores.jsonl`."""
        return {**asdict(self.candidate), "score": self.score, **self.values}


@torch.inference_mode()
def observed(parent: LayerwiseDecoder, batches: Sequence[Tensor], metric: Metric) -> Walk:
    """Shows the metric what the parent makes of the text. Returns the text in front of the parent's first layer."""
    walk = Walk.of_rows(parent, batches)
    metric.observe(list(walk.beside(0).hidden()))
    return walk


class Scorer:
    """Scores candidates in the order of a walk through the model that they are tried in: the parent, or a child of it.

    Args:
        parent: The parent, whose own sub-blocks a child may get back.
        library: The library that candidates and child come from.
        walk: The text in front of the model's first layer.
        metric: The metric, which has observed the parent.
        name: Which of the metric's values is the score.

    Raises `UserError` when the model's own values are not finite.
    """

    @torch.inference_mode()
    def __init__(
        self, parent: LayerwiseDecoder, library: Library, walk: Walk, metric: Metric, name: MetricName
    ) -> None:
        self.library, self.parent, self.walk, self.metric, self.name = library, parent, walk, metric, name
        #: The model's own values, computed in the same way as those with a candidate in it.
        self.own_values = metric.measure(walk.beside(0).hidden())
        self._check_finite("the parent" if walk.parent is parent else "the child", self.own_values)

    def in_passes(self, candidates: Sequence[At]) -> Iterator[Sequence[At]]:
        """The candidates in groups that all ranks score in one pass over the parent's layers: see `at_once`."""
        done, (_, ranks) = 0, self.walk.parent.place
        while done < len(candidates):
            count = ranks * self.walk.parent.at_once(self.walk.nbytes)
            yield candidates[done : done + count]
            done += count

    @torch.inference_mode()
    def scores(self, candidates: Sequence[At]) -> list[Score]:
        """The scores of this rank's share of candidates, which are given in the order of the walk, from one pass over
        the layers from the first candidate's on. If the parent's layers are divided among ranks, all of them must come
        with the same candidates, of which the shares differ by one at most and by less than the work of the first;
        otherwise the share is everything. Raises `UserError` naming a candidate whose score is not finite."""
        children: list[Walk] = []
        rank, ranks = self.walk.parent.place
        own = candidates[rank::ranks]
        last, waiting = candidates[-1].position, deque(own)
        for layer in range(self.walk.position // 2, len(self.walk.parent.decoder.layers)):
            with self.walk.parent.layer(layer):
                while waiting and waiting[0].layer == layer:
                    candidate = waiting.popleft()
                    self.walk.seek(candidate.position)
                    children.append(self.walk.beside(candidate.width, self.load(candidate)))
                self.walk.seek(max(self.walk.position, min(2 * layer + 2, last)))
                for child in children:
                    child.seek(2 * layer + 2)
        return [self._compared(candidate, child) for candidate, child in zip(own, children, strict=True)]

    def _compared(self, candidate: At, child: Walk) -> Score:
        values = self.metric.measure(child.hidden())
        self._check_finite(str(candidate), values)
        worse = values[self.name] - self.own_values[self.name]
        return Score(candidate, -worse if self.name in BIGGER_IS_BETTER else worse, values)

    def work(self, candidate: At) -> int:
        """The work of a score, as the number of weights that every token is multiplied with. Early layers have more
        layers behind them."""
        decoder = self.walk.parent.decoder
        halves = [weights for block in decoder.layers for weights in _halves(block)]
        return sum(halves[candidate.position :]) + decoder.head_weight.numel()

    def load(self, candidate: At) -> Block:
        """The candidate with its weights, in the parent's dtype; a sub-block is a block with `NOOP` beside it."""
        layer, weight = candidate.layer, self.parent.decoder.embed_tokens.weight
        with self.parent.layer(layer) as own:
            spec, weights = self.library.replacement(candidate, block_weights(own))
        moved = {name: tensor.to(weight.device, weight.dtype) for name, tensor in weights.items()}
        return load_block(build_block(self.library.spec, layer, spec), moved).eval()

    def _check_finite(self, what: str, values: dict[str, float]) -> None:
        dtype = str(self.parent.decoder.embed_tokens.weight.dtype).removeprefix("torch.")
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{what}: its {name} is {value}, so it cannot be scored. Its weights hold NaN or overflow {dtype}: "
                    "make it again, or score in float32."
                )


def _halves(block: nn.Module) -> tuple[int, int]:
    """The weights of a block's attention and of its FFN."""
    assert isinstance(block, Block)
    attention, ffn = (0 if part is None else parameter_count(part) for part in (block.self_attn, block.mlp))  # type: ignore[arg-type]
    return attention, ffn


@dataclass(frozen=True)
class _SubblockScore:
    """The keys that each line must have where sub-blocks were scored. Measurements may stand beside them."""

    layer: Whole
    slot: Slot
    name: str
    score: float


@dataclass(frozen=True)
class _BlockScore(_SubblockScore):
    """The same where whole blocks were scored."""

    slot: Literal["block"]


@dataclass(frozen=True)
class Scores:
    """Attributes:
    header: metric, granularity, text and parent's values, as in the file.
    table: `table[layer][slot][name]` is a score, a loss against the parent also of a metric that itself rises with
        quality. The parent's own choices are in it with 0.
    """

    header: Mapping[str, Any]
    table: tuple[Mapping[str, Mapping[str, float]], ...]

    def of(self, layer: int, choice: BlockChoice) -> float:
        """The score of a whole layer's choice: its block's where blocks were scored and where the two were trained
        together, else the sum of its sub-blocks'. `UserError` when it has none.
        """
        slots, pair = self.table[layer], str(choice)
        whole = "attention" not in slots or pair in self.header.get("pairs", {}).get(str(layer), ())
        names = [("block", pair)] if whole else list(zip(SLOTS, choice, strict=True))
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
        "parent_names": [list(variants.parent) for variants in library.layers],
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
        table = [{"block": {str(BlockChoice(*own)): 0.0}} for own in header["parent_names"]]
    else:
        table = [{slot: {name: 0.0} for slot, name in zip(SLOTS, own, strict=True)} for own in header["parent_names"]]
    for entry in entries:
        table[entry["layer"]].setdefault(entry["slot"], {})[entry["name"]] = float(entry["score"])
    return Scores(header, tuple(table))


def read_done(files: Iterable[Path], header: Mapping[str, Any]) -> dict[At, dict[str, Any]]:
    """The entries of those `files` that exist. Raises `UserError` when one is no journal of scores, or its header
    differs from `header`: those scores could not be compared.
    """
    done = {}
    for file in files:
        if file.is_file() and not is_cut_header(file.read_bytes(), line(header)):
            there, entries = _parsed(file)
            check_header(file, line(there), header, WHAT, _FREE)
            for entry in entries:
                before = done.setdefault(_at(entry), entry)
                if before["score"] != entry["score"]:
                    raise UserError(
                        f"{file}: scores {_at(entry)} as {entry['score']}, and another file of the same run as "
                        f"{before['score']}. Delete the wrong line, or the file."
                    )
    return done


def open_scores(file: Path, header: Mapping[str, Any]) -> Journal:
    """Scores to be added to: a file that `read_done` has accepted is gone on with. Raises `UserError` while another
    process is writing it.
    """
    return Journal(file, header, WHAT, _FREE)


def merge(out: Path, parts: Iterable[Path], header: Mapping[str, Any], order: Mapping[At, int]) -> None:
    """Collect the journals `parts` in `out`, in `order`, and delete those that are not `out` itself."""
    parts = [part for part in parts if part.is_file()]
    done = read_done(parts, header)
    ordered = sorted(done, key=lambda key: order.get(key, len(order)))
    write_lines(out, [header, *(done[key] for key in ordered)])
    for part in parts:
        if part != out:
            part.unlink()


def _at(entry: Mapping[str, Any]) -> At:
    return At(entry["layer"], entry["slot"], entry["name"])


def _parsed(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(header, entries) of a journal's whole lines."""
    rows = [row for _, row in read_lines(file, WHAT)]
    if not rows or not _is_header(rows[0]):
        raise UserError(f"{file}: not a file of scores: its first line is no header. Choose another path.")
    header, *entries = rows
    check_format(header, FORMAT, file, WHAT)
    kind = _SubblockScore if header["granularity"] == "subblock" else _BlockScore
    places: dict[At, int] = {}
    for number, entry in enumerate(entries, start=2):
        read(kind, entry, f"{file}:{number}:", then=_THEN, others=True)
        if entry["layer"] >= len(header["parent_names"]):
            last = len(header["parent_names"]) - 1
            raise UserError(f"{file}:{number}: layer: there are 0 to {last}, got {entry['layer']}. {_THEN}")
        if (first := places.setdefault(_at(entry), number)) != number:
            raise UserError(
                f"{file}:{number}: {_at(entry)} has a score in line {first} already. Delete one of the two "
                "lines, or both and run `lnlit search score` again."
            )
    return header, entries


def _is_header(row: Any) -> bool:
    names = row.get("parent_names") if isinstance(row, dict) else None
    pairs = isinstance(names, list) and all(isinstance(own, list) and len(own) == len(SLOTS) for own in names)
    return pairs and row.get("granularity") in ("subblock", "block")

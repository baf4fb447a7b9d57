"""Replace-one-block scoring (Puzzle section 4.2): the parent with one block replaced, compared with the parent.

Everything below the replaced block is the parent's, so a walk through the parent's layers keeps only the activations in
front of the current one, and a candidate costs itself, the layers behind it and the metric.

Shape suffixes: R rows, B rows of a micro-batch, T tokens, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.interfaces.layer import Attend
from lnlit.interfaces.patterns import fitting
from lnlit.models.block import Block
from lnlit.models.build import block_weights, build_block, load_block, parameter_count
from lnlit.models.decoder import Decoder
from lnlit.search.library import Library, pair_name
from lnlit.search.metrics import BIGGER_IS_BETTER, Metric, MetricName
from lnlit.specs import NOOP, BlockSpec

Granularity = Literal["subblock", "block"]


@dataclass(frozen=True)
class Candidate:
    """One thing to score: a variant of one slot ("attention", "ffn"), or a composed "block" named "kv1+i768"."""

    layer: int
    slot: str
    name: str

    def __str__(self) -> str:
        return f"layer {self.layer} {self.slot} {self.name!r}"

    @property
    def key(self) -> tuple[int, str, str]:
        return self.layer, self.slot, self.name

    @property
    def position(self) -> int:
        """How many of the parent's sub-blocks come before it."""
        return 2 * self.layer + (self.slot == "ffn")

    @property
    def width(self) -> int:
        """How many of the parent's sub-blocks it replaces."""
        return 2 if self.slot == "block" else 1


def candidates(library: Library, granularity: Granularity, only: Sequence[str] = ("*",)) -> list[Candidate]:
    """What there is to score, in the order of the walk; the parent's own choices, whose scores are 0, are left out.

    Among sub-blocks are the pairs that were trained together: their weights are not those of their halves. `only` are
    glob patterns over names. Raises `UserError` for a pattern that fits none of them.
    """
    found = []
    for layer, variants in enumerate(library.layers):
        own = library.parent_names(layer)
        if granularity == "subblock":
            found += [Candidate(layer, "attention", name) for name in variants.attention if name != own[0]]
            found += [Candidate(layer, "block", name) for name in variants.pairs]
            found += [Candidate(layer, "ffn", name) for name in variants.ffn if name != own[1]]
        else:
            pairs = (pair_name(attention, ffn) for attention in variants.attention for ffn in variants.ffn)
            found += [Candidate(layer, "block", name) for name in pairs if name != pair_name(*own)]
    names = dict.fromkeys(candidate.name for candidate in found)
    for pattern in only:
        if not fitting(pattern, names):
            raise UserError(f"only: {pattern!r} fits no {granularity} of the library. There are: {', '.join(names)}.")
    wanted = {name for pattern in only for name in fitting(pattern, names)}
    return [candidate for candidate in found if candidate.name in wanted]


class ParentWalk:
    """A text's activations on their way through the parent, one micro-batch per entry of `batches` [B, T].

    A position counts sub-blocks: position 2 * l is in front of layer l, 2 * l + 1 between its attention and its FFN.
    """

    def __init__(self, parent: Decoder, batches: Sequence[Tensor]) -> None:
        self.parent, self.position, self.end = parent, 0, 2 * len(parent.layers)
        self.states = [parent.embed(tokens_BT) for tokens_BT in batches]
        self._surroundings = {}
        for tokens_BT in batches:
            rows, tokens = tokens_BT.shape
            if (rows, tokens) not in self._surroundings:
                positions_1T = torch.arange(tokens, device=tokens_BT.device)[None]  # the rows share one rope table
                self._surroundings[rows, tokens] = parent.surroundings(tokens_BT, self.states[0].dtype, positions_1T)

    def seek(self, position: int) -> None:
        """Move the text to `position`, forward only."""
        if position < self.position:
            raise ValueError(f"the walk is at {self.position} already, behind {position}")
        while self.position < position:
            self.states = [self._sub_block(self.position, x_BTD) for x_BTD in self.states]
            self.position += 1

    def hidden(self, block: Block | None = None, width: int = 0) -> Iterator[Tensor]:
        """Final hidden states [B, T, D] of each micro-batch, with the next `width` sub-blocks replaced by `block`."""
        for x_BTD in self.states:
            if block is not None:
                x_BTD = block(x_BTD, *self._context(x_BTD, self.position // 2))
            for position in range(self.position + width, self.end):
                x_BTD = self._sub_block(position, x_BTD)
            yield self.parent.norm(x_BTD)

    def _sub_block(self, position: int, x_BTD: Tensor) -> Tensor:
        layer, is_ffn = divmod(position, 2)
        block = self.parent.layers[layer]
        assert isinstance(block, Block)
        return block.add_ffn(x_BTD) if is_ffn else block.add_attention(x_BTD, *self._context(x_BTD, layer))

    def _context(self, x_BTD: Tensor, layer: int) -> tuple[Attend, Mapping[int, tuple[Tensor, Tensor]]]:
        attention, rope = self._surroundings[x_BTD.shape[:2]]
        return attention.layer(layer), rope


@dataclass(frozen=True)
class Score:
    """How much worse than the parent a candidate makes it, and the values behind that."""

    candidate: Candidate
    score: float
    values: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """A line of `scores.jsonl`."""
        return {**asdict(self.candidate), "score": self.score, **self.values}


class Scorer:
    """Scores candidates in the order of the walk. The parent is observed at construction.

    Raises `UserError` when the parent's own values are not finite.
    """

    @torch.inference_mode()
    def __init__(
        self, parent: Decoder, library: Library, batches: Sequence[Tensor], metric: Metric, name: MetricName
    ) -> None:
        self.library, self.parent, self.metric, self.name = library, parent, metric, name
        self.walk = ParentWalk(parent, batches)
        outputs = list(self.walk.hidden())
        metric.observe(outputs)
        #: The parent's own values, by the path that children take.
        self.parent_values = metric.measure(outputs)
        self._check_finite("the parent", self.parent_values)

    @torch.inference_mode()
    def score(self, candidate: Candidate) -> Score:
        """Raises `UserError` naming the candidate when its score is not finite."""
        self.walk.seek(candidate.position)
        block = self.load(candidate)
        values = self.metric.measure(self.walk.hidden(block, candidate.width))
        self._check_finite(str(candidate), values)
        worse = values[self.name] - self.parent_values[self.name]
        return Score(candidate, -worse if self.name in BIGGER_IS_BETTER else worse, values)

    def work(self, candidate: Candidate) -> int:
        """What a score costs, in weights that every token is multiplied with: early layers have more behind them."""
        halves = [weights for block in self.parent.layers for weights in _halves(block)]
        return sum(halves[candidate.position :]) + self.parent.head_weight.numel()

    def load(self, candidate: Candidate) -> Block:
        """The candidate with its weights, in the parent's dtype; a sub-block is a block with `NOOP` beside it."""
        layer, weight = candidate.layer, self.parent.embed_tokens.weight
        if candidate.slot == "block":
            attention, _, ffn = candidate.name.partition("+")
            spec = self.library.block_spec(layer, attention, ffn)
            own = block_weights(self.parent.layers[layer])  # type: ignore[arg-type]
            weights = self.library.block_weights(layer, attention, ffn, own)
        else:
            part = getattr(self.library.layers[layer], candidate.slot)[candidate.name].part
            spec = BlockSpec(part, NOOP) if candidate.slot == "attention" else BlockSpec(NOOP, part)
            weights = self.library.weights(layer, candidate.slot, candidate.name)  # type: ignore[arg-type]
        moved = {name: tensor.to(weight.device, weight.dtype) for name, tensor in weights.items()}
        return load_block(build_block(self.library.spec, layer, spec), moved).eval()

    def _check_finite(self, what: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{what}: its {name} is {value}, so it cannot be scored. Its weights hold NaN or overflow "
                    f"{str(self.parent.embed_tokens.weight.dtype).removeprefix('torch.')}: make it again, or score in "
                    "float32."
                )


def _halves(block: nn.Module) -> tuple[int, int]:
    """Weights of a block's attention and of its FFN."""
    assert isinstance(block, Block)
    attention, ffn = (0 if part is None else parameter_count(part) for part in (block.self_attn, block.mlp))  # type: ignore[arg-type]
    return attention, ffn

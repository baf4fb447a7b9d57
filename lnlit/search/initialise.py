"""Every candidate of a layer, made from the parent's weights and measured against the parent's block.

Shape suffixes: R rows, T tokens, D hidden, F intermediate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.models.block import Block
from lnlit.models.build import build_block, load_block, parameter_count
from lnlit.models.decoder import Decoder
from lnlit.models.parts import convert, short_name
from lnlit.models.surgery import channel_contributions
from lnlit.objectives.block_error import squared_errors
from lnlit.search.candidates import Candidates
from lnlit.search.library import NORMS, SLOTS, LayerVariants, Slot, Variant, slot_weights
from lnlit.specs import NOOP, BlockSpec

Weights = Mapping[str, Tensor]


class SampleStream:
    """A text sample on its way through the parent: the residual stream before the next layer, `x_RTD`.

    Args:
        guide: a decoder of the parent's architecture. Its blocks are not used; it may be on the meta device.
        x_RTD: the embedded sample, on the compute device and in the compute dtype. Each row is one document.
        rows_at_once: rows per forward pass.
    """

    def __init__(self, guide: Decoder, x_RTD: Tensor, rows_at_once: int) -> None:
        self.guide, self.x_RTD, self.rows_at_once = guide, x_RTD, rows_at_once
        tokens_RT = torch.empty(x_RTD.shape[:2], dtype=torch.long, device=x_RTD.device)
        self._surroundings = [guide.surroundings(tokens_BT, x_RTD.dtype) for tokens_BT in tokens_RT.split(rows_at_once)]

    def block(self, layer: int, block: BlockSpec, weights: Weights) -> Block:
        """A block that runs on this stream."""
        ready = {name: tensor.to(self.x_RTD.device, self.x_RTD.dtype) for name, tensor in weights.items()}
        return load_block(build_block(self.guide.spec, layer, block), ready)

    @torch.no_grad()
    def after_attention(self, layer: int, block: Block) -> Tensor:
        """The whole sample behind a block's first half."""
        rows = zip(self.x_RTD.split(self.rows_at_once), self._surroundings, strict=True)
        return torch.cat([block.add_attention(x, attention.layer(layer), rope) for x, (attention, rope) in rows])

    @torch.no_grad()
    def after_ffn(self, block: Block, h_RTD: Tensor) -> Tensor:
        """The whole sample behind a block's second half, given that behind a first half."""
        return torch.cat([block.add_ffn(h_BTD) for h_BTD in h_RTD.split(self.rows_at_once)])

    def error(self, child_RTD: Tensor, parent_RTD: Tensor) -> float:
        """The child's block error over the whole sample."""
        rows = zip(child_RTD.split(self.rows_at_once), parent_RTD.split(self.rows_at_once), strict=True)
        difference, square = torch.stack([squared_errors(child, parent) for child, parent in rows]).sum(0).tolist()
        return difference / square if square else math.nan

    def advance(self, layer: int, weights: Weights) -> None:
        """Move on behind the parent's layer `layer`."""
        parent = self.block(layer, self.guide.spec.layers[layer], weights)
        self.x_RTD = self.after_ffn(parent, self.after_attention(layer, parent))


def initialise_layer(
    stream: SampleStream, layer: int, weights: Weights, candidates: Candidates
) -> tuple[LayerVariants, dict[tuple[Slot, str], dict[str, Tensor]]]:
    """The choices of one layer, the parent's own first, and the candidates' weights. The stream moves on behind it.

    `weights` are the parent's. Each candidate's error is that of the block which has it beside the parent's other half.
    `UserError` for an error that is not finite.
    """
    block = stream.guide.spec.layers[layer]
    parent = stream.block(layer, block, weights)
    h_RTD = stream.after_attention(layer, parent)
    with _channel_scores(parent) as scores:
        out_RTD = stream.after_ffn(parent, h_RTD)
    variants: dict[str, dict[str, Variant]] = {}
    made: dict[tuple[Slot, str], dict[str, Tensor]] = {}
    for slot in SLOTS:
        part, own = getattr(block, slot), slot_weights(slot, weights)
        size = sum(tensor.numel() for tensor in own.values())
        variants[slot] = {short_name(slot, part): Variant(part, size, parent=True)}
        norm = {name: own.pop(name) for name in NORMS.values() if name in own}
        for name, smaller in candidates.of(slot, part).items():
            first = convert(slot, part, smaller, own, sum(scores) if scores else None)  # type: ignore[arg-type]
            made[slot, name] = first | norm if first else {}
            child = stream.block(layer, BlockSpec(NOOP, NOOP).replace(**{slot: smaller}), made[slot, name])
            if slot == "attention":
                child_RTD = stream.after_ffn(parent, stream.after_attention(layer, child))
            else:
                child_RTD = stream.after_ffn(child, h_RTD)
            error = stream.error(child_RTD, out_RTD)
            if not math.isfinite(error):
                raise UserError(
                    f"layer {layer}: the {slot} candidate {name} has the error {error}, so the parent's weights or "
                    f"outputs in layers 0 to {layer} are not finite, or all zero. Check the parent's checkpoint."
                )
            variants[slot][name] = Variant(smaller, parameter_count(child), init_error=error)
    stream.x_RTD = out_RTD
    return LayerVariants(variants["attention"], variants["ffn"]), made


@contextmanager
def _channel_scores(parent: Block) -> Iterator[list[Tensor]]:
    """Collects the FFN's channel contributions, summed over the tokens of each forward pass; [] where it has none."""
    scores: list[Tensor] = []
    if parent.mlp is None or parent.mlp.reads_channels is None:
        yield scores
        return
    reader = parent.mlp.get_submodule(parent.mlp.reads_channels)  # type: ignore[operator, arg-type]

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        scores.append(channel_contributions(inputs[0], module.weight) * inputs[0][..., 0].numel())  # type: ignore

    hook = reader.register_forward_pre_hook(note)
    try:
        yield scores
    finally:
        hook.remove()

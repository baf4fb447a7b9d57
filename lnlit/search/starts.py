"""The first weights of a layer's candidates: made of the parent's, fitted to its outputs, measured against its block.

What a part makes of the parent's weights (`Layer.conversions`) says nothing of what is missing in it. So its last
linear (`Layer.output_linear`) is fitted by least squares on the text, until the candidate's output is as near to the
parent's as that linear can bring it. For a pruned FFN this is the correction of SparseGPT and ZipLM (Frantar and
Alistarh 2023, Kurtic et al. 2023), for a single matrix it is linear regression. The sums that it takes are of the size
of the linear's inputs squared, however long the text is.

Shape suffixes: B rows, T tokens, D hidden, F inputs of the last linear.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.models.block import Block
from lnlit.models.build import build_block, load_block
from lnlit.models.least_squares import NormalEquations, fitted
from lnlit.models.parts import conversions, layer_class, short_name
from lnlit.models.surgery import removal_order
from lnlit.objectives.block_error import squared_errors
from lnlit.search.choice import SLOTS, At, Half, alone
from lnlit.search.library import MODULES, NORMS, LayerVariants, Variant, slot_weights
from lnlit.search.space import Candidates
from lnlit.search.walk import Step, Walk
from lnlit.specs import ModelSpec, PartSpec


@torch.no_grad()
def initialise_layer(
    walk: Walk, weights: Mapping[str, Tensor], candidates: Candidates
) -> tuple[LayerVariants, dict[At, dict[str, Tensor]]]:
    """The choices of the layer in front of the walk, the parent's own first, and the candidates' weights. The walk goes
    on behind it.

    `weights` are the parent's. Each candidate's error is that of the block which has it beside the parent's other half.
    `UserError` for an error that is not finite.
    """
    layer, spec = walk.position // 2, walk.parent.decoder.spec
    variants: dict[Half, dict[str, Variant]] = {}
    made: dict[At, dict[str, Tensor]] = {}
    with walk.parent.layer(layer):
        steps = walk.steps()
        for slot in SLOTS:
            part, own = getattr(spec.layers[layer], slot), slot_weights(slot, weights)
            size = sum(tensor.numel() for tensor in own.values())
            variants[slot] = {short_name(slot, part): Variant(part, size, parent=True)}
            wanted = candidates.of(slot, part)
            starts = _Starts(spec, layer, slot, own, steps) if wanted else None
            for name, smaller in wanted.items():
                assert starts is not None
                found, error = starts.best(smaller)
                if not math.isfinite(error):
                    raise UserError(
                        f"layer {layer}: the {slot} candidate {name} has the error {error}, so the parent's weights or "
                        f"outputs in layers 0 to {layer} are not finite, or all zero. Check the parent's checkpoint."
                    )
                made[At(layer, slot, name)] = found
                size = sum(tensor.numel() for tensor in found.values())
                variants[slot][name] = Variant(smaller, size, init_error=error)
    return LayerVariants(variants["attention"], variants["ffn"]), made


class _Starts:
    """What candidates for one slot of a layer start from.

    Args:
        spec: The parent.
        layer: The layer.
        slot: Which half of it they replace.
        own: The parent's weights of that half, its norm included.
        steps: The parent's layer on each micro-batch of the text.
    """

    def __init__(
        self, spec: ModelSpec, layer: int, slot: Half, own: Mapping[str, Tensor], steps: Sequence[Step]
    ) -> None:
        self._spec, self._layer, self._steps = spec, layer, steps
        self._slot: Half = slot
        self._norm = {name: tensor for name, tensor in own.items() if name in NORMS.values()}
        self._own = {name: tensor for name, tensor in own.items() if name not in self._norm}
        self._wanted = [_update(step.block, slot, step) for step in steps]
        self._scores_F = self._channel_scores() if slot == "ffn" else None

    def best(self, part: PartSpec) -> tuple[dict[str, Tensor], float]:
        """The weights of `part`, norm included, whose outputs are nearest to the parent's, of all ways to make it of
        the parent's; and the error of the block that has them."""
        parent = getattr(self._spec.layers[self._layer], self._slot)
        ways = conversions(self._slot, parent, part)
        tried = (self._fitted(part, way(self._own, self._scores_F)) for way in ways)
        weights, _ = min(tried, key=lambda each: each[1])
        return weights, _error(self._steps, self._loaded(part, weights), self._slot)

    def _fitted(self, part: PartSpec, start: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """The fitted weights, and how far their outputs are from the parent's; 0 if there is nothing to fit."""
        empty = build_block(self._spec, self._layer, alone(self._slot, part))
        shapes = {name: weight.shape for name, weight in empty.named_parameters()}
        weights = start | (self._norm if shapes else {})
        if (output := layer_class(self._slot, part).output_linear) is None:
            return weights, 0.0
        name, like = f"{MODULES[self._slot]}.{output}.weight", next(iter(self._own.values()))
        weights.setdefault(name, torch.zeros(shapes[name], dtype=like.dtype, device=like.device))
        equations = self._equations(self._loaded(part, weights))
        found = fitted(weights[name].to(equations.grams.device), equations)
        return {**weights, name: found.to(like.device)}, equations.distance(found)

    def _loaded(self, part: PartSpec, weights: Mapping[str, Tensor]) -> Block:
        child, like = build_block(self._spec, self._layer, alone(self._slot, part)), self._steps[0].x_BTD
        return load_block(child, {name: tensor.to(like.device, like.dtype) for name, tensor in weights.items()})

    def _equations(self, child: Block) -> NormalEquations:
        """The equations of the child's last linear, whose result should be the parent's output."""
        linear = _linear(child, self._slot)
        rows = ((x_BTF, y_BTD if linear.bias is None else y_BTD - linear.bias) for x_BTF, y_BTD in self._seen(child))
        return NormalEquations.of_rows(_rows(rows, sum(len(y_BTD) for y_BTD in self._wanted)))

    def _seen(self, block: Block) -> Iterator[tuple[Tensor, Tensor]]:
        """By micro-batch, what the last linear of a block's half reads [B, T, F], and the parent's output [B, T, D]."""
        seen: list[Tensor] = []
        hook = _linear(block, self._slot).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            for step, y_BTD in zip(self._steps, self._wanted, strict=True):
                _update(block, self._slot, step)
                yield seen.pop(), y_BTD
        finally:
            hook.remove()

    def _channel_scores(self) -> Tensor | None:
        parent = self._steps[0].block
        if parent.mlp is None or parent.mlp.output_linear is None:
            return None
        return removal_order(self._equations(parent).grams.sum(0), _linear(parent, self._slot).weight)


def _update(block: Block, slot: Half, step: Step) -> Tensor:
    """What a block's half adds to the residual stream [B, T, D]."""
    if slot == "attention":
        return block.self_attn(block.input_layernorm(step.x_BTD), step.attend, step.rope)  # type: ignore[misc]
    return block.mlp(block.post_attention_layernorm(step.h_BTD))  # type: ignore[misc]


def _linear(block: Block, slot: Half) -> nn.Linear:
    """The last linear of a block's half, which has one."""
    half = block.get_submodule(MODULES[slot])
    return half.get_submodule(half.output_linear)  # type: ignore[return-value, arg-type]


def _rows(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of all micro-batches; if there is one alone, its two halves."""
    for x_BTF, y_BTD in batches:
        for x_TF, y_TD in zip(x_BTF, y_BTD, strict=True):
            yield from zip(x_TF.chunk(2), y_TD.chunk(2), strict=True) if count == 1 else ((x_TF, y_TD),)


def _error(steps: Sequence[Step], child: Block, slot: Half) -> float:
    """The block error of the parent's layer with `child` in one slot, over the whole text."""
    pairs = [squared_errors(step.output(child, slot), step.out_BTD) for step in steps]
    difference, square = torch.stack(pairs).sum(0).tolist()
    return difference / square if square else math.nan

"""Checks what a part declares about itself: smaller variants, packed form, fusion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lnlit.models.block import Block
from lnlit.models.build import block_weights, build_block, check_part, load_block
from lnlit.models.lineage import fused_ffn
from lnlit.models.parts import (
    attention_class,
    conversions,
    ffn_class,
    layer_class,
    packed_part,
    short_name,
    stored_part,
)
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

Expect = Callable[[bool, str], None]


class _Half:
    """A search space with half of every size."""

    def narrower(self, channels: int) -> list[int]:
        return [channels // 2] if channels > 1 else []

    def fewer_heads(self, heads: int) -> list[int]:
        return [heads // 2] if heads > 1 and heads % 2 == 0 else []


def check_knowledge(spec: ModelSpec, slot: str, part: PartSpec, expect: Expect) -> None:
    """Checks all that `part` declares, apart from `forward`. It is the only part of `spec`."""
    name, cls = short_name(slot, part), layer_class(slot, part)
    expect(bool(name) and "+" not in name and "/" not in name, f"short_name is a name without + and /, got {name!r}")
    for other in (stored_part(slot, part), packed_part(slot, part)):
        check_part("stored_as or packed_as", slot, other)
    size = attention_class(part).rope_dim(part.args) if slot == "attention" else None
    expect(size is None or (isinstance(size, int) and size > 0), f"rope_dim is a size or None, got {size!r}")
    counts = cls.whole_units(part.args)
    expect(
        all(isinstance(n, int) and n > 0 for n in counts.values()), f"whole_units counts what there is, got {counts}"
    )
    expect(cls.flops(part.args, 100, 10.0) >= 0, "flops is a number from 0 on")
    if part == NOOP:
        return
    block = _drawn(spec, slot, part)
    weights = {name: tensor for name, tensor in block_weights(block).items() if "layernorm" not in name}
    scores_F = _scores(block) if slot == "ffn" else None
    for args in cls.smaller(part.args, _Half()):
        child = PartSpec(part.type, args)
        check_part("smaller", slot, child)
        ways = conversions(slot, part, child)
        expect(bool(ways), f"smaller gives {child}, which has no conversions from {part}")
        norm = {name: tensor for name, tensor in block_weights(block).items() if "layernorm" in name}
        for way in ways:
            small = load_block(build_block(spec, 0, _alone(slot, child)), way(weights, scores_F) | norm)
            fewer = sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in block.parameters())
            expect(fewer, f"smaller gives {child}, which is no smaller")
    if slot == "ffn" and ffn_class(part).channels(part.args) is not None:
        _check_fusing(spec, part, expect)


def _check_fusing(spec: ModelSpec, part: PartSpec, expect: Expect) -> None:
    """Two FFNs fused equal their sum, each with its own norm."""
    blocks = [_drawn(spec, "ffn", part, seed) for seed in (1, 2)]
    wide = fused_ffn([part, part])
    channels = ffn_class(part).channels(part.args), ffn_class(wide).channels(wide.args)
    expect(channels[1] == 2 * (channels[0] or 0), f"two with {channels[0]} channels are one with {channels[1]}")
    fused = load_block(
        build_block(spec, 0, _alone("ffn", wide)), ffn_class(part).fuse([block_weights(b) for b in blocks], "own")
    )
    x_BTD = torch.randn(1, 5, spec.hidden_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        apart = sum(block.add_ffn(x_BTD) - x_BTD for block in blocks)
        expect(torch.allclose(fused.add_ffn(x_BTD) - x_BTD, apart, atol=1e-4), "fused, they are not their sum")  # type: ignore[arg-type]


def _alone(slot: str, part: PartSpec) -> BlockSpec:
    return BlockSpec(NOOP, NOOP).replace(**{slot: part})


def _drawn(spec: ModelSpec, slot: str, part: PartSpec, seed: int = 1) -> Block:
    block = build_block(spec, 0, _alone(slot, part)).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return block


def _scores(block: Block) -> Tensor | None:
    """Arbitrary scores of an FFN's channels."""
    if block.mlp is None or block.mlp.output_linear is None:
        return None
    reader = block.mlp.get_submodule(block.mlp.output_linear)  # type: ignore[operator, arg-type]
    return torch.arange(reader.in_features).float()

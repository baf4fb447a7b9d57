"""Weight surgery against direct definitions: what a channel contributes, what a linear stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.models.build import block_weights, build_block, load_block
from lnlit.models.causal_attention import causal_attention
from lnlit.models.parts import conversion, convert
from lnlit.models.surgery import (
    attention_as_matrix,
    channel_contributions,
    ffn_as_matrix,
    narrow_ffn,
    pool_kv_heads,
)
from lnlit.specs import NOOP, BlockSpec, PartSpec
from lnlit.testing.tiny import attention, swiglu, tiny_spec

LINEAR = PartSpec("single_linear")


def drawn(slot: str, part: PartSpec) -> dict[str, Tensor]:
    """Random weights of one part by checkpoint names, without its norm."""
    block = build_block(tiny_spec(), 0, BlockSpec(NOOP, NOOP).replace(**{slot: part})).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(5)
    for parameter in block.parameters():
        parameter.data.normal_(generator=generator)
    return {name: tensor for name, tensor in block_weights(block).items() if "layernorm" not in name}


def run_ffn(part: PartSpec, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    norm = {"post_attention_layernorm.weight": torch.ones(32)}
    block = load_block(build_block(tiny_spec(), 0, BlockSpec(NOOP, part)), {**weights, **norm})
    assert block.mlp is not None
    return block.mlp(x)


def run_attention(part: PartSpec, weights: dict[str, Tensor], x: Tensor, attend) -> Tensor:
    norm = {"input_layernorm.weight": torch.ones(32)}
    block = load_block(build_block(tiny_spec(), 0, BlockSpec(part, NOOP)), {**weights, **norm})
    tables = torch.ones(*x.shape[:2], 8), torch.zeros(*x.shape[:2], 8)  # position 0 everywhere
    assert block.self_attn is not None
    return block.self_attn(x, attend, {8: tables})


def to_itself(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Attention in which every token attends to itself only."""
    return v.repeat_interleave(q.shape[2] // v.shape[2], dim=2)


def test_a_channels_contribution_is_what_the_output_loses_without_it():
    inner, down = torch.randn(2, 5, 12), torch.randn(7, 12)
    without = []
    for channel in range(12):
        kept = inner.clone()
        kept[..., channel] = 0
        without.append((inner @ down.T - kept @ down.T).norm(dim=-1).mean())
    assert torch.allclose(channel_contributions(inner, down), torch.stack(without), atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_narrowing_by_all_channels_changes_nothing(bias):
    weights = drawn("ffn", swiglu(24).replace(bias=bias))
    whole = narrow_ffn(weights, torch.randn(24), 24)
    assert whole.keys() == weights.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("fused", [False, True])
def test_a_narrowed_ffn_is_the_ffn_with_the_other_channels_silenced(fused):
    part = swiglu(24, fused).replace(bias=True)
    weights, scores, x = drawn("ffn", part), torch.randn(24), torch.randn(2, 3, 32)
    narrow = part.replace(intermediate_size=8)
    got = run_ffn(narrow, convert("ffn", part, narrow, weights, scores), x)
    silent = {**weights, "mlp.down_proj.weight": weights["mlp.down_proj.weight"].clone()}
    silent["mlp.down_proj.weight"][:, scores.argsort()[:16]] = 0
    assert torch.allclose(got, run_ffn(part, silent, x), atol=1e-4)


def test_the_ffn_as_one_matrix_is_the_ffn_with_an_open_gate():
    part = swiglu(24)
    weights, x = drawn("ffn", part), torch.randn(2, 3, 32)
    ungated = x @ weights["mlp.up_proj.weight"].T @ weights["mlp.down_proj.weight"].T
    assert torch.allclose(run_ffn(LINEAR, convert("ffn", part, LINEAR, weights), x), ungated, atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"qk_norm": True, "window": 3}, {"rotary_dim": 0}], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_as_one_matrix_is_attention_of_each_token_to_itself(kv_heads, more):
    part = attention(kv_heads).replace(**more)
    weights, x = drawn("attention", part), torch.randn(2, 5, 32)
    linear = convert("attention", part, LINEAR, weights)
    assert torch.equal(linear["self_attn.linear_attn.weight"], attention_as_matrix(weights, 4, kv_heads))
    expected = run_attention(part, weights, x, to_itself)
    assert torch.allclose(run_attention(LINEAR, linear, x, None), expected, atol=1e-4)


BIASED = {"bias": True}
INPUTS_BIASED = {"bias": True, "output_bias": False}


@pytest.mark.parametrize("more", [{}, BIASED, INPUTS_BIASED, {"qk_norm": True}], ids=str)
def test_pooled_heads_are_means_of_neighbouring_heads(more):
    weights = drawn("attention", attention(4).replace(**more))
    pooled = pool_kv_heads(weights, 4, 2)
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            first, second, third, fourth = tensor.split(8)
            expected = torch.cat([(first + second) / 2, (third + fourth) / 2])
            assert torch.allclose(pooled[name], expected), name
        else:
            assert torch.equal(pooled[name], tensor), name


@pytest.mark.parametrize("more", [{}, INPUTS_BIASED, {"qk_norm": True}, {"window": 3}, {"rotary_dim": 0}], ids=str)
def test_pooling_equal_heads_changes_no_output(more):
    """Each query head reads the pool that its own head went into. What normalises heads stays."""
    part, fewer = (attention(heads).replace(**more) for heads in (4, 2))
    x = torch.randn(1, 5, 32)
    weights = drawn("attention", part)
    for name in weights:
        if name.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
            one, _, two, _ = weights[name].split(8)
            weights[name] = torch.cat([one, one, two, two])
    expected = run_attention(part, weights, x, causal_attention)
    pooled = run_attention(fewer, pool_kv_heads(weights, 4, 2), x, causal_attention)
    assert torch.allclose(pooled, expected, atol=1e-5)


def test_heads_pool_to_divisors_only():
    with pytest.raises(UserError, match="4 KV heads cannot be averaged to 3"):
        pool_kv_heads(drawn("attention", attention(4)), 4, 3)


def test_half_precision_weights_stay_so_and_are_multiplied_in_full():
    weights = {name: tensor.bfloat16() for name, tensor in drawn("ffn", swiglu(24)).items()}
    product = ffn_as_matrix(weights)
    exact = weights["mlp.down_proj.weight"].double() @ weights["mlp.up_proj.weight"].double()
    assert product.dtype == torch.bfloat16
    assert torch.equal(product, exact.bfloat16())


def test_what_cannot_be_converted_is_refused():
    assert conversion("ffn", NOOP, NOOP) is None and convert("ffn", LINEAR, NOOP, {}) == {}
    with pytest.raises(UserError, match=r"no training-free way from single_linear\(\) to swiglu"):
        convert("ffn", LINEAR, swiglu(8), {})

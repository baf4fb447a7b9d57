"""Weight surgery against direct definitions: which channels go first, what heads become."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.models.build import block_weights, build_block, load_block
from lnlit.models.causal_attention import causal_attention
from lnlit.models.parts import conversions
from lnlit.models.surgery import (
    narrow_ffn,
    pool_kv_heads,
    removal_order,
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


def test_channels_go_in_the_order_of_what_least_squares_cannot_make_up_for():
    """Each turn is found by solving for every channel that is left; one goes at a time, as there are few."""
    inner, down = torch.randn(40, 12, dtype=torch.double), torch.randn(7, 12, dtype=torch.double)
    damping = (0.01 * inner.square().sum(0).mean()).sqrt()
    seen = numpy.concatenate([inner.numpy(), damping * numpy.eye(12)])  # a ridge is rows of its own
    wanted, left, turns = seen @ down.numpy().T, list(range(12)), []

    def lost(channel: int) -> float:
        kept = seen[:, [other for other in left if other != channel]]
        return float(numpy.square(kept @ numpy.linalg.lstsq(kept, wanted, rcond=None)[0] - wanted).sum())

    while left:
        turns.append(min(left, key=lost))
        left.remove(turns[-1])
    assert removal_order(inner.T @ inner, down).argsort().tolist() == turns


def test_a_channel_that_another_one_doubles_goes_first():
    inner, down = torch.randn(50, 6).double(), torch.randn(4, 6).double()
    inner[:, 2] = inner[:, 4]
    down[:, 2] *= 10  # it contributes the most
    assert removal_order(inner.T @ inner, down).argsort()[0] in (2, 4)


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
    (way,) = conversions("ffn", part, narrow)
    got = run_ffn(narrow, way(weights, scores), x)
    silent = {**weights, "mlp.down_proj.weight": weights["mlp.down_proj.weight"].clone()}
    silent["mlp.down_proj.weight"][:, scores.argsort()[:16]] = 0
    assert torch.allclose(got, run_ffn(part, silent, x), atol=1e-4)


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


@pytest.mark.parametrize("keep", [None, 0, 1])
def test_half_precision_weights_stay_so_and_are_averaged_in_full(keep):
    weights = {name: tensor.bfloat16() for name, tensor in drawn("attention", attention(4)).items()}
    pooled = pool_kv_heads(weights, 4, 2, keep=keep)["self_attn.k_proj.weight"]
    pairs = weights["self_attn.k_proj.weight"].double().unflatten(0, (2, 2, -1))
    exact = (pairs[:, 0] + pairs[:, 1]) / 2 if keep is None else pairs[:, keep]
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, exact.flatten(0, 1).bfloat16())


def test_fewer_heads_are_averages_or_heads_that_stay():
    weights = drawn("attention", attention(4))
    average, first, second = (way(weights, None) for way in conversions("attention", attention(4), attention(2)))
    values = weights["self_attn.v_proj.weight"].split(8)
    for made, heads in ((first, (0, 2)), (second, (1, 3))):
        assert torch.equal(made["self_attn.v_proj.weight"], torch.cat([values[head] for head in heads]))
        assert torch.equal(made["self_attn.q_proj.weight"], weights["self_attn.q_proj.weight"])
    assert torch.equal(average["self_attn.v_proj.weight"], pool_kv_heads(weights, 4, 2)["self_attn.v_proj.weight"])


def test_what_cannot_be_converted_has_no_conversions():
    assert not conversions("ffn", NOOP, NOOP) and not conversions("ffn", LINEAR, swiglu(8))
    assert [way({}, None) for way in conversions("ffn", LINEAR, NOOP)] == [{}]

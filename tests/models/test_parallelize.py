"""What tensor parallelism splits, refuses and leaves whole; no rank but the first is there."""

from __future__ import annotations

import re

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from lnlit.errors import UserError
from lnlit.interfaces import logits
from lnlit.models.build import build_decoder, parameter_count
from lnlit.models.fp8 import to_float8
from lnlit.models.parallelize import parallelize
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.testing.tiny import attention, swiglu, tiny_spec

LINEAR = PartSpec("single_linear")


@pytest.fixture(params=[2])
def mesh(request):
    """A mesh in which nobody answers: torch's `fake` backend."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield init_device_mesh("cpu", (1, request.param), mesh_dim_names=("data_parallel", "tensor_parallel"))
    distributed.destroy_process_group()


def spec_of(*layers: BlockSpec) -> ModelSpec:
    return tiny_spec().replace(layers=layers)


def split(spec: ModelSpec, mesh: DeviceMesh):
    decoder = build_decoder(spec)
    return decoder, parallelize(decoder, mesh, None)


def test_what_is_whole_is_told(mesh):
    spec = spec_of(BlockSpec(attention(), swiglu()), BlockSpec(LINEAR, LINEAR), BlockSpec(NOOP, NOOP))
    total = parameter_count(build_decoder(spec))
    decoder, told = split(spec, mesh)
    held = sum(
        (p.to_local() if isinstance(p, DTensor) else p).numel() for p in decoder.to_empty(device="cpu").parameters()
    )
    assert told is not None and f"each rank holds {held:,} of {total:,} parameters." in told
    norms = 5 * spec.hidden_size
    assert told.endswith(f"Whole on each: norms {norms}")
    assert held == norms + (total - norms) // 2


def test_gate_and_up_as_one_matrix_are_split_as_two_are(mesh):
    held = []
    for fused in (False, True):
        decoder, _ = split(spec_of(BlockSpec(attention(), swiglu(48, fused=fused))), mesh)
        parameters = decoder.to_empty(device="cpu").parameters()
        held.append(sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters))
    assert held[0] == held[1]


def test_weights_that_are_packed_whole_below_each_other_are_refused(mesh):
    """Each rank would have rows of different ones."""
    decoder = build_decoder(spec_of(BlockSpec(NOOP, swiglu(48, fused=True))))
    decoder.layers[0].mlp.packed_runs = 1  # as of a part that says nothing
    with pytest.raises(UserError, match=re.escape("layers[0].ffn.gate_up_proj stacks gate_proj, up_proj in 1 runs")):
        parallelize(decoder, mesh, None)


def test_a_vocabulary_that_ranks_cannot_divide_is_whole(mesh):
    spec = spec_of(BlockSpec(attention(), swiglu())).replace(vocab_size=259, tie_embeddings=False)
    _, told = split(spec, mesh)
    assert told is not None and "Whole on each: embedding 8,288, norms 96, head 8,288" in told


def test_a_part_without_a_plan_is_named(mesh, monkeypatch):
    from lnlit.models.stubs import SingleLinearFeedForward

    monkeypatch.setattr(SingleLinearFeedForward, "tensor_parallel", {})
    _, told = split(spec_of(BlockSpec(attention(), LINEAR)), mesh)
    assert told is not None and told.endswith(", ffn single_linear 1,024")


def test_a_norm_of_heads_is_whole_and_its_gradient_a_sum_over_ranks(mesh):
    decoder, _ = split(spec_of(BlockSpec(attention().replace(qk_norm=True), NOOP)), mesh)
    for parameter in decoder.to_empty(device="cpu").parameters():
        torch.nn.init.constant_(parameter, 0.1)
    decoder(torch.zeros(1, 3, dtype=torch.int64)).sum().backward()
    for norm in (decoder.layers[0].self_attn.q_norm, decoder.layers[0].self_attn.k_norm):
        assert norm.weight.placements == (Replicate(),) and norm.weight.grad.placements == (Partial("sum"),)


def test_a_method_that_multiplies_by_the_head_itself_is_told_how(mesh):
    decoder, _ = split(spec_of(BlockSpec(attention(), swiglu())), mesh)
    decoder.to_empty(device="cpu")
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(UserError, match=r"which each rank has some rows. Let it call lnlit\.interfaces\.logits"):
        decoder(tokens, read_out=lambda hidden, weight: hidden @ weight.T)
    assert decoder(tokens, read_out=logits).shape == (1, 3, decoder.spec.vocab_size)


def test_what_is_frozen_stays_frozen(mesh):
    spec = spec_of(BlockSpec(attention().replace(qk_norm=True), swiglu()), BlockSpec(LINEAR, LINEAR))
    decoder = build_decoder(spec).requires_grad_(False)
    parallelize(decoder, mesh, None)
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("mesh", "block", "message"),
    [
        (2, BlockSpec(attention(1), swiglu()), "2 does not divide layers[0].attention's 1 KV heads"),
        (3, BlockSpec(attention(), swiglu()), "3 does not divide layers[0].attention's 4 query heads"),
        (2, BlockSpec(NOOP, swiglu(31)), "2 does not divide layers[0].ffn's 31 channels"),
        (3, BlockSpec(LINEAR, NOOP), "3 does not divide layers[0].attention.linear_attn's 32 outputs"),
        (
            3,
            BlockSpec(NOOP, swiglu(48, fused=True)),
            "3 does not divide layers[0].ffn's 16 runs of gate and up",
        ),
        (
            2,
            BlockSpec(NOOP, swiglu(31, fused=True)),
            "2 does not divide layers[0].ffn's 1 runs of gate and up",
        ),
    ],
    indirect=["mesh"],
)
def test_what_cannot_be_split_is_refused(mesh, block, message):
    with pytest.raises(UserError, match=re.escape(message)):
        split(spec_of(block), mesh)


@pytest.mark.parametrize(("ranks", "converted"), [(1, 3), (2, 0), (3, 3)])
def test_float8_asks_for_multiples_of_16_in_a_ranks_part(ranks, converted):
    """An FFN of 48 channels has 24 on each of two ranks and 16 on each of three."""
    spec = spec_of(BlockSpec(attention(), swiglu(48)), BlockSpec(LINEAR, NOOP))
    decoder = build_decoder(spec, "cpu")
    to_float8(decoder, "tensorwise", "cpu", ranks)
    found = [name for name, module in decoder.named_modules() if type(module).__name__ == "Float8Linear"]
    assert len([name for name in found if "mlp" in name]) == converted

"""Memory found by running fake tensors, against sums by hand and against torch's own storage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lnlit.models.build import build_decoder
from lnlit.models.lora import LoRA
from lnlit.planning.sizes import Mesh, Sized
from lnlit.planning.traced import fake, quiet_peak, traced
from lnlit.planning.training import Frozen, Training
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

ATTENTION = PartSpec("gqa", {"num_heads": 8, "num_kv_heads": 2, "head_dim": 16})
FFN = PartSpec("swiglu", {"intermediate_size": 256})
SPEC = ModelSpec(512, 128, (BlockSpec(ATTENTION, FFN), BlockSpec(NOOP, FFN), BlockSpec(NOOP, NOOP)), 4096)
T = 64


def test_a_chain_without_gradients_holds_two_tensors_at_a_time():
    def run(trace):
        x = torch.empty(1000)
        for _ in range(5):
            x = x + 1
        return x

    assert quiet_peak(run) == 2 * 4000


def test_an_mlp_keeps_what_its_backward_pass_reads():
    with fake():
        up, down = nn.Linear(128, 512, bias=False), nn.Linear(512, 128, bias=False)
        x = torch.empty(T, 128, requires_grad=True)
    use = traced(lambda trace: down(up(x).relu()), iter([up.weight, down.weight]))
    wide, narrow, weight = 4 * T * 512, 4 * T * 128, 4 * 128 * 512
    assert use.kept == wide + narrow  # relu's result, which it and the second product need, and the output
    assert use.forward == 2 * wide + narrow or use.forward == 2 * wide
    # at the end both weights have gradients, and the input
    assert use.backward >= 2 * weight + narrow


def test_gradients_that_are_added_up_are_not_held():
    with fake():
        linear = nn.Linear(128, 512, bias=False)
        x = torch.empty(T, 128, requires_grad=True)
    held, freed = (
        traced(lambda trace: linear(linear(x)[:, :128]), iter([linear.weight]), frees_gradients=frees)
        for frees in (False, True)
    )
    assert freed.backward < held.backward
    assert linear.weight.grad is None


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_hold_what_tensor_parallelism_gives_them(size: int):
    sized = Sized(SPEC, size)
    attention, ffn, norm = 128 * (128 + 2 * 32) + 128 * 128, 3 * 128 * 256, 128
    assert [unit.parameters for unit in sized.units] == [
        (attention + ffn) // size + 2 * norm, ffn // size + norm, 0
    ]  # fmt: skip
    assert sized.root.parameters == 2 * 512 * 128 // size + norm
    assert sized.parameters == sum(p.numel() for p in build_decoder(SPEC).parameters())


def test_blocks_of_tensor_parallel_ranks_keep_less_but_their_residual_stream_is_whole():
    one, two = (Sized(SPEC, size).use(1, T, compiled=False, mixed=None, frees_gradients=False) for size in (1, 2))
    stream = 4 * T * 128
    assert one.kept > two.kept > one.kept / 2
    assert two.kept >= 2 * stream


def test_checkpointing_keeps_a_residual_stream_for_each_block_that_computes():
    on = Training(SPEC, T, checkpointing=True).on(Mesh(1, 1))
    assert on.kept == [4 * T * 128, 4 * T * 128, 0]
    offloaded = Training(SPEC, T, checkpointing=True, offload=True).on(Mesh(1, 1))
    assert offloaded.kept == [0, 0, 0] and offloaded.offloaded == 2 * 4 * T * 128


def test_compiled_blocks_keep_products_and_sums_alone():
    eager, compiled = (
        Sized(SPEC, 1, torch.bfloat16).use(1, T, compiled=compiled, mixed=None, frees_gradients=False)
        for compiled in (False, True)
    )
    gate_and_up, stream = 2 * 2 * T * 256, 2 * T * 128
    assert compiled.kept == gate_and_up + stream < eager.kept


def test_resting_bytes_are_those_of_adamw_in_fp32():
    parameters = Sized(SPEC).parameters
    one = Training(SPEC, T).on(Mesh(1, 1))
    assert one.resting == {"parameters": 4 * parameters, "optimizer": 8 * parameters}
    assert one.gradients == 4 * parameters
    eight = Training(SPEC, T, precision="bf16-mixed", sharded=True).on(Mesh(1, 8))
    assert eight.resting["optimizer"] == pytest.approx(parameters, rel=1e-3)
    half = Training(SPEC, T, precision="bf16-mixed", sharded=True, replicas=2).on(Mesh(1, 8))
    assert half.resting["optimizer"] == pytest.approx(2 * parameters, rel=1e-3)


def test_adapters_have_moments_and_the_model_has_none():
    lora = Training(SPEC, T, lora=LoRA(rank=4)).on(Mesh(1, 1))
    adapters = 4 * (128 + 128) + 2 * 4 * (128 + 32) + 4 * (128 + 128)
    assert lora.resting["optimizer"] == 8 * adapters and lora.gradients == 4 * adapters


def test_a_reward_model_trains_no_head_of_the_vocabulary():
    whole, reward = (
        Training(SPEC.replace(tie_embeddings=False), T, loss=loss).on(Mesh(1, 1))
        for loss in ("cross_entropy", "scores")
    )
    assert whole.resting["parameters"] == reward.resting["parameters"]
    assert whole.resting["optimizer"] - reward.resting["optimizer"] == 8 * 512 * 128
    assert whole.gradients - reward.gradients == 4 * 512 * 128


def test_a_teacher_is_held_beside_the_model():
    teacher = Frozen("teacher", SPEC, sharded=True, bf16=True, kept_layers=2)
    training = Training(SPEC, T, precision="bf16-mixed", sharded=True, loss="distillation", frozen=(teacher,))
    with_one, without = (
        each.on(Mesh(1, 4)) for each in (training, Training(SPEC, T, precision="bf16-mixed", sharded=True))
    )
    assert with_one.resting["teacher"] == pytest.approx(2 * Sized(SPEC).parameters / 4, rel=1e-3)
    assert sum(with_one.train().values()) > sum(without.train().values())

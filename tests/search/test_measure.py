"""The protocol: with exactly additive times it finds the truth, and with noise it comes close."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import Latency, Workload
from lnlit.search.measure import PARENT, Plan, checked_workloads, estimate, schedule
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.testing.tiny import attention, mixed_spec, swiglu, tiny_spec

LINEAR = PartSpec("single_linear")
ATTENTION = {attention(2): 0.030, attention(1): 0.026, LINEAR: 0.010, NOOP: 0.0}
FFN = {swiglu(48): 0.050, swiglu(16): 0.021, LINEAR: 0.012, NOOP: 0.0}
BASE = 0.5
WORKLOADS = (Workload(1, 8, 4), Workload(8, 8, 4))


def plan(layers: int | None = None) -> Plan:
    return Plan.of(tiny_spec().replace(layers=tiny_spec().layers * 4), ATTENTION, FFN, layers)


def additive_seconds(spec: ModelSpec, workload: Workload) -> tuple[float, float]:
    """A stand-in for an engine: the sum of its parts. Decoding takes three times the prefill."""
    parts = sum(ATTENTION[block.attention] + FFN[block.ffn] for block in spec.layers)
    prefill = (BASE + parts) * workload.batch_size
    return prefill, 3 * prefill


def times_of(the_plan: Plan, rounds: int, disturb=lambda turn, seconds: seconds) -> dict:
    def latency(spec: ModelSpec, workload: Workload, turn: int) -> Latency:
        prefill, decode = additive_seconds(spec, workload)
        return Latency((disturb(turn, prefill), disturb(turn, prefill)), (disturb(turn, decode), disturb(turn, decode)))

    return {
        name: [[latency(spec, workload, turn) for workload in WORKLOADS] for turn in range(rounds)]
        for name, spec in the_plan.models().items()
    }


@pytest.mark.parametrize("layers", [None, 2, 5, 20])
def test_additive_times_are_taken_apart_exactly(layers: int | None):
    found = estimate(plan(layers), times_of(plan(layers), 3))
    for costs, truth in ((found.attention, ATTENTION), (found.ffn, FFN), ({None: found.base}, {None: BASE})):
        assert costs.keys() == truth.keys()
        for part, seconds in truth.items():
            assert costs[part].prefill_s == pytest.approx((seconds, 8 * seconds), abs=1e-12)
            assert costs[part].decode_s == pytest.approx((3 * seconds, 24 * seconds), abs=1e-12)
            assert costs[part].prefill_spread_s == pytest.approx((0.0, 0.0), abs=1e-12)
    assert found.notes == ()


def test_a_machine_that_is_slower_in_some_rounds_changes_nothing():
    """Two rounds of five on a machine three times as slow."""
    found = estimate(plan(), times_of(plan(), 5, lambda turn, seconds: seconds * (3 if turn in (1, 2) else 1)))
    assert found.ffn[swiglu(16)].decode_s == pytest.approx((3 * 0.021, 24 * 0.021))
    assert found.ffn[swiglu(16)].decode_spread_s[0] > 0
    assert found.base.prefill_s == pytest.approx((BASE, 8 * BASE))
    (note,) = found.notes
    assert note.startswith("a model's slowest round took 200% longer than its fastest (median over models)")


def test_interruptions_of_single_samples_change_little():
    """A third of the samples is interrupted; none is ever faster than the machine."""
    draw = random.Random(0)
    noisy = times_of(plan(), 7, lambda _, seconds: seconds * (2 if draw.random() < 0.3 else 1 + draw.random() / 500))
    found = estimate(plan(), noisy)
    for part, seconds in FFN.items():
        assert found.ffn[part].prefill_s[0] == pytest.approx(seconds, abs=0.002)


def test_an_estimate_below_zero_is_zero_and_said():
    the_plan = plan()
    halved = times_of(the_plan, 3, lambda _, seconds: seconds / 2)[f"ffn {NOOP}"]
    found = estimate(the_plan, times_of(the_plan, 3) | {f"ffn {swiglu(16)}": halved})
    assert found.ffn[swiglu(16)].prefill_s == (0.0, 0.0)
    assert [note.partition(" (-")[0] for note in found.notes] == [
        "ffn swiglu(intermediate_size=16): estimated below zero"
    ]


def test_a_part_is_timed_beside_the_parents_other_part_and_beside_nothing():
    reference, models = plan().reference, plan().models()
    assert models.pop(PARENT) == plan().spec
    assert models.keys() == {f"attention {part}" for part in ATTENTION} | {f"ffn {part}" for part in FFN}
    for part in ATTENTION:
        first, *others = models[f"attention {part}"].layers
        assert first == reference, "an engine wants a layer with a KV cache"
        assert [block.attention for block in others] == [part] * 7
        assert [block.ffn for block in others] == [reference.ffn, NOOP] * 3 + [reference.ffn]
    for part in FFN:
        first, *others = models[f"ffn {part}"].layers
        assert first == reference
        assert [block.ffn for block in others] == [part] * 7
        assert [block.attention for block in others] == [reference.attention, NOOP] * 3 + [reference.attention]


def test_slots_that_slow_each_other_share_what_it_costs():
    """10 ms more in a block with both: half of it goes to each, and the parent is predicted exactly."""

    def slowed(spec: ModelSpec) -> Latency:
        both = sum(block.attention != NOOP and block.ffn != NOOP for block in spec.layers)
        prefill, decode = additive_seconds(spec, WORKLOADS[0])
        return Latency((prefill + 0.010 * both,), (decode,))

    the_plan = plan(layers=9)
    found = estimate(the_plan, {name: [[slowed(spec)]] for name, spec in the_plan.models().items()})
    own = found.attention[attention(2)].prefill_s[0], found.ffn[swiglu(48)].prefill_s[0]
    assert own == pytest.approx((0.030 + 0.005, 0.050 + 0.005))
    assert found.base.prefill_s[0] == pytest.approx(BASE)


def test_a_deep_parent_is_timed_at_32_layers_and_a_single_layer_at_2():
    deep = tiny_spec().replace(layers=tiny_spec().layers * 40)
    assert len(Plan.of(deep, [], []).models()[PARENT].layers) == 32
    assert len(Plan.of(tiny_spec().replace(layers=tiny_spec().layers[:1]), [], []).models()[PARENT].layers) == 2


def test_one_layer_is_no_difference():
    with pytest.raises(UserError, match="layers must be 2 or more, as costs are differences of models; got 1"):
        plan(layers=1)


def test_a_mixed_parent_is_timed_around_its_commonest_full_block():
    spec = mixed_spec().replace(layers=(*mixed_spec().layers, mixed_spec().layers[-1]))
    found = Plan.of(spec, [attention(2)], [swiglu(8)])
    assert found.reference == BlockSpec(attention(2), swiglu(16))
    assert {block.attention for block in spec.layers} <= set(found.attention)
    assert {block.ffn for block in spec.layers} | {swiglu(8)} <= set(found.ffn)
    with pytest.raises(UserError, match="no layer of the parent has both"):
        Plan.of(spec.replace(layers=(BlockSpec(NOOP, swiglu(8)),)), [], [])


def test_every_round_holds_every_model_once_in_an_order_of_its_own():
    names = list(plan().models())
    turns = list(schedule(names, 6))
    assert Counter(turns) == Counter((index, name) for index in range(6) for name in names)
    assert [turn for turn, _ in turns] == sorted(turn for turn, _ in turns)
    orders = {tuple(name for turn, name in turns if turn == index) for index in range(6)}
    assert len(orders) == 6
    assert turns == list(schedule(names, 6))


def test_workloads_are_taken_once_and_fit_the_context(capsys):
    pair = (Workload(1, 128, 32), Workload(8, 128, 4))
    assert checked_workloads(pair, 256) == pair and not capsys.readouterr().err
    assert checked_workloads([*pair, pair[0]], 256) == pair
    assert capsys.readouterr().err == f"workloads: {pair[0]} is there 2 times; taken once\n"
    with pytest.raises(UserError, match="workloads: there are none"):
        checked_workloads([], 256)
    with pytest.raises(UserError, match=r"workloads\[1\].batch_size: expected a positive number, got 0"):
        checked_workloads([pair[0], Workload(0, 128, 32)], 256)
    with pytest.raises(UserError, match="128 prompt and 129 new tokens are 257; the model's context is 256"):
        checked_workloads([Workload(1, 128, 129)], 256)

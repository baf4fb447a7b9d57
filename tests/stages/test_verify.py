"""Whole models measured beside the table's predictions, with a stand-in engine whose times are exactly additive."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import Latency, Meter, Workload
from lnlit.report.search import read_measured
from lnlit.search.measure import Plan
from lnlit.specs import NOOP
from lnlit.stages.measure import measure_plan, untimed
from lnlit.stages.verify import verify
from lnlit.testing.tiny import swiglu, tiny_folder, tiny_spec

WORKLOADS = (Workload(2, 6, 3),)


class AdditiveMeter(Meter):
    """A stand-in for an engine: a second, and a millisecond per FFN channel."""

    def measure(self, spec, folder, workloads, *, dtype, samples):
        seconds = 1.0 + sum(block.ffn.args.get("intermediate_size", 0) for block in spec.layers) / 1000
        return [Latency((seconds,) * samples, (2 * seconds,) * samples) for _ in workloads]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A cost table, the parent and a child of half its FFN width."""
    monkeypatch.setattr(registry, "_added", {("meter", "additive"): AdditiveMeter})
    plan = Plan.of(tiny_spec(), [NOOP], [swiglu(24)])
    costs = measure_plan(plan, WORKLOADS, tmp_path / "costs.json", engine="additive", rounds=1, samples=1)
    block = tiny_spec().layers[0]
    child = tiny_spec().replace(layers=(block, block.replace(ffn=swiglu(24))))
    return str(costs), [str(tiny_folder(tmp_path / "parent")), str(tiny_folder(tmp_path / "child", child))]


def test_an_additive_engine_is_predicted_exactly(search, tmp_path, capsys):
    costs, models = search
    file = verify(costs, models, str(tmp_path / "measured.json"), rounds=2, samples=1)
    parent, child = json.loads(file.read_text())["models"]
    assert parent["measured"]["latency_s"] == pytest.approx(3 * 1.096)
    assert child["measured"]["latency_s"] == pytest.approx(3 * 1.072)
    for model in (parent, child):
        assert model["predicted"] == pytest.approx(model["measured"])
    assert "1.02x as fast" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_a_table_without_times_is_refused_before_anything_runs(search, tmp_path):
    table = untimed(Plan.of(tiny_spec(), [NOOP], [swiglu(24)]), WORKLOADS, "float32")
    with pytest.raises(UserError, match="without timing"):
        verify(str(table.write(tmp_path / "untimed.json")), search[1], str(tmp_path / "out.json"))


def test_a_table_from_another_machine_is_refused_unless_asked_for(search, tmp_path):
    from lnlit.search.costs import CostTable

    costs, models = search
    table = CostTable.read(costs)
    elsewhere = replace(table, hardware=replace(table.hardware, cpu="another"))
    foreign = str(elsewhere.write(tmp_path / "foreign.json"))
    with pytest.raises(UserError, match="other hardware"):
        verify(foreign, models, str(tmp_path / "out.json"))
    assert verify(foreign, models, str(tmp_path / "out.json"), allow_other_hardware=True).is_file()


def test_a_single_new_token_has_no_decode_time_to_compare(tmp_path, monkeypatch):
    class Prefill(Meter):
        """A stand-in for an engine that stops at the first token."""

        def measure(self, spec, folder, workloads, *, dtype, samples):
            return [Latency((0.5 + len(spec.layers),) * samples, (0.0,) * samples) for _ in workloads]

    monkeypatch.setattr(registry, "_added", {("meter", "prefill"): Prefill})
    plan = Plan.of(tiny_spec(), [NOOP], [swiglu(24)])
    costs = measure_plan(plan, (Workload(1, 8, 1),), tmp_path / "costs.json", engine="prefill", rounds=1, samples=1)
    file = verify(str(costs), [str(tiny_folder(tmp_path / "parent"))], str(tmp_path / "out.json"), rounds=1)
    (model,) = json.loads(file.read_text())["models"]
    assert model["measured"].keys() == model["predicted"].keys() == {"prefill_s", "latency_s", "throughput"}
    assert all(point.measured > 0 for point in read_measured(json.loads(file.read_text()), "out.json"))


def test_times_of_two_machines_are_not_mixed(search, tmp_path, monkeypatch):
    from lnlit.search.hardware import Hardware

    costs, models = search
    measure_one, left = AdditiveMeter.measure, 1

    def interrupted(self, *args, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return measure_one(self, *args, **kwargs)

    monkeypatch.setattr(AdditiveMeter, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify(costs, models, str(tmp_path / "measured.json"), rounds=2, samples=1)
    elsewhere = replace(Hardware.here("cpu"), cpu="another")
    monkeypatch.setattr(Hardware, "here", lambda _: elsewhere)
    with pytest.raises(UserError, match=r"with other settings: hardware\.fingerprint is .* hardware\.cpu is "):
        verify(costs, models, str(tmp_path / "measured.json"), rounds=2, samples=1, allow_other_hardware=True)


def test_a_model_with_a_part_that_the_table_lacks_is_measured_without_a_prediction(search, tmp_path, capsys):
    """A fused FFN is wider than any candidate."""
    costs, models = search
    block = tiny_spec().layers[0]
    fused = tiny_spec().replace(layers=(block, block.replace(attention=NOOP, ffn=swiglu(72))))
    models.append(str(tiny_folder(tmp_path / "fused", fused)))
    file = verify(costs, models, str(tmp_path / "measured.json"), rounds=1, samples=1)
    parent, _, last = json.loads(file.read_text())["models"]
    assert last["predicted"] == {} and last["measured"]["latency_s"] == pytest.approx(3 * 1.120)
    assert last["measured"].keys() == parent["measured"].keys()
    said = capsys.readouterr().err
    assert "fused: no prediction, because the cost table has no ffn" in said and "0.98x as fast" in said
    points = read_measured(json.loads(file.read_text()), str(file))
    assert [point.is_predicted for point in points] == [point.name != models[-1] for point in points]


def test_a_meter_that_cannot_run_leaves_nothing_that_another_one_stumbles_over(search, tmp_path, monkeypatch):
    costs, models = search

    class Absent(AdditiveMeter):
        def measure(self, *_, **__):
            raise UserError("there is no such engine here")

    monkeypatch.setitem(registry._added, ("meter", "absent"), Absent)
    with pytest.raises(UserError, match="there is no such engine here"):
        verify(costs, models, str(tmp_path / "measured.json"), engine="absent", rounds=1, samples=1)
    assert [path.name for path in tmp_path.glob("measured*")] == []
    assert verify(costs, models, str(tmp_path / "measured.json"), rounds=1, samples=1).is_file()

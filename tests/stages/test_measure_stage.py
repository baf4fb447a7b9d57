"""The stage: from a library to costs.json, and on after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from lnlit import registry
from lnlit.checkpoint.formats import read_spec
from lnlit.data.sources import TextFileSource
from lnlit.data.text import TextSample
from lnlit.errors import UserError
from lnlit.interfaces import Latency, Meter, Workload
from lnlit.models.build import build_decoder, parameter_count
from lnlit.search.choice import BlockChoice
from lnlit.search.costs import CostTable
from lnlit.search.library import Library
from lnlit.search.measure import Plan
from lnlit.search.space import Candidates
from lnlit.specs import NOOP, PartSpec
from lnlit.stages.library import build_library
from lnlit.stages.measure import measure, measure_plan
from lnlit.testing.tiny import attention, swiglu, tiny_folder, tiny_spec

LINEAR = PartSpec("single_linear")
ATTENTION, FFN = [attention(1), LINEAR], [swiglu(16), LINEAR]
PLAN = Plan.of(tiny_spec(), ATTENTION, FFN)
WORKLOADS = (Workload(2, 6, 3), Workload(1, 4, 2))


class CountingMeter(Meter):
    """A stand-in for an engine: seconds are parameters of FFNs, so that costs are known. Counts what it is asked."""

    asked: ClassVar[list[list[PartSpec]]] = []
    fails_after: ClassVar[int] = 10**9

    def measure(self, spec, folder: Path, workloads, *, dtype: str, samples: int):
        if len(self.asked) == self.fails_after:
            raise KeyboardInterrupt
        self.asked.append(list(spec.layers))
        config = json.loads((folder / "config.json").read_text())
        assert config["dtype"] == dtype
        assert read_spec(folder).layers == spec.layers
        assert [file.name for file in folder.iterdir()] == ["config.json"]
        seconds = 1.0 + sum(block.ffn.args.get("intermediate_size", 0) for block in spec.layers)
        return [Latency((seconds,) * samples, (2 * seconds,) * samples) for _ in workloads]


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    monkeypatch.setattr(registry, "_added", {("meter", "counting"): CountingMeter})
    monkeypatch.setattr(CountingMeter, "asked", [])
    return CountingMeter


def run(out: Path, plan: Plan = PLAN, **options) -> Path:
    return measure_plan(plan, WORKLOADS, out, **{"engine": "counting", "rounds": 3, "samples": 2} | options)


def test_the_table_holds_every_part_with_its_seconds(tmp_path: Path):
    table = CostTable.read(run(tmp_path / "deep/costs.json"))
    assert (table.engine, table.dtype, table.rounds, table.samples) == ("counting", "bfloat16", 3, 2)
    assert table.attention.keys() == {attention(2), attention(1), LINEAR, NOOP}
    assert table.ffn.keys() == {swiglu(48), swiglu(16), LINEAR, NOOP}
    timing = table.ffn[swiglu(16)].timing
    assert timing is not None
    assert timing.prefill_s == pytest.approx((16, 16))
    assert timing.decode_s == pytest.approx((32, 32))
    assert table.predict(tiny_spec(), WORKLOADS[0])["latency_s"] == pytest.approx(3 * (1 + 2 * 48))
    table.check_hardware()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["costs.json"]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch):
    whole = CostTable.read(run(tmp_path / "whole.json"))
    asked = list(CountingMeter.asked)
    CountingMeter.asked.clear()
    monkeypatch.setattr(CountingMeter, "fails_after", 8)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "costs.json")
    assert not (tmp_path / "costs.json").exists()
    partial = tmp_path / "costs.json.partial"
    partial.write_bytes(partial.read_bytes()[:-20])  # the machine died while it wrote the 8th
    monkeypatch.setattr(CountingMeter, "fails_after", 10**9)
    CountingMeter.asked.clear()
    assert CostTable.read(run(tmp_path / "costs.json")) == whole
    assert CountingMeter.asked == asked[7:]
    assert not partial.exists()


@pytest.mark.parametrize(
    ("change", "names"),
    [({"dtype": "float32"}, "dtype"), ({"samples": 3}, "samples"), ({"plan": replace(PLAN, layers=3)}, "models")],
)
def test_times_taken_with_other_settings_are_not_mixed_in(change, names, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(CountingMeter, "fails_after", 2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "costs.json")
    before = (tmp_path / "costs.json.partial").read_bytes()
    with pytest.raises(
        UserError, match=rf"costs.json.partial: holds .* other settings: {names}\S* is .*\. Repeat those"
    ):
        run(tmp_path / "costs.json", **change)
    assert (tmp_path / "costs.json.partial").read_bytes() == before


def test_a_foreign_file_in_the_place_of_the_log_is_left_alone(tmp_path: Path):
    (tmp_path / "costs.json.partial").write_text("my notes\n")
    with pytest.raises(UserError, match="not a file of measurements"):
        run(tmp_path / "costs.json")
    assert (tmp_path / "costs.json.partial").read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "Expecting property name"),
        (b"[1]", "expected a mapping"),
        (b'{"round": 0, "model": "parent"}', "the key 'latencies' is missing"),
        (b'{"round": 0, "latencies": []}', "the key 'model' is missing"),
        (
            b'{"round": 0, "model": "parent", "latencies": [{"prefill_s": [NaN], "decode_s": [1]}]}',
            "0 or more, got nan",
        ),
        (
            b'{"round": 0, "model": "parent", "latencies": [{"prefill_s": [1], "decode_s": []}]}',
            "without times",
        ),
    ],
)
def test_a_broken_line_of_the_log_is_named_and_kept(line: bytes, why: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(CountingMeter, "fails_after", 2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "costs.json")
    partial = tmp_path / "costs.json.partial"
    first, *others = partial.read_bytes().split(b"\n")
    partial.write_bytes(b"\n".join([first, line, *others]))
    before = partial.read_bytes()
    with pytest.raises(UserError, match=rf"costs.json.partial:2: .*{why}.* Delete (this|the) line") as refusal:
        run(tmp_path / "costs.json")
    assert "\n" not in str(refusal.value)
    assert partial.read_bytes() == before


@pytest.mark.parametrize("header", [b"[1]", b"5", b"null"])
def test_a_log_whose_first_line_is_no_object_is_refused(header: bytes, tmp_path: Path):
    (tmp_path / "costs.json.partial").write_bytes(header + b"\n")
    with pytest.raises(UserError, match="not a file of measurements"):
        run(tmp_path / "costs.json")


def test_a_table_in_float8_counts_a_byte_a_number(library: str, tmp_path: Path):
    one = CostTable.read(measure(library, WORKLOADS[:1], str(tmp_path / "a.json"), dtype="float8", timing=False))
    two = CostTable.read(measure(library, WORKLOADS[:1], str(tmp_path / "b.json"), dtype="bfloat16", timing=False))
    small, large = (t.predict(Library.open(library).spec, t.workloads[0]) for t in (one, two))
    assert small["weight_mib"] == small["parameters"] / 2**20
    for cost in ("weight_mib", "kv_mib", "kv_bytes_per_token"):
        assert 2 * small[cost] == large[cost] > 0


def test_a_finished_table_stays_when_a_new_measurement_fails(tmp_path: Path, monkeypatch):
    before = run(tmp_path / "costs.json").read_bytes()
    monkeypatch.setattr(CountingMeter, "fails_after", len(CountingMeter.asked) + 1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "costs.json")
    assert (tmp_path / "costs.json").read_bytes() == before


class GeGLU(registry.get("ffn", "swiglu")):
    """A part that no transformers config can hold."""


def test_a_part_without_a_transformers_form_is_measured_by_an_engine_that_reads_specs(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(registry, "_added", {("ffn", "geglu"): GeGLU})
    part = PartSpec("geglu", {"intermediate_size": 8})
    plan = Plan.of(tiny_spec(), [], [part])
    table = CostTable.read(run(tmp_path / "costs.json", plan, engine="native", rounds=1, samples=1))
    assert table.ffn[part].parameters == 3 * 8 * 32 + 32


def test_bad_settings_are_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(UserError, match="rounds and samples must be 1 or more, got 0 and 2"):
        run(tmp_path / "costs.json", rounds=0)
    with pytest.raises(UserError, match=r"dtype 'int4'\. Allowed: float32, bfloat16"):
        run(tmp_path / "costs.json", dtype="int4")
    with pytest.raises(
        UserError, match=r"the meter 'native' runs float32 and bfloat16, not float8\. .* timing to false"
    ):
        run(tmp_path / "costs.json", engine="native", dtype="float8")
    with pytest.raises(UserError, match=r"unknown meter 'nativ'\. Did you mean 'native'"):
        run(tmp_path / "costs.json", engine="nativ")
    assert not list(tmp_path.iterdir())
    assert not CountingMeter.asked


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("measure")
    text = folder / "text.txt"
    text.write_text("A library needs a sample of text. " * 40)
    sample = TextSample(TextFileSource(str(text)), rows=1, length=32)
    candidates = Candidates(widths=(0.5,), width_multiple=8)
    return str(build_library(str(tiny_folder(folder / "model")), sample, str(folder / "library"), candidates))


@pytest.mark.parametrize("timing", [True, False])
def test_every_choice_of_a_library_is_in_the_table(timing: bool, library: str, tmp_path: Path):
    out = measure(
        library,
        [Workload(1, 4, 2), Workload(2, 4, 3)],
        str(tmp_path / "costs.json"),
        rounds=1,
        samples=1,
        timing=timing,
    )
    table, opened = CostTable.read(out), Library.open(library)
    assert table.workloads == (Workload(1, 4, 2), Workload(2, 4, 3))
    for index, layer in enumerate(opened.layers):
        assert len(layer.attention) > 2
        assert len(layer.ffn) > 2
        for attention_name, attention_choice in layer.attention.items():
            for ffn_name, ffn_choice in layer.ffn.items():
                block = opened.block_spec(index, BlockChoice(attention_name, ffn_name))
                costs = table.block(block, table.workloads[1])
                assert costs["parameters"] == attention_choice.parameters + ffn_choice.parameters
                assert ("latency_s" in costs) == timing
    total = parameter_count(build_decoder(opened.spec))
    assert table.predict(opened.spec, table.workloads[0])["parameters"] == total

"""The cost table: its formulas, its file, its refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from lnlit.checkpoint.folder import save_folder
from lnlit.errors import UserError
from lnlit.interfaces import Workload
from lnlit.models.weights import canonical_weights
from lnlit.search.costs import CostTable, Timing, part_cost, subblock_memory_mib, tokens_per_s
from lnlit.search.measure import Plan
from lnlit.specs import BlockSpec, ModelSpec, PartSpec
from lnlit.stages.measure import untimed
from lnlit.testing.tiny import mixed_spec, tiny_decoder

WORKLOADS = (Workload(2, 8, 4), Workload(1, 16, 2))
LLAMA_70B = ModelSpec(128256, 8192, (), 131072)


def table_of(spec: ModelSpec, timed: bool = True) -> CostTable:
    """A table of every part of `spec`; times are made up, part after part, so that sums can be told apart."""
    parts = {kind: [part for _, of, part in spec.parts() if of == kind] for kind in ("attention", "ffn")}
    reference = BlockSpec(parts["attention"][1], parts["ffn"][1])
    spec = spec.replace(layers=(reference, *spec.layers))
    table = untimed(Plan.of(spec, parts["attention"], parts["ffn"]), WORKLOADS, "float32")
    if not timed:
        return table

    def with_times(costs, start):
        ticks = ((part, cost, start * 2**i) for i, (part, cost) in enumerate(costs.items()))
        return {p: replace(c, timing=Timing((t, 2 * t), (3 * t, 4 * t), (0.0, 0.0), (0.0, 0.0))) for p, c, t in ticks}

    base = replace(table.base_cost, timing=Timing((1.0, 2.0), (3.0, 4.0), (0.1, 0.1), (0.1, 0.1)))
    return replace(
        table, base_cost=base, attention=with_times(table.attention, 2.0**-10), ffn=with_times(table.ffn, 2.0**-20)
    )


def test_memory_of_the_published_70b_blocks():
    """FP8, batch 256, 1200 tokens, 5 requests queued, queries allocated: 765.1015625 and 672.0078125 MiB."""
    attention = PartSpec("gqa", {"num_heads": 64, "num_kv_heads": 8, "head_dim": 128})
    workload = Workload(256, 600, 600)
    gqa = part_cost(LLAMA_70B, "attention", attention, "float8")
    options = {"prefill_queue": 5, "query_bytes_per_token": 8192}
    assert subblock_memory_mib(gqa.weight_bytes, gqa.kv_bytes_per_token, workload, **options) == 765.1015625
    ffn = part_cost(LLAMA_70B, "ffn", PartSpec("swiglu", {"intermediate_size": 28672}), "float8")
    assert (ffn.parameters, subblock_memory_mib(ffn.weight_bytes, 0, workload)) == (704_651_264, 672.0078125)


def test_kv_cache_has_the_true_head_size():
    """Not hidden // heads: here 32 // 4 = 8, the heads have 24."""
    part = PartSpec("gqa", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 24})
    cost = part_cost(mixed_spec(), "attention", part, "bfloat16")
    assert cost.kv_bytes_per_token == 2 * 2 * 24 * 2


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_predicted_parameters_are_those_in_the_folder(tied: bool, tmp_path: Path):
    """Every kind of part, head size not hidden / heads, and an embedding that counts once when tied."""
    odd = BlockSpec(PartSpec("gqa", {"num_heads": 5, "num_kv_heads": 1, "head_dim": 6}), mixed_spec().layers[0].ffn)
    spec = mixed_spec().replace(tie_embeddings=tied, layers=mixed_spec().layers)
    spec = spec.replace(layers=(odd, odd)) if tied else spec
    decoder = tiny_decoder(spec)
    save_folder(tmp_path / "child", spec, canonical_weights(decoder), tokenizer_from=None, provenance={})
    with safe_open(tmp_path / "child/model.safetensors", "pt") as weights:
        stored = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    predicted = table_of(spec).predict(spec, WORKLOADS[0])
    assert predicted["parameters"] == stored
    assert predicted["weight_mib"] == stored * 4 / 2**20


def test_a_model_costs_its_base_and_its_blocks():
    spec = mixed_spec()
    table = table_of(spec)
    for workload in WORKLOADS:
        total = table.predict(spec, workload)
        parts = [table.base(workload), *(table.block(block, workload) for block in spec.layers)]
        for key, value in total.items():
            assert value == pytest.approx(sum(part[key] for part in parts))
        assert total["latency_s"] == total["prefill_s"] + total["decode_s"]
        assert total["memory_mib"] == total["weight_mib"] + total["kv_mib"]
    tokens, rows = 8 + 4, 2
    kv_bytes = sum(b.attention.args.get("num_kv_heads", 0) * 8 * 2 * 4 for b in spec.layers)
    assert table.predict(spec, WORKLOADS[0])["kv_mib"] == pytest.approx(kv_bytes * tokens * rows / 2**20)


def test_queue_and_queries_take_memory_only_where_there_is_a_cache():
    spec, table = mixed_spec(), table_of(mixed_spec())
    without, attends = spec.layers[0], spec.layers[2]
    options = {"prefill_queue": 3, "prefill_query": True}
    assert table.block(without, WORKLOADS[0], **options) == table.block(without, WORKLOADS[0])
    more = table.block(attends, WORKLOADS[0], **options)["kv_mib"] - table.block(attends, WORKLOADS[0])["kv_mib"]
    assert more == pytest.approx(12 * (3 * 1 * 8 * 2 * 4 + 32 * 4) / 2**20)


def test_throughput_counts_prompt_tokens_unless_told_otherwise():
    assert tokens_per_s(Workload(4, 30, 10), 2.0) == 80.0
    assert tokens_per_s(Workload(4, 30, 10), 2.0, "output_throughput") == 20.0


def test_a_workload_that_was_not_timed_has_memory_but_no_times():
    table, other = table_of(mixed_spec()), Workload(256, 8192, 1024)
    assert table.block(mixed_spec().layers[1], other).keys() == {
        "parameters",
        "kv_bytes_per_token",
        "weight_mib",
        "kv_mib",
        "memory_mib",
    }
    table.check_timed(WORKLOADS[1])
    with pytest.raises(UserError, match=r"the cost table has no 256x8192\+1024 \(requests x .*\)\. It has: 2x8\+4, "):
        table.check_timed(other)
    with pytest.raises(UserError, match="without timing"):
        table_of(mixed_spec(), timed=False).check_timed(WORKLOADS[0])


@pytest.mark.parametrize("timed", [True, False])
def test_the_file_gives_the_table_back(timed: bool, tmp_path: Path):
    table = table_of(mixed_spec(), timed)
    assert CostTable.read(table.write(tmp_path / "costs.json")) == table
    assert [file.name for file in tmp_path.iterdir()] == ["costs.json"]


def test_an_unknown_part_is_named_with_what_there_is():
    block = BlockSpec(PartSpec("noop"), PartSpec("swiglu", {"intermediate_size": 7}))
    with pytest.raises(UserError, match=r"no ffn swiglu\(intermediate_size=7\). It has: .*Measure it too"):
        table_of(mixed_spec()).block(block, WORKLOADS[0])


def test_a_table_of_another_model_is_refused():
    with pytest.raises(UserError, match="hidden_size 32, this one has 64"):
        table_of(mixed_spec()).predict(mixed_spec().replace(hidden_size=64), WORKLOADS[0])


def test_times_of_another_machine_are_refused_unless_allowed():
    table = table_of(mixed_spec())
    table.check_hardware()
    foreign = replace(table, hardware=replace(table.hardware, cpu="M68000", threads=table.hardware.threads + 1))
    with pytest.raises(UserError, match=r"cpu: M68000 there, .* here; threads: .*allow_other_hardware") as refusal:
        foreign.check_hardware()
    assert "\n" not in str(refusal.value)
    foreign.check_hardware(allow_other=True)
    untimed_table = replace(table_of(mixed_spec(), timed=False), hardware=foreign.hardware)
    untimed_table.check_hardware()  # parameters and bytes are the same everywhere
    assert foreign.hardware.fingerprint != table.hardware.fingerprint


SWIGLU = "swiglu(intermediate_size=16)"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("ffn", SWIGLU, "decode_s"), [math.nan, 1.0], r"decode_s\[0\]: expected a finite number, 0 or more, got nan"),
        (("ffn", SWIGLU, "prefill_s"), [1.0, -1.0], r"prefill_s\[1\]: expected a finite number, 0 or more, got -1"),
        (("ffn", SWIGLU, "prefill_s"), [1.0], "expected a list of 2"),
        (("ffn", SWIGLU, "weight_bytes"), -5, "weight_bytes: expected a whole number, 0 or more, got -5"),
        (("base", "parameters"), 1.5, "base.parameters: expected a whole number"),
        (("ffn", SWIGLU), None, "expected a mapping"),
        (("attention",), [], "attention: expected a mapping"),
        (("base",), None, "base: expected a mapping"),
        (("format",), None, "format None; this lnlit reads format 1"),
        (("format",), 2, "format 2; this lnlit reads format 1"),
        (("hardware", "cpu"), 3, "hardware.cpu: expected a text"),
        (("workloads",), "all", "workloads: expected a list"),
    ],
)
def test_a_bad_entry_is_refused_by_its_place(path, value, message, tmp_path: Path):
    data = table_of(mixed_spec()).to_json()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "costs.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as refusal:
        CostTable.read(tmp_path / "costs.json")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["engine", "base", "ffn", "hardware", "workloads", "hidden_size"])
def test_a_missing_entry_is_named(key: str, tmp_path: Path):
    data = table_of(mixed_spec()).to_json()
    del data[key]
    (tmp_path / "costs.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"'{key}' is missing"):
        CostTable.read(tmp_path / "costs.json")


def test_a_half_written_file_is_refused(tmp_path: Path):
    file = table_of(mixed_spec()).write(tmp_path / "costs.json")
    file.write_text(file.read_text()[:-100])
    with pytest.raises(UserError, match="cannot be read as a cost table"):
        CostTable.read(file)

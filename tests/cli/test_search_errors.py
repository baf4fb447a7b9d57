"""What a user can get wrong in a search, through the command line: exit code 2, one line, nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lnlit.interfaces import Workload
from lnlit.renamed import KEYS
from lnlit.search.costs import CostTable, Timing
from lnlit.search.hardware import Hardware
from lnlit.search.library import INDEX, Library
from lnlit.search.measure import Plan
from lnlit.search.score import make_header
from lnlit.stages.annotate import annotate
from lnlit.stages.measure import measure, untimed
from lnlit.stages.solve import solve as solve_stage
from lnlit.testing.tiny import tiny_spec
from lnlit.testing.tiny_library import tiny_library

WORKLOADS = (Workload(1, 16, 4),)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """library/, scores.jsonl and costs.json, with which a solve succeeds."""
    folder = tmp_path_factory.mktemp("search")
    library = tiny_library(folder / "library", "parent", tiny_spec())
    header = make_header(library, "parent", metric="kl", granularity="subblock")
    rows = [
        {"layer": layer, "slot": slot, "name": name, "score": 0.1 * place}
        for layer, variants in enumerate(library.layers)
        for slot, have in (("attention", variants.attention), ("ffn", variants.ffn), ("block", variants.pairs))
        for place, name in enumerate(have, start=1)
        if name not in library.layers[layer].parent
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    table_of(library).write(folder / "costs.json")
    return folder


def table_of(library: Library) -> CostTable:
    """A second for every part, on this machine."""
    attention, ffn = ([v.part for layer in library.layers for v in getattr(layer, s).values()] for s in SLOTS)
    table = untimed(Plan.of(library.spec, attention, ffn), WORKLOADS, "bfloat16")
    timing = Timing((1.0,), (1.0,), (0.0,), (0.0,))
    timed = {slot: {p: replace(c, timing=timing) for p, c in getattr(table, slot).items()} for slot in SLOTS}
    return replace(table, engine="native", base_cost=replace(table.base_cost, timing=timing), **timed)


SLOTS = ("attention", "ffn")


@pytest.fixture
def search(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


INPUTS = {"library": "library", "scores": "scores.jsonl", "deployment.costs": "costs.json"}


def solve(lnlit: Callable, **options: object) -> tuple[int, str, str]:
    options = {**INPUTS, "solver": "greedy", "out": "solution.json", **options}
    return lnlit("search", "solve", *(f"--{key}={value}" for key, value in options.items()))


def edit(file: Path, change: Callable[[str], str]) -> None:
    text = file.read_text()
    changed = change(text)
    assert changed != text
    file.write_text(changed)


def nan_score(search: Path) -> dict:
    edit(search / "scores.jsonl", lambda text: text.replace('"score": 0.2', '"score": NaN', 1))
    return {}


def missing_score(search: Path) -> dict:
    lines = (search / "scores.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"layer": 1' not in line or '"i24"' not in line]
    (search / "scores.jsonl").write_text("".join(kept))
    return {}


def missing_cost(search: Path) -> dict:
    table = json.loads((search / "costs.json").read_text())
    del table["ffn"]["swiglu(intermediate_size=24)"]
    (search / "costs.json").write_text(json.dumps(table))
    return {}


def negative_cost(search: Path) -> dict:
    edit(search / "costs.json", lambda text: text.replace('"weight_bytes": ', '"weight_bytes": -', 1))
    return {}


def negative_cost_in_a_problem(search: Path) -> dict:
    layers = [[{"name": "x", "score": 0, "costs": {"m": -1}}]]
    (search / "problem.json").write_text(json.dumps({"layers": layers}))
    return {"problem": "problem.json", "library": "null", "scores": "null", "deployment.costs": "null"}


def impossible_budget(search: Path) -> dict:
    pytest.importorskip("lnlit_highs", reason="pip install -e plugins/lnlit-highs")
    return {"deployment.targets": "[{cost: memory_mib, max: 0.001}]", "solver": "highs"}


def half_written_library(search: Path) -> dict:
    (search / "library" / INDEX).unlink()
    return {}


def foreign_hardware(search: Path) -> dict:
    table = CostTable.read(search / "costs.json")
    replace(table, hardware=replace(Hardware.here("cpu"), cpu="M68000")).write(search / "costs.json")
    return {}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (nan_score, "score: expected a finite number, got nan"),
        (missing_score, "layer 1: ffn 'i24' has no score"),
        (missing_cost, "the cost table has no ffn swiglu(intermediate_size=24)"),
        (negative_cost, "weight_bytes: expected a whole number, 0 or more, got -"),
        (negative_cost_in_a_problem, "problem.layers[0][0].costs['m']: expected a finite number, 0 or more, got -1"),
        (impossible_budget, "memory_mib: at most 0.001 asked, 0"),
        (half_written_library, "a half-built library (2 layers, no library.json)"),
        (foreign_hardware, "the cost table was measured on other hardware (cpu: M68000 there, "),
        (lambda _: {"solver": "gready"}, "unknown solver 'gready'. Did you mean 'greedy'"),
        (
            lambda _: {"deployment.targets": "[{cost: memory, max: 1}]"},
            "unknown cost 'memory'. Did you mean 'memory_mib'",
        ),
        (lambda _: {"rules.attention": "[kv7]"}, "rules.attention: 'kv7' fits no variant"),
        (lambda _: {"frontier": "{cost: memory, values: [1]}"}, "unknown cost 'memory'"),
        (lambda _: {"frontier": "{cost: memory_mib, values: []}"}, "frontier.values: there are none. Give the values"),
        (lambda _: {"time_limit_s": "0"}, "solve.time_limit_s: expected a number above 0, got 0"),
        (lambda _: {"time_limit_s": ".nan"}, "solve.time_limit_s: expected a number above 0, got nan"),
        (
            lambda _: {"deployment.workloads": "[{batch_size: 9, prompt_tokens: 16, new_tokens: 4}]"},
            "the cost table has no 9x16+4 (requests x prompt + new tokens). It has: 1x16+4.",
        ),
        (lambda _: {"library": "elsewhere"}, "elsewhere: there is no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(spoil, says, search, lnlit):
    options = spoil(search)
    before = sorted(search.rglob("*"))
    code, out, err = solve(lnlit, **options)
    assert code == 2, err
    assert err.startswith("error: ") and says in err and err.count("\n") == 1 and not out
    assert sorted(search.rglob("*")) == before


def test_without_a_mistake_it_is_solved(search, lnlit):
    code, out, err = solve(lnlit, **{"deployment.targets": "[{cost: parameters, max: 0.9, of_parent: true}]"})
    assert (code, out) == (0, "solution.json\n"), err
    assert sorted(path.name for path in search.iterdir()) == sorted(
        ["library", "scores.jsonl", "costs.json", "solution.json", "problem.json"]
    )


def test_a_workload_that_is_there_twice_is_taken_once(search, lnlit):
    workload = "{batch_size: 1, prompt_tokens: 16, new_tokens: 4}"
    code, _, err = solve(lnlit, **{"deployment.workloads": f"[{workload}, {workload}]"})
    assert code == 0 and "deployment.workloads: 1x16+4 is there 2 times; taken once\n" in err
    assert not json.loads((search / "problem.json").read_text()).get("scenarios")


def test_a_meter_that_cannot_run_a_dtype_leaves_nothing(search, lnlit):
    before = sorted(search.rglob("*"))
    workloads = "[{batch_size: 1, prompt_tokens: 4, new_tokens: 2}]"
    options = {"library": "library", "out": "new.json", "dtype": "float8", "workloads": workloads}
    code, _, err = lnlit("search", "measure", *(f"--{key}={value}" for key, value in options.items()))
    assert code == 2 and "runs float32 and bfloat16, not float8" in err and err.count("\n") == 1
    assert sorted(search.rglob("*")) == before


@pytest.mark.parametrize(
    ("stage", "text", "says"),
    [
        (
            "solve",
            "library: library\ncosts: costs.json\n",
            "old.yaml:3: configuration: costs is now called deployment.costs",
        ),
        ("solve", "parts: {ffn: [noop]}\n", ":2: configuration: parts is now called rules"),
        ("solve", "num_solutions: 3\n", ":2: configuration: num_solutions is now called solutions.number"),
        (
            "solve",
            "generated_only: true\n",
            "deployment.targets, with the cost output_throughput",
        ),
        (
            "measure",
            "batch_size: [8]\n",
            ":2: configuration: batch_size is now called workloads: [{batch_size: ...",
        ),
    ],
)
def test_a_key_of_an_older_file_says_what_it_is_now_called(stage, text, says, lnlit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text(f"stage: {stage}\n{text}out: o.json\n")
    code, _, err = lnlit("search", stage, "--config", "old.yaml")
    assert code == 2 and says in err and err.count("\n") == 1


def test_every_setting_that_has_moved_is_where_it_is_said_to_be():
    for stage in (solve_stage, measure, annotate):
        arguments = typing.get_type_hints(stage)
        for former, now in KEYS[stage.__name__].items():
            group, _, name = re.split(r"[,:]", now)[0].partition(".")
            assert group in arguments and former not in arguments
            assert not name or name in {field.name for field in dataclasses.fields(arguments[group])}


def test_a_file_that_is_no_earlier_result_is_kept_and_an_earlier_result_is_replaced(lnlit, search):
    (search / "solution.json").write_text("my notes")
    code, _, err = solve(lnlit)
    assert code == 2 and err.startswith("error: out: solution.json is there already, and is no earlier result"), err
    assert (search / "solution.json").read_text() == "my notes"
    (search / "solution.json").unlink()
    assert solve(lnlit)[0] == solve(lnlit)[0] == 0
    before = (search / "costs.json").read_bytes()
    code, _, err = lnlit("search", "solve", "--problem", "problem.json", "--solver=greedy", "--out=costs.json")
    assert code == 2 and "out: costs.json is there already" in err and (search / "costs.json").read_bytes() == before

"""`lnlit search refine` from a solution file to a better one, against all children of a small library."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import layerwise_decoder
from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.errors import UserError
from lnlit.interfaces import Workload
from lnlit.journal import Journal
from lnlit.search.children import Children
from lnlit.search.library import Library
from lnlit.search.metrics import Likelihood
from lnlit.search.space import Candidates
from lnlit.search.targets import Deployment, Solutions, Target
from lnlit.stages.library import build_library
from lnlit.stages.measure import measure
from lnlit.stages.realize import realize
from lnlit.stages.refine import refine
from lnlit.stages.report import report
from lnlit.stages.score import score
from lnlit.stages.solve import read_problem, solve
from lnlit.testing.tiny import tiny_folder, tiny_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A parent of four layers, its library of six choices a layer, and a solution in half of the parent's weights.

    The FFNs of layers 1 and 2 do the same, so strongly that either alone would do. Each of them scores as superfluous,
    and what sums of scores call best lacks both. Narrower FFNs that were fitted to the parent's would cost nothing.
    """
    pytest.importorskip("lnlit_highs", reason="pip install -e plugins/lnlit-highs")
    folder = tmp_path_factory.mktemp("refine")
    words = "a text that is long enough for a row, with all of its letters and spaces"
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} {words[n:]}"}) + "\n" for n in range(12)))
    spec = tiny_spec()
    parent = str(tiny_folder(folder / "parent", spec.replace(layers=spec.layers[:1] * 4)))
    file = folder / "parent" / "model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if ".layers.1.mlp." in name]:
        weights[name] = weights[name] * (20.0 if "down_proj" in name else 1.0)
        weights[name.replace("layers.1", "layers.2")] = weights[name].clone()
    save_file(weights, file, metadata={"format": "pt"})
    candidates = Candidates(
        kv_heads=[], widths=(0.33,), width_multiple=16, attention_stubs=("noop",), ffn_stubs=("noop",)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lnlit.search.starts.fitted", lambda start, equations: start)
        library = str(build_library(parent, sample(folder), str(folder / "library"), candidates))
    scores = str(score(parent, library, sample(folder, 4), str(folder / "scores.jsonl"), dtype="float32"))
    work = [Workload(1, 8, 8)]
    costs = str(measure(library, work, str(folder / "costs.json"), dtype="float32", timing=False))
    deployment = Deployment(costs, [Target("weight_mib", max=0.45, of_parent=True)])
    solve(str(folder / "solution.json"), None, library, scores, deployment, solutions=Solutions(2, 0.75))
    return folder


def sample(folder: Path, skip: int = 0) -> TextSample:
    return TextSample(JsonlSource(str(folder / "text.jsonl")), rows=2, length=32, skip=skip)


def run(folder: Path, out: Path, **options) -> dict:
    settings = {"solution": str(folder / "solution.json"), "library": str(folder / "library"), "dtype": "float32"}
    refine(data=sample(folder, 4), out=str(out), **{**settings, **options})
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def refined(folder) -> dict:
    return run(folder, folder / "refined.json", held_out=sample(folder, 8))


@pytest.fixture(scope="module")
def realised(folder) -> dict[tuple[str, ...], float]:
    """Every child within the limits, and what it realises."""
    library, problem = Library.open(folder / "library"), read_problem(folder / "problem.json")
    parent = layerwise_decoder(folder / "parent", "cpu", torch.float32)
    rows = [sample(folder, 4).tokens(str(folder / "parent"))]
    children = Children(parent, library, rows, Likelihood(parent.decoder.head_weight, rows), "kl")
    every = product(*[[choice.name for choice in problem.allowed(layer)] for layer in range(4)])
    kept = [names for names in every if not problem.violations(names)]
    return {names: children.scorer(library.choices(names)).own_values["kl"] for names in kept}


def test_the_best_of_all_children_is_found_where_sums_of_scores_miss_it(folder, refined, realised):
    summed = json.loads((folder / "solution.json").read_text())["solutions"][0]
    best = refined["solutions"][0]
    assert realised[tuple(summed["choice"])] > 1.2 * min(realised.values())
    assert realised[tuple(best["choice"])] == min(realised.values())
    assert (best["score"], best["costs"]) == read_problem(folder / "refined.problem.json").totals(best["choice"])


def test_no_child_that_was_named_is_better(refined, realised):
    children = {child["name"]: child for child in refined["refined"]["children"]}
    assert {"child", "child 2", "greedy", "ratio greedy", "uniform", "random", "random 20", "depth"} <= set(children)
    for child in children.values():
        assert child["realised"] == pytest.approx(realised[tuple(child["choice"])], rel=1e-6)
        assert child["realised"] >= refined["refined"]["rounds"][-1]
        assert child["held_out"] > 0


def test_rounds_find_it_from_a_bad_child_too(folder, realised, tmp_path, monkeypatch):
    for name in ("controls", "steeper"):
        monkeypatch.setattr(f"lnlit.stages.refine.{name}", lambda *_: {})
    data = json.loads((folder / "solution.json").read_text())
    worst = max(realised, key=realised.__getitem__)
    only = {**data["solutions"][0], "choice": worst}
    (tmp_path / "one.json").write_text(json.dumps({**data, "solutions": [only], "baselines": {}}))
    (tmp_path / "one.problem.json").write_text((folder / "problem.json").read_text())
    found = run(folder, tmp_path / "refined.json", solution=str(tmp_path / "one.json"))["refined"]
    assert found["rounds"] == sorted(found["rounds"], reverse=True) and len(found["rounds"]) > 1
    assert found["rounds"][-1] == pytest.approx(min(realised.values()), rel=1e-6)


def test_what_is_held_out_decides_nothing(folder, refined, tmp_path):
    alone = run(folder, tmp_path / "refined.json")
    assert alone["solutions"] == refined["solutions"]
    assert all(child["held_out"] is None for child in alone["refined"]["children"])


def test_an_interrupted_search_goes_on_to_the_same_end(folder, refined, tmp_path, monkeypatch):
    append, out, stops = Journal.append, tmp_path / "refined.json", 0

    def cut(self, *entries):
        append(self, *entries)
        if len(self) % 7 == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", cut)
        while True:
            try:
                again = run(folder, out, held_out=sample(folder, 8))
                break
            except KeyboardInterrupt:
                stops += 1
    assert stops > 5
    for data in (again, refined):
        data["refined"] = {key: value for key, value in data["refined"].items() if key != "seconds"}
    assert again == refined
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refined.json", "refined.png", "refined.problem.json"]


def test_other_stages_read_it_as_a_solution(folder, refined, tmp_path):
    library = str(folder / "library")
    child = realize(str(folder / "refined.json"), library, str(tmp_path / "child"))
    found = Library.open(library)
    assert read_spec(child) == found.composed_spec(found.choices(refined["solutions"][0]["choice"]))
    page = report(str(folder / "refined.json"), str(tmp_path / "report"), library=library)
    assert (page / "report.html").is_file()


def test_a_child_beyond_the_limits_is_refused(folder, tmp_path):
    data = json.loads((folder / "solution.json").read_text())
    data["solutions"][0]["choice"] = ["kv2+i48"] * 4
    (tmp_path / "solution.json").write_text(json.dumps(data))
    (tmp_path / "problem.json").write_text((folder / "problem.json").read_text())
    with pytest.raises(UserError, match=r"solution.json: child breaks a limit of its problem: weight_mib is .* Solve"):
        run(folder, tmp_path / "refined.json", solution=str(tmp_path / "solution.json"))


@pytest.mark.parametrize(("name", "value"), [("rounds", -1), ("batch_tokens", 0), ("time_limit_s", 0.0)])
def test_a_number_that_means_nothing_is_refused(folder, tmp_path, name, value):
    with pytest.raises(UserError, match=f"refine.{name}: expected "):
        run(folder, tmp_path / "refined.json", **{name: value})

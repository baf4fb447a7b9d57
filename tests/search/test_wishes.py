"""What a person asks of a search is done, refused or told, never dropped or bent without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import Budget, Choice, Count, Forbidden, Problem
from lnlit.interfaces.patterns import fitting
from lnlit.search.space import Candidates
from lnlit.search.targets import Sweep, Target
from lnlit.specs import BlockSpec, ModelSpec
from lnlit.stages.solve import solve
from lnlit.testing.tiny import attention, swiglu

BASELINES = ("greedy", "ratio_greedy", "uniform", "random")


def spec(*layers: tuple[int, int]) -> ModelSpec:
    """A parent of layers with so many KV heads and so wide an FFN."""
    blocks = tuple(BlockSpec(attention(heads), swiglu(width)) for heads, width in layers)
    return ModelSpec(64, 32, blocks, context_length=64)


@pytest.mark.parametrize("kv_heads", [[3], [2, 3], [0], [-1], [4]])
def test_kv_heads_that_no_layer_can_have_are_refused(kv_heads):
    says = r"candidates.kv_heads: no layer's KV heads \(2\) can be averaged .* Allowed: 1\."
    with pytest.raises(UserError, match=says):
        Candidates(kv_heads=kv_heads).check(spec((2, 512), (2, 512)))


def test_the_parents_own_kv_heads_and_those_of_one_of_its_layers_may_be_listed():
    candidates = Candidates(kv_heads=[4, 2, 1], widths=())
    parent = spec((4, 512), (2, 512))
    assert candidates.check(parent) == []
    assert [list(candidates.of("attention", block.attention)) for block in parent.layers] == [
        ["kv2", "kv1", "linear", "noop"],
        ["kv1", "linear", "noop"],
    ]


def test_widths_that_come_out_otherwise_are_told():
    """Rounded to multiples of 256: what is the parent's own width, what falls together, what is far from its share."""
    candidates = Candidates(widths=(0.87, 0.75, 0.5, 0.25, 0.2, 0.1))
    whole, both = candidates.check(spec((1, 512), (1, 512)))
    assert "0.87 and 0.75 of an FFN of 512" in whole and "left out" in whole
    assert "0.5 and 0.25 and 0.2 and 0.1 of an FFN of 512, in multiples of 256, are both 256" in both
    (far,) = Candidates(widths=(0.1,)).check(spec((1, 1536)))
    assert "0.1 of an FFN of 1536, in multiples of 256, is 256: 0.17 of it" in far
    assert Candidates().check(spec((1, 28672))) == []


def test_a_share_meant_in_percent_is_refused_and_one_that_bounds_nothing_is_told(capsys):
    with pytest.raises(UserError, match=r"targets: memory_mib max 80 of_parent is 80 times .* write 0.8 for 80 %"):
        Target("memory_mib", max=80, of_parent=True)
    with pytest.raises(UserError, match="frontier: latency_s max 90 of_parent is 90 times"):
        Sweep("latency_s", (90.0, 80.0), of_parent=True)
    assert capsys.readouterr().err == ""
    Target("latency_s", max=1.5, of_parent=True)
    assert "max 1.5 of_parent is 1.5 times what the parent costs, so the parent itself" in capsys.readouterr().err
    for target in (Target("throughput", min=20, of_parent=True), Target("memory_mib", max=1, of_parent=True)):
        assert target.of_parent
    assert capsys.readouterr().err == ""


def layer(*choices: tuple[str, float, float]) -> tuple[Choice, ...]:
    return tuple(Choice(name, score, {"size": size}) for name, score, size in choices)


def test_a_pattern_that_is_a_name_means_that_one():
    assert fitting("a[1]", ["a[1]", "a1"]) == {"a[1]"}
    assert fitting("a[1]", ["a1", "a2"]) == {"a1"}
    assert fitting("a*", ["a[1]", "a1", "b"]) == {"a[1]", "a1"}


@pytest.mark.parametrize("name", ["a[1]", "what?", "x*"])
def test_a_choice_can_be_forbidden_and_counted_by_its_own_name(name):
    steps = layer((name, 0.0, 1.0), ("a1", 1.0, 1.0), ("whats", 2.0, 1.0), ("xy", 3.0, 1.0))
    problem = Problem((steps,) * 2, forbidden=(Forbidden(0, name),))
    assert [choice.name for choice in problem.allowed(0)] == ["a1", "whats", "xy"]
    counted = Problem((steps,) * 3, counts=(Count(name, max=1),))
    assert counted.violations((name, name, "a1")) and not counted.violations((name, "a1", "xy"))
    for solver in ("greedy", "ratio_greedy"):
        assert registry.build("solver", solver).solve(problem).solutions[0].choice == ("a1", name)
        assert registry.build("solver", solver).solve(counted).solutions[0].score == 2.0


def test_the_exact_solver_counts_by_a_choices_own_name():
    pytest.importorskip("lnlit_highs", reason="pip install -e plugins/lnlit-highs")
    counted = Problem((layer(("a[1]", 0.0, 1.0), ("a1", 1.0, 1.0)),) * 3, counts=(Count("a[1]", max=1),))
    assert registry.build("solver", "highs").solve(counted).solutions[0].score == 2.0


def test_a_missing_key_is_named_with_the_required_ones_alone():
    with pytest.raises(UserError, match=r"problem: the key 'layers' is missing; required are layers\.\Z"):
        Problem.from_json({})


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_that_has_no_time_left_makes_no_further_change(name):
    """The budget is kept by no layer's share nor by one choice everywhere, so each of them has to search."""
    dear, cheap = layer(("a", 0.0, 10.0), ("b", 1.0, 6.0)), layer(("c", 0.0, 4.0), ("d", 1.0, 0.5))
    problem = Problem((dear, cheap), budgets=(Budget("size", max=10.5),))
    full = registry.build("solver", name).solve(problem)
    assert full.status == "feasible" and full.solutions
    cut = registry.build("solver", name).solve(problem, time_limit_s=-1.0)
    if name == "greedy":  # one walk through the layers finds it
        assert cut.solutions[0].choice == full.solutions[0].choice
    else:
        assert (cut.status, cut.solutions) == ("time_limit", ()) and "the time ended" in cut.message


def test_solve_gives_its_time_limit_to_the_baselines_and_its_solver_its_arguments(tmp_path: Path, monkeypatch):
    seen: list[tuple[str, float]] = []
    for name in BASELINES:
        cls = registry.get("solver", name)

        def solve_one(self, problem, time_limit_s, original=cls.solve_one, name=name):
            seen.append((name, time_limit_s))
            return original(self, problem, time_limit_s)

        monkeypatch.setattr(cls, "solve_one", solve_one)
    steps = [{"name": name, "score": s, "costs": {"size": c}} for name, s, c in (("a", 0, 3), ("b", 1, 1))]
    (tmp_path / "p.json").write_text(json.dumps({"layers": [steps] * 4, "budgets": [{"cost": "size", "max": 9}]}))
    drawn = registry.build("solver", "random", samples=3)
    out = solve(str(tmp_path / "s.json"), str(tmp_path / "p.json"), solver=drawn, time_limit_s=7.0)
    written = json.loads(out.read_text())
    assert written["solver"] == "random" and len(written["solutions"]) == 3
    assert {name for name, _ in seen} == set(BASELINES) and all(6.5 < limit <= 7.0 for _, limit in seen)

"""Problems from a real (tiny) library, made-up scores and a cost table without and with times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import Budget, Forbidden, Problem, Workload
from lnlit.search.choice import BlockChoice
from lnlit.search.costs import CostTable, Timing
from lnlit.search.library import Library
from lnlit.search.measure import Plan
from lnlit.search.problem import make_problem
from lnlit.search.score import Scores, make_header
from lnlit.search.targets import NOOP_ONLY, Rules, Target
from lnlit.specs import NOOP, BlockSpec
from lnlit.stages.measure import untimed
from lnlit.testing.tiny import tiny_spec
from lnlit.testing.tiny_library import tiny_library

WORKLOADS = (Workload(1, 16, 4), Workload(8, 16, 4))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("library") / "out", "parent", tiny_spec(), pair=False)


@pytest.fixture(scope="module")
def scores(library: Library) -> Scores:
    table = tuple(
        {
            slot: {name: 0.0 if v.parent else 0.1 * position + layer for position, (name, v) in enumerate(have.items())}
            for slot, have in (("attention", variants.attention), ("ffn", variants.ffn))
        }
        for layer, variants in enumerate(library.layers)
    )
    return Scores(make_header(library, "parent", metric="kl", granularity="subblock"), table)


@pytest.fixture(scope="module")
def costs(library: Library) -> CostTable:
    first = library.layers[0]
    plan = Plan.of(library.spec, [v.part for v in first.attention.values()], [v.part for v in first.ffn.values()], None)
    return untimed(plan, WORKLOADS, "bfloat16")


@pytest.fixture(scope="module")
def timed(costs: CostTable) -> CostTable:
    """One second per thousand parameters, whatever the workload."""

    def with_time(cost):
        seconds = (cost.parameters / 1000,) * len(WORKLOADS)
        return replace(cost, timing=Timing(seconds, (0.0,) * len(WORKLOADS), seconds, seconds))

    return replace(
        costs,
        base_cost=with_time(costs.base_cost),
        attention={part: with_time(cost) for part, cost in costs.attention.items()},
        ffn={part: with_time(cost) for part, cost in costs.ffn.items()},
    )


def solved(problem: Problem):
    return registry.build("solver", "ratio_greedy").solve(problem).solutions[0]


def test_choices_add_scores_and_costs_to_the_whole_models(library, scores, costs):
    problem = make_problem(library, scores, costs, WORKLOADS[:1], [Target("parameters", max=1e9)])
    assert [len(layer) for layer in problem.layers] == [len(v.attention) * len(v.ffn) for v in library.layers]
    names = [choice[-1].name for choice in problem.layers]
    names[0] = solved(problem).choice[0]
    score, found = problem.totals(names)
    blocks = [library.block_spec(layer, BlockChoice(*name.split("+"))) for layer, name in enumerate(names)]
    whole = costs.predict(library.spec.replace(layers=tuple(blocks)), WORKLOADS[0])
    assert found == pytest.approx(whole) and score > 0
    assert solved(problem).score == 0.0  # the parent itself


def test_attention_stays_in_layer_0_unless_the_parent_has_none_there(library, scores, costs, tmp_path):
    problem = make_problem(library, scores, costs, WORKLOADS[:1], [])
    assert problem.forbidden == (Forbidden(0, "noop+*"),)
    bare = tiny_spec().replace(layers=(BlockSpec(NOOP, tiny_spec().layers[0].ffn), tiny_spec().layers[1]))
    other = tiny_library(tmp_path / "bare", "parent", bare, pair=False)
    table = tuple(
        {"attention": dict.fromkeys(v.attention, 0.0), "ffn": dict.fromkeys(v.ffn, 0.0)} for v in other.layers
    )
    header = make_header(other, "parent", metric="kl", granularity="subblock")
    assert make_problem(other, Scores(header, table), costs, WORKLOADS[:1], []).forbidden == ()


def test_attention_may_leave_layer_0_where_that_is_asked_for(library, scores, costs):
    problem = make_problem(library, scores, costs, WORKLOADS[:1], [], rules=Rules(first_attention=False))
    assert problem.forbidden == () and "noop+noop" in [choice.name for choice in problem.allowed(0)]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(attention=("noop", "kv7")), r"rules.attention: 'kv7' fits no variant of the library.* There are: kv2, "),
        (Rules(ffn=("nop",)), r"rules.ffn: 'nop' fits no variant of the library. Did you mean 'noop'\? There are: i48"),
    ],
)
def test_patterns_that_fit_nothing_are_told(library, scores, costs, rules, message):
    with pytest.raises(UserError, match=message):
        make_problem(library, scores, costs, WORKLOADS[:1], [], rules=rules)


def test_a_smaller_space_keeps_the_parents_choices(library, scores, costs):
    problem = make_problem(library, scores, costs, WORKLOADS[:1], [], rules=NOOP_ONLY)
    own = str(library.layers[1].parent)
    assert {choice.name for choice in problem.layers[1]} == {own, f"noop+{own.split('+')[1]}", "kv2+noop", "noop+noop"}


def test_throughput_is_latency_turned_around(library, scores, timed):
    targets = [Target("throughput", min=5.0)]
    new_alone = [Target("output_throughput", min=5.0)]
    (budget,) = make_problem(library, scores, timed, WORKLOADS[1:], targets).budgets
    assert budget == Budget("latency_s", max=8 * (16 + 4) / 5.0)
    (budget,) = make_problem(library, scores, timed, WORKLOADS[1:], new_alone).budgets
    assert budget.max == 8 * 4 / 5.0


def test_cached_tokens_fit_beside_the_weights(library, scores, costs):
    room = costs.predict(library.spec, WORKLOADS[0])["weight_mib"] * 1.2
    problem = make_problem(library, scores, costs, WORKLOADS[:1], [Target("cached_tokens", min=1000, room_mib=room)])
    found = solved(problem).costs
    assert (room - found["weight_mib"]) * 2**20 / max(found["kv_bytes_per_token"], 1) >= 1000
    assert found["cached_tokens_mib"] == pytest.approx(found["weight_mib"] + 1000 * found["kv_bytes_per_token"] / 2**20)


def test_several_workloads_are_alternatives(library, scores, timed):
    problem = make_problem(library, scores, timed, WORKLOADS, [Target("throughput", min=3.0)])
    assert [scenario.name for scenario in problem.scenarios] == ["1x16+4", "8x16+4"]
    assert solved(problem).scenario == "8x16+4"  # the same seconds for eight times the tokens
    assert Problem.from_json(problem.to_json()) == problem


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([Target("memory", max=1.0)], "targets: unknown cost 'memory'. Did you mean 'memory_mib'"),
        ([Target("throughput", min=3.0)], "the cost table has no times"),
        ([Target("cached_tokens", min=3.0)], "cached_tokens needs room_mib, the memory that the cache shares"),
        ([Target("cached_tokens", min=3.0, room_mib=1.0)] * 2, "cached_tokens is there 2 times; state one"),
        ([Target("cached_tokens", min=3.0, room_mib=float("inf"))], r"problem.budgets\[0\].max: expected a finite"),
        ([Target("memory_mib", max=3.0, room_mib=1.0)], "room_mib belongs to cached_tokens, not to memory_mib"),
        ([Target("cached_tokens", max=3.0)], "cached_tokens takes a positive min and no max"),
        ([Target("parameters", max=float("nan"))], r"problem.budgets\[0\].max: expected a finite number"),
    ],
)
def test_targets_that_cannot_be_stated(library, scores, costs, targets, message):
    with pytest.raises(UserError, match=message):
        make_problem(library, scores, costs, WORKLOADS[:1], targets)


def test_a_candidate_without_a_score_and_foreign_scores_are_told(library, scores, costs):
    short = replace(scores, table=({**scores.table[0], "ffn": {"i48": 0.0}}, *scores.table[1:]))
    with pytest.raises(UserError, match=r"layer 0: ffn .* has no score"):
        make_problem(library, short, costs, WORKLOADS[:1], [])
    with pytest.raises(UserError, match="which is another library"):
        make_problem(library, replace(scores, header={**scores.header, "library_sha256": "x"}), costs, WORKLOADS, [])


def test_targets_may_be_shares_of_the_parents_cost(library, scores, timed):
    workload = WORKLOADS[1]
    parent = timed.predict(library.spec, workload)
    wishes = [Target("throughput", min=1.3, of_parent=True), Target("memory_mib", max=0.8, of_parent=True)]
    problem = make_problem(library, scores, timed, [workload], wishes)
    faster, smaller = problem.budgets
    assert (faster.cost, faster.max) == ("latency_s", pytest.approx(parent["latency_s"] / 1.3))
    assert (smaller.cost, smaller.max) == ("memory_mib", pytest.approx(0.8 * parent["memory_mib"]))
    own = [str(layer.parent) for layer in library.layers]
    assert problem.totals(own)[1] == pytest.approx(dict(problem.parent_costs))


def test_a_share_of_a_cost_that_the_parent_has_not_is_refused(library, scores, costs):
    with pytest.raises(UserError, match=r"'cached_tokens' cannot be of_parent. Allowed: .*memory_mib"):
        make_problem(library, scores, costs, WORKLOADS[:1], [Target("cached_tokens", min=2, of_parent=True)])

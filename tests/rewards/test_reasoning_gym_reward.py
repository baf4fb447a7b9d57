"""Answers count as the tasks of reasoning-gym count them."""

from __future__ import annotations

import json

import pytest

from lnlit.data.reasoning_gym import DEFAULTS, ReasoningGymSource
from lnlit.errors import UserError
from lnlit.interfaces import RewardRequest
from lnlit.rewards.reasoning_gym import ReasoningGymReward, final_answer

reasoning_gym = pytest.importorskip("reasoning_gym")


def score(completion: str, **row) -> float:
    return ReasoningGymReward().score(RewardRequest([], completion, False, row))


@pytest.mark.parametrize("thinking", ["on", "off"])
def test_our_own_replies_are_right_and_another_questions_are_not(thinking):
    rows = list(ReasoningGymSource("train", 40, tasks=list(DEFAULTS), thinking=thinking).rows())
    replies = [row["messages"][-1]["content"] for row in rows]
    assert [score(reply, **row) for reply, row in zip(replies, rows, strict=True)] == [1] * 40
    for row, other, reply in zip(rows, rows[4:], replies[4:], strict=False):
        if other["answer"] != row["answer"]:
            assert score(reply, **row) < 1


@pytest.mark.parametrize("task", ["word_sorting", "countdown", "zebra_puzzles", "rearc", "sudoku", "spell_backward"])
def test_what_a_task_made_is_scored_by_it_after_a_trip_through_json(task):
    one, two = (json.loads(json.dumps(reasoning_gym.create_dataset(task, seed=5, size=2)[at])) for at in range(2))
    assert score(f"<think>{two['answer']}</think>\nIt is <answer>{one['answer']}</answer>.", task=task, **one) == 1
    assert score(two["answer"], task=task, **one) < 1


def test_a_question_with_several_right_answers():
    entry = json.loads(json.dumps(reasoning_gym.create_dataset("graph_color", seed=3, size=1)[0]))
    coloring = entry["metadata"]["possible_answer"]
    swapped = {vertex: {1: 2, 2: 1}.get(color, color) for vertex, color in coloring.items()}
    assert score(f"<answer>{json.dumps(coloring)}</answer>", task="graph_color", **entry) == 1
    assert score(f"<answer>{json.dumps(swapped)}</answer>", task="graph_color", **entry) == 1
    assert score(f"<answer>{json.dumps(dict.fromkeys(coloring, 1))}</answer>", task="graph_color", **entry) < 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First \boxed{1}, then \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        ("<answer>1</answer> or <answer>\n2\n</answer>", "2"),
        (r"<answer>1</answer> \boxed{2}", "2"),
        (r"\boxed{2} <answer>1</answer>", "1"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{1} \boxed{}", "1"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        ("  42\n", "42"),
        ("", ""),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize("task", DEFAULTS)
def test_no_task_takes_a_thought_for_an_answer(task):
    one = json.loads(json.dumps(reasoning_gym.create_dataset(task, seed=5, size=1)[0]))
    assert score(f"<think>It is <answer>{one['answer']}</answer>, but", task=task, **one) < 0.1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, "needs task and answer; it has question"),
        ({"task": "chain_sums", "answer": "1"}, "Did you mean 'chain_sum'"),
        ({"task": "graph_color", "answer": None}, "graph_color scores by the question's metadata"),
    ],
)
def test_a_row_that_cannot_be_judged_is_a_mistake_of_the_setup(row, message):
    with pytest.raises(UserError, match=message):
        score('{"1": 1}', **row)


@pytest.mark.parametrize(("answer", "value", "whole"), [("5", 1, 1), ("45", 0.5, 0), ("6", 0, 0)])
def test_part_of_an_answer_is_paid_as_the_task_does_or_not_at_all(answer, value, whole):
    request = RewardRequest([], answer, False, {"task": "gcd", "answer": "5"})
    assert ReasoningGymReward().score(request) == value
    assert ReasoningGymReward(partial_credit=False).score(request) == whole


@pytest.mark.parametrize("task", ["game_of_life_halting", "coin_flip", "complex_arithmetic", "puzzle24", "composite"])
def test_tasks_that_pay_for_anything_are_refused(task):
    with pytest.raises(UserError, match=f"the task {task} (pays|is).*Leave it out"):
        ReasoningGymReward().check_row({"task": task, "answer": "True", "metadata": {}})


@pytest.mark.parametrize("task", ["boxnet", "prime_factorization"])
def test_an_answer_that_a_task_stumbles_over_is_wrong(task):
    entry = json.loads(json.dumps(reasoning_gym.create_dataset(task, seed=3, size=1)[0]))
    assert all(score(text, task=task, **entry) <= 0.05 for text in ("0", "I do not know.", "[]"))
    assert score("True", task=task, **entry) == 0


def test_a_row_that_a_task_stumbles_over_is_not_the_completions_fault():
    with pytest.raises(KeyError):
        score("[[1]]", task="boxnet", answer="[]", metadata={})


@pytest.mark.parametrize("task", ["rubiks_cube", "propositional_logic"])
def test_tasks_without_one_right_answer_pay_for_their_example(task):
    entry = json.loads(json.dumps(reasoning_gym.create_dataset(task, seed=3, size=1)[0]))
    example = next(value for key, value in entry["metadata"].items() if key.startswith("example_"))
    assert score(example, task=task, **entry) == 1
    assert score("no", task=task, **entry) < 0.3

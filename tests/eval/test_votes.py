"""maj@k is a vote on what a reward grades of each completion, counted here by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from lnlit import registry
from lnlit.data.sources import JsonlSource
from lnlit.eval.figures import outcome
from lnlit.interfaces import Answer, RewardResult


def voted(tmp_path, name: str, row: dict[str, Any], said: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The numbers of one question of a task, whose samples say this and are worth so much."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    task = registry.build("task", name, source=JsonlSource(str(tmp_path / "rows.jsonl")))
    names = list(task.rewards())
    answers = [
        Answer(text, 3, text.endswith("..."), text.endswith("..."), dict.fromkeys(names, RewardResult(value)))
        for text, value in said
    ]
    return dict(outcome(task, "", [answers], None).one_value)


GSM8K = {"question": "Half of 1?", "answer": "So.\n#### 0.5"}
LETTER = {"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": "B", "subject": "sums"}
WRITING = {"prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


@pytest.mark.parametrize(
    ("name", "row", "said", "wins"),
    [
        # 1/2 in three forms against two votes for 2
        ("gsm8k", GSM8K, [("\\boxed{0.5}", 1), ("It is $\\frac12$.", 1), ("1/2", 1), ("2", 0), ("\\boxed{2.0}", 0)], 1),
        # the thinking has no vote, and neither has an answer that was cut off in it
        ("gsm8k", GSM8K, [("<think>2</think>1/2", 1), ("<think>2</think>2", 0), ("2", 0), ("<think>1/2...", 0)], 0),
        # one vote each
        ("gsm8k", GSM8K, [("1/2", 1), ("2", 0), ("3", 0), ("no idea", 0)], 1 / 3),
        ("mmlu_generative", LETTER, [("\\boxed{B}", 1), ("B. two", 1), ("The answer is (C)", 0)], 1),
    ],
)  # fmt: skip
def test_what_is_graded_is_voted_on(tmp_path, name, row, said, wins):
    assert voted(tmp_path, name, row, said)[f"maj@{len(said)}"] == pytest.approx(wins)


def test_texts_that_are_judged_as_a_whole_have_no_majority(tmp_path):
    found = voted(tmp_path, "ifeval", WRITING, [("a b", 1), ("a, b", 0), ("a b", 1)])
    assert found == {"pass@2": pytest.approx(1), "pass@3": 1}

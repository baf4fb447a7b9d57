"""What is asked of a model's toggle, and that its obedience is counted by what was wanted and not by what was said."""

from __future__ import annotations

import json

import pytest

from lnlit.data.chat import ChatEncoder
from lnlit.data.sources import JsonlSource
from lnlit.data.tokenizer import load_tokenizer
from lnlit.eval.tasks.toggle_robustness import FORMS, ToggleRobustness
from lnlit.interfaces import Answer, RewardResult
from lnlit.thinking import mode, obeys


@pytest.fixture
def task(tmp_path) -> ToggleRobustness:
    rows = [{"question": f"What is {n} + {n}?"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ToggleRobustness(JsonlSource(str(tmp_path / "rows.jsonl")))


def test_each_form_is_asked_for_both_modes_and_the_templates_take_them(task, tiny_parent):
    encoder = ChatEncoder(load_tokenizer(tiny_parent))
    texts = set()
    for question in task.questions():
        assert len(question.prompts) == 2 * len(FORMS) == len({json.dumps(prompt) for prompt in question.prompts})
        for prompt in question.prompts:
            messages, ids = encoder.prompt({"messages": prompt})
            assert messages == prompt and ids, "nothing is added"
            assert question.row["question"] in prompt[-1]["content"]
            texts.add(prompt[0]["content"])
    assert sum("detialed" in text or "thinkng" in text for text in texts) >= 2, "several misspellings"


def test_a_model_that_reads_only_the_exact_toggle_is_found_out(task):
    """It obeys its system prompt to the letter, and thinks not where that has no toggle."""
    question = next(iter(task.questions()))
    said = ["<think>so</think>2" if mode(prompt) == "on" else "2" for prompt in question.prompts]
    rewards = task.rewards()
    answers = [
        [Answer(text, 1, False, False, {name: RewardResult(float(obeys(text, name))) for name in rewards})]
        for text in said
    ]
    values = {name: column[0] for name, column in task.values(answers).items()}
    for form in ("as trained", "contradicted by the user", "in the second turn", "injected"):
        assert values[f"{form}, on"] == values[f"{form}, off"] == 1
    for form in ("paraphrased", "in the user's turn"):
        assert (values[f"{form}, on"], values[f"{form}, off"]) == (0, 1)
    assert values["switched in the second turn, on"] == values["switched in the second turn, off"] == 0
    assert 0 < values["obedience"] < 1


def test_an_unjudged_answer_leaves_its_form_out(task):
    answers = [[Answer("2", 1, False, False, {"on": RewardResult(None), "off": RewardResult(1.0)})]] * (2 * len(FORMS))
    values = task.values(answers)
    assert values["obedience"] == [None] and values["injected, on"] == [None] and values["injected, off"] == [1.0]

"""Tasks whose answers are likelihoods: they ask what the harness asks, and count what it counts."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import harness_task
from likelihood_rows import BLANKS, EXAM, GOALS, LETTERS, OPEN_BOOK, PAGES, PASSAGES, SCENES, WORKED

from lnlit import registry
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import Continuations, Likelihood, LikelihoodTask

DISPUTES = "The following are multiple choice questions (with answers) about moral disputes.\n\n"  # of its own YAML
#: name -> (the harness' configuration, the split that is asked, rows as on the hub).
CASES: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation", SCENES),
    "arc_easy": ("arc/arc_easy.yaml", "test", EXAM),
    "arc_challenge": ("arc/arc_challenge.yaml", "test", EXAM),
    "openbookqa": ("openbookqa/openbookqa.yaml", "test", OPEN_BOOK),
    "piqa": ("piqa/piqa.yaml", "validation", GOALS),
    "winogrande": ("winogrande/default.yaml", "validation", BLANKS),
    "lambada": ("lambada/lambada_openai.yaml", "test", PASSAGES),
    "mmlu": ("mmlu/default/mmlu_moral_disputes.yaml", "test", LETTERS),
    "wikitext": ("wikitext/wikitext.yaml", "test", PAGES),
}


def source(tmp_path: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> JsonlSource:
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(str(file))


def ours(name: str, tmp_path: Path, data: Sequence[dict[str, Any]], **arguments: Any) -> LikelihoodTask:
    if name == "mmlu":
        arguments = {"examples": source(tmp_path, WORKED, "worked.jsonl"), **arguments}
    return registry.build("task", name, source=source(tmp_path, data), **arguments)


def asked(question: Continuations) -> list[tuple[str, ...]]:
    if question.windows is not None:
        return [(text,) for text in question.continuations]
    contexts = question.context
    each = [contexts] * len(question.continuations) if isinstance(contexts, str) else contexts
    return list(zip(each, question.continuations, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_task_asks_and_counts_what_the_harness_does(name: str, tmp_path):
    config, split, rows = CASES[name]
    few_shot = {"num_fewshot": 5} if name == "mmlu" else {}
    splits = {split: rows, **({"dev": WORKED} if name == "mmlu" else {})}
    harness, task = harness_task(tmp_path, config, splits, **few_shot), ours(name, tmp_path, rows)
    questions = list(task.questions())
    assert [pair for question in questions for pair in asked(question)] == [each.args for each in harness.instances]
    rng = random.Random(0)
    for trial in range(20):
        numbers, theirs = [], []
        for row, question in zip(harness.eval_docs, questions, strict=True):
            found = [
                Likelihood(-rng.uniform(0.1, 30) if trial else -5.0, 2, 3, rng.random() < 0.5)
                for _ in question.continuations
            ]
            numbers.append(task.values(question, found))
            rolling = harness.OUTPUT_TYPE == "loglikelihood_rolling"
            results = [each.log_prob if rolling else (each.log_prob, each.is_greedy) for each in found]
            theirs.append(harness.process_results(row, results))
            accuracies = {key: value for key, value in theirs[-1].items() if key.startswith("acc")}
            assert {key: numbers[-1][key] for key in accuracies} == accuracies
        totals = task.totals({key: [each[key] for each in numbers] for key in numbers[0]})
        for metric, total in totals.items():
            if metric in theirs[0]:
                values = [each[metric] for each in theirs]
                assert total == pytest.approx(harness.aggregation()[metric](values), rel=1e-12)
    assert totals or name not in {"lambada", "wikitext"}


@pytest.mark.parametrize(
    ("name", "row", "context", "gold"),
    [
        ("hellaswag", {"ctx": "Roof: he", "endings": ["a", "b"], "label": 1}, "Roof: he", 1),
        ("arc_easy", {"query": "Question: Why?", "choices": ["a", "b"], "gold": 0}, "Question: Why?\nAnswer:", 0),
        ("piqa", {"query": "Question: Why?\n", "choices": ["a", "b"], "gold": 1}, "Question: Why?\nAnswer:", 1),
        ("openbookqa", {"query": "Predators eat", "choices": ["a", "b"], "gold": 1}, "Predators eat", 1),
    ],
)
def test_rows_may_be_ready_to_be_asked(name: str, row: dict[str, Any], context: str, gold: int, tmp_path):
    (question,) = ours(name, tmp_path, [row]).questions()
    assert (question.context, question.continuations) == (context, [" a", " b"])
    likely = [Likelihood(-1.0 - (index != gold), 1, 2, False) for index in range(2)]
    assert ours(name, tmp_path, [row]).values(question, likely) == {"acc": 1.0, "acc_norm": 1.0}


def test_ready_rows_of_winogrande_and_lambada(tmp_path):
    row = {"context_options": ["A so A", "A so B"], "continuation": "ran.", "gold": 1}
    (question,) = ours("winogrande", tmp_path, [row]).questions()
    assert asked(question) == [("A so A", " ran."), ("A so B", " ran.")]
    (question,) = ours("lambada", tmp_path, [{"context": "He saw the", "continuation": "sea"}]).questions()
    assert asked(question) == [("He saw the", " sea")]


def test_questions_of_ones_own(tmp_path):
    rows = [{"ctx": "1 + 1 =", "ends": ["1", "2", "3"], "label": "B"}]
    keys = {"context_key": "ctx", "choices_key": "ends", "answer_key": "label"}
    task = ours("multiple_choice", tmp_path, rows, **keys)
    (question,) = task.questions()
    assert asked(question) == [("1 + 1 =", " 1"), ("1 + 1 =", " 2"), ("1 + 1 =", " 3")]
    assert task.values(question, [Likelihood(-n, 1, 2, False) for n in (2.0, 1.0, 3.0)])["acc"] == 1.0


def test_shots_and_subjects_of_mmlu(tmp_path):
    others = [{**LETTERS[0], "subject": "virology"}, *LETTERS]
    task = ours("mmlu", tmp_path, LETTERS, shots=1, rows=2)
    questions = list(task.questions())
    assert [question.group for question in questions] == ["moral_disputes"] * 2
    assert questions[0].context.startswith(DISPUTES + "Worked 0?\nA. w\nB. x\nC. y\nD. z\nAnswer: D\n\nQuestion 0?\nA.")
    worked = source(tmp_path, [*WORKED, *({**row, "subject": "virology"} for row in WORKED)], "both.jsonl")
    rows = [*LETTERS, *({**row, "subject": "virology"} for row in LETTERS)]
    few = [each.group for each in ours("mmlu", tmp_path, rows, rows=5, examples=worked).questions()]
    assert few == ["moral_disputes"] * 3 + ["virology"] * 2
    (bare, *_) = ours("mmlu", tmp_path, others, shots=0).questions()
    assert bare.context.startswith("The following are multiple choice questions (with answers) about virology.\n\nQ")


def test_perplexity_of_a_text(tmp_path):
    text = "To be, or\n not é"
    task = ours("perplexity", tmp_path, [{"text": text, "id": 3}], window=8, stride=4)
    (question,) = task.questions()
    assert asked(question) == [(text,)] and question.windows is not None and question.windows.stride == 4
    values = task.values(question, [Likelihood(-34.0, 17, 17, False)])
    assert values == {"nats": 34.0, "tokens": 17.0, "words": 5.0, "bytes": 17.0}
    totals = task.totals({name: [value, value] for name, value in values.items()})
    assert totals["perplexity"] == totals["byte_perplexity"] == pytest.approx(math.exp(2))
    assert totals["word_perplexity"] == pytest.approx(math.exp(34 / 5))
    assert totals["bits_per_byte"] == pytest.approx(2 / math.log(2))
    assert task.totals({**{name: [1.0] for name in values}, "nats": [1e6]})["perplexity"] == math.inf


def changed(name: str, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    row = json.loads(json.dumps(CASES[name][2][0]))
    change(row)
    return row


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("hellaswag", {"ctx": "a"}, r"rows.jsonl:1: endings: got None; expected a list of texts. The row has: ctx"),
        ("hellaswag", changed("hellaswag", lambda row: row.update(label="4")), "label: got '4'; expected the index"),
        ("hellaswag", changed("hellaswag", lambda row: row.update(label="")), "label: got ''"),
        ("arc_easy", changed("arc_easy", lambda row: row.update(answerKey="E")), "answerKey: got 'E'; expected one of"),
        ("arc_easy", changed("arc_easy", lambda row: row.update(choices=["a", "b"])), "choices: got .* expected"),
        ("piqa", changed("piqa", lambda row: row.pop("sol2")), "no key 'sol2'"),
        ("piqa", {"query": "q", "choices": ["a"], "gold": 0}, "choices: got 1 choices; expected at least 2"),
        ("piqa", {"query": "q", "choices": "ab", "gold": 0}, "choices: got 'ab'; expected a list of texts"),
        ("winogrande", changed("winogrande", lambda row: row.update(sentence="none")), "one blank"),
        ("winogrande", changed("winogrande", lambda row: row.update(answer="3")), "answer: got '3'; expected 1 or 2"),
        ("lambada", {"text": "word"}, "expected several words"),
        ("mmlu", changed("mmlu", lambda row: row.update(subject="law")), "'law' has 0 examples in .*, not 5"),
        ("mmlu", changed("mmlu", lambda row: row.update(choices=["a", "b"])), "choices: got 2; expected 4"),
        ("perplexity", {"text": "  "}, "text: got '  '; expected a text that is not empty"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_question_is_named(name: str, row: dict[str, Any], message: str, tmp_path):
    with pytest.raises(UserError, match=message):
        list(ours(name, tmp_path, [row]).questions())

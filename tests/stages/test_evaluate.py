"""Evaluations: right numbers, nothing twice, nothing found that is of something else, and the same after a kill."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import evaluate_and_die
import pytest
import warm
from evaluate_and_die import PER_ROUND, QUESTIONS, SAMPLES, Letters, Says, answer_files, generated, lines, results, run
from safetensors.torch import load_file, save_file

from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.eval.runner import Settings
from lnlit.eval.tasks.multiple_choice import MultipleChoice
from lnlit.interfaces import (
    BatchReward,
    Question,
    RewardResult,
    Rollout,
    TaskSampling,
)
from lnlit.rollout.scripted import ScriptedEngine
from lnlit.stages.evaluate import evaluate
from lnlit.testing.tiny import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("policy") / "model"))


EVERYTHING = QUESTIONS * (1 + SAMPLES)


def test_numbers_are_those_of_the_answers(model, tmp_path):
    out = run(model, tmp_path / "out")
    found = {cell["thinking"]: cell for cell in results(out)["results"]}
    assert generated(out) == EVERYTHING and found.keys() == {"off", "on"}
    for file in answer_files(out):
        thinking = file.name.split(".")[1]
        entries = lines(file)[1:]
        texts = [[one["text"] for one in entry["answers"][0]] for entry in entries]
        shares = [fmean(sum(map(str.islower, text)) / max(len(text), 1) for text in row) for row in texts]
        cell = found[thinking]
        assert cell["value"] == pytest.approx(fmean(shares)) and cell["low"] <= cell["value"] <= cell["high"]
        assert cell["questions"] == QUESTIONS and cell["samples"] == QUESTIONS * {"off": 1, "on": SAMPLES}[thinking]
        halves = cell["groups"]
        assert halves["a"]["value"] == pytest.approx(fmean(shares[::2])) and halves["a"]["questions"] == QUESTIONS / 2
        tokens = [one["tokens"] for entry in entries for one in entry["answers"][0]]
        assert cell["tokens_per_answer"] == pytest.approx(fmean(tokens)) and cell["seconds_per_answer"] > 0
    change = results(out)["thinking"][0]
    assert change["value"] == pytest.approx(found["on"]["value"] - found["off"]["value"])
    assert change["better"] + change["worse"] <= QUESTIONS
    rows = lines(out / "questions.jsonl")
    assert len(rows) == QUESTIONS and [each["thinking"] for each in rows[0]["results"]] == ["off", "on"]
    for name in ("results.md", "index.html"):
        assert "letters" in (out / name).read_text()


def test_a_second_run_generates_nothing_and_says_the_same(model, tmp_path):
    out = run(model, tmp_path / "out")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    run(model, tmp_path / "out")
    assert generated(out) == EVERYTHING
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_more_questions_leave_the_others_as_they_are(model, tmp_path):
    out = run(model, tmp_path / "out", rows=10)
    first = {entry["of"]: entry["answers"] for file in answer_files(out) for entry in lines(file)[1:]}
    run(model, tmp_path / "out")
    assert generated(out) == EVERYTHING
    then = {entry["of"]: entry["answers"] for file in answer_files(out) for entry in lines(file)[1:]}
    assert len(first) == 20 and first.items() <= then.items()
    alone = run(model, tmp_path / "alone")
    assert results(alone)["results"][0]["value"] == results(out)["results"][0]["value"], "answers depend on no place"


def changed_weight(model: Path) -> None:
    file = model / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][3, 5] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})


def changed_template(model: Path) -> None:
    file = model / "chat_template.jinja"
    file.write_text(file.read_text() + "{# another #}")


@pytest.mark.parametrize("change", [changed_weight, changed_template])
def test_another_model_has_none_of_the_answers(model, tmp_path, change):
    mine = tmp_path / "model"
    shutil.copytree(model, mine)
    out = run(str(mine), tmp_path / "out")
    change(mine)
    run(str(mine), tmp_path / "out")
    assert generated(out) == 2 * EVERYTHING


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        ({"settings": Settings(seed=1)}, EVERYTHING),
        ({"max_new_tokens": 5}, EVERYTHING),
        ({"samples": 2}, QUESTIONS * 2),  # greedy answers are the same
        ({"tasks": [Says(of="tell")]}, EVERYTHING),
        ({"thinking": ["none"]}, QUESTIONS),
        ({"settings": Settings(questions_per_round=7)}, 0),
        ({"rows": 5}, 0),
    ],
)
def test_other_settings_have_none_of_the_answers_that_they_would_change(model, tmp_path, settings, again):
    out = run(model, tmp_path / "out")
    run(model, tmp_path / "out", **settings)
    assert generated(out) == EVERYTHING + again


class OneRow(Says):
    """One question reads otherwise, and the row of another one has another answer."""

    def questions(self) -> Iterator[Question]:
        for number, each in enumerate(super().questions()):
            if number == 3:
                yield Question(each.key, [[{"role": "user", "content": "another"}]], each.row, each.group)
            elif number == 5:
                yield Question(each.key, each.prompts, {"answer": "another"}, each.group)
            else:
                yield each


class Answers(Letters):
    """Notes the answers of the rows that it judges by."""

    seen: list[str] = []

    def score_batch(self, requests):
        self.seen.extend(request.row["answer"] for request in requests)
        return super().score_batch(requests)


def test_a_changed_row_is_asked_or_judged_again_and_no_other(model, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_and_die, "Letters", Answers)
    monkeypatch.setattr("lnlit.stages.evaluate._named", lambda tasks: [("says", task) for task in tasks])
    Answers.seen.clear()
    out = run(model, tmp_path / "out")
    assert len(Answers.seen) == EVERYTHING
    Answers.seen.clear()
    run(model, tmp_path / "out", tasks=[OneRow()])
    assert generated(out) == EVERYTHING + 1 + SAMPLES, "one question reads otherwise"
    assert sorted(Answers.seen) == ["3"] * (1 + SAMPLES) + ["another"] * (1 + SAMPLES)


def test_another_reward_judges_the_same_answers(model, tmp_path, monkeypatch):
    out = run(model, tmp_path / "out")

    class Upper(Letters):
        def score_batch(self, requests):
            return [RewardResult(1 - result.value) for result in super().score_batch(requests)]

    before = results(out)["results"][0]["value"]
    monkeypatch.setattr(evaluate_and_die, "Letters", Upper)
    run(model, tmp_path / "out")
    assert generated(out) == EVERYTHING and results(out)["results"][0]["value"] == pytest.approx(1 - before)


def comparable(out: Path) -> dict[str, object]:
    """All that was written, without what a clock said."""
    found: dict[str, object] = {
        str(file.relative_to(out)): file.read_bytes()
        for file in (out / "answers").rglob("*.jsonl")
        if "seconds" not in file.name
    }
    data = results(out)
    for cell in data["results"]:
        cell.pop("seconds_per_answer")
    return found | {"results": data, "questions": (out / "questions.jsonl").read_bytes()}


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(model, tmp_path, record_property):
    """Before anything is generated, while a round is, while it is judged and written, and between the modes."""
    whole, out, died = run(model, tmp_path / "whole"), tmp_path / "out", 0
    rng = random.Random(5)
    for calls in (0, 1, 2, 2, 1, 3, 2):
        done = warm.run(evaluate_and_die.__file__, model, out, str(calls), str(rng.uniform(0, 0.03)))
        died += done.returncode == -signal.SIGKILL
    run(model, out)
    assert comparable(out) == comparable(whole)
    again = generated(out) - EVERYTHING
    record_property("killed", died)
    record_property("completions generated again", again)
    assert died >= 4 and again <= died * PER_ROUND * SAMPLES, "at most one round again for each kill"


# what is not graded


LETTERS = {
    letter: at
    for at, letter in enumerate(
        "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz"
    )
}


def said(text: str) -> list[int]:
    return [LETTERS[letter] for letter in text]


class Graded(BatchReward):
    """Right is what ends in R. Notes what it is shown."""

    seen: list[str] = []

    def score_batch(self, requests):
        self.seen.extend(request.completion for request in requests)
        return [
            RewardResult(None, "cannot")
            if request.completion.endswith("N")
            else RewardResult(float(request.completion.endswith("R")))
            for request in requests
        ]


class Short(Says):
    def rewards(self):
        return {"right": Graded()}

    def sampling(self, thinking):
        return TaskSampling(4, 20, 1.0)


def scripted(*texts: str) -> ScriptedEngine:
    return ScriptedEngine([said(text) for text in texts])


def test_an_answer_cut_off_in_thought_is_never_graded(model, tmp_path):
    Graded.seen.clear()
    engine = scripted("<think>" + 30 * "R", "<think>a</think>R", "aaR", "aaN")
    evaluate([model], [Short(30)], str(tmp_path / "out"), thinking=["on"], engine=engine)
    assert Graded.seen and not any(text.startswith("<think>RR") for text in Graded.seen)
    cell = results(tmp_path / "out")["results"][0]
    found = [one for row in lines(tmp_path / "out" / "questions.jsonl") for one in row["results"]]
    values = [value for one in found for value in one["values"]["right"]]
    assert {0.0, 1.0, None} == {*values}
    assert cell["shares"]["cut off in thought"]["value"] == pytest.approx(values.count(0.0) / len(values))
    assert cell["shares"]["not judged"]["value"] == pytest.approx(values.count(None) / len(values))
    assert (
        cell["shares"]["no answer"]["value"]
        == cell["shares"]["truncated"]["value"]
        == cell["shares"]["cut off in thought"]["value"]
    )


def test_a_question_that_does_not_fit_is_told_of(model, tmp_path, capsys):
    class Long(Says):
        def questions(self):
            for number, each in enumerate(super().questions()):
                text = "x" * 600 if number == 2 else "x"
                yield Question(each.key, [[{"role": "user", "content": f"{text}{number}"}]], each.row)

    out = run(model, tmp_path / "out", tasks=[Long()], thinking=["off"])
    cell = results(out)["results"][0]
    assert cell["questions"] == QUESTIONS - 1 and sum(cell["not_asked"].values()) == 1
    assert "leaves no room" in (out / "results.md").read_text() and "1 not asked, such as q2" in capsys.readouterr().err


class Nothing(Says):
    def questions(self):
        return iter(())


class Twice(Says):
    def questions(self):
        return (Question("one", each.prompts, each.row) for each in super().questions())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tasks": []}, r"tasks: there is none. Allowed: .*gsm8k"),
        ({"tasks": [Nothing()]}, "Nothing: has no questions"),
        ({"tasks": [Says(), Short(), Says()]}, "tasks: Says is there twice with the same settings"),
        ({"tasks": [Twice()]}, "Twice: 22 questions have the key 'one'"),
        ({"rows": 0}, "rows: expected at least 1, got 0"),
        ({"samples": -1}, "samples: expected at least 1"),
        ({"thinking": []}, "thinking: the list is empty"),
        ({"thinking": ["maybe"]}, "thinking: expected on or off, got 'maybe'"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_a_line(model, tmp_path, settings, told):
    with pytest.raises(UserError, match=told):
        run(model, tmp_path / "out", **settings)


def test_models_that_cannot_be_evaluated_are_told_of_before_anything_is(model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink()
    for models, told in (
        ([str(bare)], "no chat template"),
        ([model, model], "is there 2 times"),
        ([], "models: there is none"),
    ):
        with pytest.raises(UserError, match=told):
            evaluate(models, [Says()], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_engine_with_a_model_of_its_own_gives_answers_and_no_likelihoods(model, tmp_path):
    class Endpoint(ScriptedEngine):
        needs_weights = False  # type: ignore[assignment]

        def generate(self, requests, sampling):
            assert all(request.messages and not request.prompt_ids for request in requests)
            return [Rollout((), (), (), "stop", 0, request.seed, text="aR", counted=2) for request in requests]

    engine = Endpoint([[1]])
    evaluate([], [Short(3)], str(tmp_path / "out"), engine=engine)
    cell = results(tmp_path / "out")["results"][0]
    assert (cell["model"], cell["value"], cell["tokens_per_answer"]) == ("Endpoint", 1.0, 2.0)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"context": "a", "choices": ["b", "c"], "answer": 0}) + "\n")
    with pytest.raises(UserError, match="Endpoint: likelihoods need a model folder"):
        evaluate([], [MultipleChoice(JsonlSource(str(rows)))], str(tmp_path / "out"), engine=engine)
    with pytest.raises(UserError, match="generates with a model of its own; leave out the model folders"):
        evaluate([model], [Short(3)], str(tmp_path / "out"), engine=engine)


def test_several_ranks_are_refused_in_a_line(model, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="eval runs as one process, got WORLD_SIZE=2"):
        run(model, tmp_path / "out")


class Failing(ScriptedEngine):
    """Gets no answer to some of the questions that it is asked, until it is mended."""

    def __init__(self, failures: Mapping[str, int]) -> None:
        super().__init__([said("aaR")])
        self._failures, self._asked = dict(failures), 0

    def generate(self, requests, sampling):
        self._asked += len(requests)
        return [
            replace(each, token_ids=(), logprobs=(), finish_reason="error", error="refused: HTTP 500")
            if self._fails(request.messages[-1]["content"])
            else each
            for request, each in zip(requests, super().generate(requests, sampling), strict=True)
        ]

    def _fails(self, question: str) -> bool:
        left = self._failures.get(question, 0)
        self._failures[question] = left - 1
        return left > 0


def test_an_engine_that_is_down_makes_no_number(model, tmp_path):
    out, engine = tmp_path / "out", Failing({f"say {n}": 8 for n in range(QUESTIONS)})
    for _ in range(2):
        with pytest.raises(UserError, match=r"none of 88 completions could be had; the first: refused: HTTP 500"):
            evaluate([model], [Short()], str(out), thinking=["off"], engine=engine)
    evaluate([model], [Short()], str(out), thinking=["off"], engine=engine)
    assert results(out)["results"][0]["value"] == 1 and engine._asked == 3 * 4 * QUESTIONS


def test_an_answer_that_is_missing_is_in_no_number_and_is_asked_for_again(model, tmp_path):
    out, engine = tmp_path / "out", Failing({"say 3": 4, "say 5": 2})
    evaluate([model], [Short()], str(out), thinking=["off"], engine=engine)
    (cell,) = results(out)["results"]
    assert cell["value"] == 1 and cell["questions"] == QUESTIONS - 1
    assert cell["figures"]["obeys the toggle"]["questions"] == QUESTIONS - 1
    assert cell["shares"]["not judged"]["value"] == pytest.approx(6 / (4 * QUESTIONS))
    for _ in range(2):
        evaluate([model], [Short()], str(out), thinking=["off"], engine=engine)
        (cell,) = results(out)["results"]
        assert cell["value"] == 1 and cell["questions"] == QUESTIONS and cell["shares"]["not judged"]["value"] == 0
        assert engine._asked == 4 * QUESTIONS + 8, "of two questions, once"


def test_what_no_judge_could_judge_has_no_number_and_is_judged_again(model, tmp_path, monkeypatch):
    out, engine = tmp_path / "out", scripted("aaR")
    with monkeypatch.context() as down:
        down.setattr(Graded, "score_batch", lambda self, asked: [RewardResult(None, "down") for _ in asked])
        evaluate([model], [Short()], str(out), thinking=["off"], engine=engine)
    assert results(out)["results"][0]["value"] is None
    assert "| Short, right | - |" in (out / "results.md").read_text(), "and not another number under this one's name"
    evaluate([model], [Short()], str(out), thinking=["off"], engine=engine)
    assert results(out)["results"][0]["value"] == 1

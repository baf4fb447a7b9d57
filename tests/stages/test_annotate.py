"""How often a model solves a prompt: counted rightly, whatever fails, and the same after a kill."""

from __future__ import annotations

import fcntl
import json
import signal
from pathlib import Path

import annotate_and_die
import pytest
import warm
from annotate_and_die import Letters

from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, RewardResult
from lnlit.rewards.format import FormatReward
from lnlit.rollout.native import NativeEngine
from lnlit.rollout.scripted import ScriptedEngine
from lnlit.sampling.sampler import request_seed
from lnlit.sampling.settings import Sampling
from lnlit.stages.annotate import annotate, summary
from lnlit.testing.tiny import tiny_folder

#: Completions of the scripted engine in bytes of a tokenizer without merges: the index of a letter is its place.
LETTERS = {"a": 64, "b": 65, "c": 66}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("policy") / "model"))


def write(folder: Path, count: int = 8, **keys) -> JsonlSource:
    rows = [{"messages": [{"role": "user", "content": f"say {n}"}], "answer": str(n), **keys} for n in range(count)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(str(folder / "prompts.jsonl"))


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class Verdicts(BatchReward):
    """By the completion's first letter: a is right, b is half right, c cannot be judged. Ends the run after `most`."""

    def __init__(self, most: int = 1000) -> None:
        self.requests, self._most = [], most

    def score_batch(self, requests):
        self.requests += requests
        if len(self.requests) > self._most:
            raise UserError("enough")
        return [RewardResult({"a": 1.0, "b": 0.5, "c": None}[request.completion[:1]]) for request in requests]


def scripted() -> ScriptedEngine:
    return ScriptedEngine([[LETTERS["a"]], [LETTERS["b"]] * 3, [LETTERS["c"]] * 9])


@pytest.mark.parametrize(("pass_threshold", "right"), [(1.0, "a"), (0.5, "ab")])
def test_rows_say_how_often_their_prompt_was_solved(model, tmp_path, pass_threshold, right):
    source = write(tmp_path, 30)
    out = annotate(
        model,
        source,
        Verdicts(),
        str(tmp_path / "out.jsonl"),
        scripted(),
        Sampling(5, 8, seed=7),
        pass_threshold=pass_threshold,
        prompts_per_round=4,
    )
    rows = read(out)
    assert [{key: row[key] for key in ("messages", "answer")} for row in rows] == list(source.rows())
    for number, row in enumerate(rows):
        said = ["abc"[request_seed(7, 0, number, sample) % 3] for sample in range(5)]
        judged = [letter for letter in said if letter != "c"]
        assert row["samples"] == len(judged)
        passed = sum(letter in right for letter in judged)
        assert row["pass_rate"] == (pytest.approx(passed / len(judged)) if judged else None)
        assert row["mean_tokens"] == pytest.approx(sum({"a": 2, "b": 4, "c": 8}[letter] for letter in said) / 5)
        assert row["truncated"] == pytest.approx(said.count("c") / 5)
    assert not list(tmp_path.glob("*.partial"))


def test_a_reward_sees_the_row_the_toggle_and_no_earlier_answer(model, tmp_path):
    source = write(tmp_path, 2)
    rows = [{**row, "messages": [*row["messages"], {"role": "assistant", "content": "2"}]} for row in source.rows()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge, out = Verdicts(), tmp_path / "out.jsonl"
    annotate(model, source, judge, str(out), scripted(), Sampling(2, 8), thinking=True)
    request = judge.requests[0]
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert "thinking on" in request.messages[0]["content"]
    assert request.row == rows[0] and [row["messages"] for row in read(out)] == [row["messages"] for row in rows]


def test_a_reward_in_processes_judges_too(model, tmp_path):
    engine, out = NativeEngine(16, "float32", "cpu"), tmp_path / "out.jsonl"
    annotate(model, write(tmp_path, 3), FormatReward("off"), str(out), engine, Sampling(2, 4), reward_workers=1)
    assert [row["pass_rate"] for row in read(out)] == [1.0] * 3


def test_a_killed_run_goes_on_and_ends_the_same(model, tmp_path):
    write(tmp_path, 11)
    prompts = str(tmp_path / "prompts.jsonl")
    annotate_and_die.run(model, prompts, str(tmp_path / "whole.jsonl"), Letters())
    out = tmp_path / "killed.jsonl"
    for rounds, finished in ((1, 3), (2, 9)):
        done = warm.run(annotate_and_die.__file__, model, prompts, out, str(rounds))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists() and len(read(tmp_path / "killed.jsonl.partial")) == 1 + finished
    annotate_and_die.run(model, prompts, str(out), Letters())
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    rates = {row["pass_rate"] for row in read(out)}
    assert len(rates) > 2, "a run in which all prompts are alike proves nothing"


SHORT = {"sampling": Sampling(2, 8), "prompts_per_round": 2}


def unfinished(model: str, folder: Path, rows: int = 4) -> Path:
    """A result of which the last round is missing."""
    with pytest.raises(UserError, match="enough"):
        judge, out = Verdicts(2 * (rows - 2)), str(folder / "out.jsonl")
        annotate(model, write(folder, rows), judge, out, scripted(), **SHORT)
    return folder / "out.jsonl.partial"


@pytest.mark.parametrize("lost", [0, 1, 40, 300, 700, 100000])
def test_what_a_crash_tore_off_is_made_again(model, tmp_path, lost):
    annotate(model, write(tmp_path), Verdicts(), str(tmp_path / "whole.jsonl"), scripted(), **SHORT)
    partial = unfinished(model, tmp_path, 8)
    partial.write_bytes(partial.read_bytes()[: max(partial.stat().st_size - lost, 0)])
    judge, out = Verdicts(), tmp_path / "out.jsonl"
    annotate(model, write(tmp_path), judge, str(out), scripted(), **SHORT)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(judge.requests) % 4 == 0 and (lost > 0) == (len(judge.requests) > 4), "whole rounds, and no more"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sampling": Sampling(3, 8)}, r"other settings: sampling\.samples_per_prompt is 2, now 3\."),
        ({"pass_threshold": 0.5}, r"other settings: pass_threshold is 1\.0, now 0\.5\."),
        ({"sampling": Sampling(2, 8, seed=1)}, r"other settings: sampling\.seed is 0, now 1\."),
        (
            {"sampling": Sampling(2, 9, 0.5)},
            r"other settings: sampling\.max_new_tokens is 8, now 9; sampling\.temperature is 1\.0, now 0\.5\.",
        ),
        ({"thinking": "on"}, r"other settings: prompts is "),
        ({"reward": FormatReward("on")}, r"other settings: reward\.class is "),
        ({"engine": NativeEngine(device="cpu")}, r"other settings: engine\.class is "),
        ({"engine": ScriptedEngine([[LETTERS["b"]]])}, r"other settings: engine\.\w+ is "),
    ],
    ids=["samples", "threshold", "seed", "sampling", "toggle", "reward", "engine", "engine's"],
)
def test_another_run_does_not_go_on_with_it(model, tmp_path, change, says):
    partial = unfinished(model, tmp_path)
    before = partial.read_bytes()
    given = {"reward": Verdicts(), "engine": scripted(), **SHORT, **change}
    with pytest.raises(UserError, match=says):
        annotate(model, JsonlSource(str(tmp_path / "prompts.jsonl")), out=str(tmp_path / "out.jsonl"), **given)
    assert partial.read_bytes() == before


def test_other_prompts_or_weights_do_not_go_on_with_it(model, tmp_path):
    unfinished(model, tmp_path)
    settings = {"engine": scripted(), **SHORT}
    other = str(tiny_folder(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"other settings: model is "):
        annotate(other, write(tmp_path, 4), Verdicts(), str(tmp_path / "out.jsonl"), **settings)
    with pytest.raises(UserError, match=r"other settings: prompts is "):
        annotate(model, write(tmp_path, 4, answer="x"), Verdicts(), str(tmp_path / "out.jsonl"), **settings)


def test_two_processes_do_not_write_one_result(model, tmp_path):
    partial = unfinished(model, tmp_path)
    settings = {"engine": scripted(), **SHORT}
    with partial.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing these annotated rows"):
            annotate(model, write(tmp_path, 4), Verdicts(), str(tmp_path / "out.jsonl"), **settings)


def test_a_reward_that_judges_nothing_stops_the_run(model, tmp_path):
    class Mute(BatchReward):
        def score_batch(self, requests):
            raise RuntimeError("no judge")

    with pytest.raises(UserError, match="none of 4 completions could be judged; the first: RuntimeError: no judge"):
        annotate(model, write(tmp_path, 4), Mute(), str(tmp_path / "out.jsonl"), scripted(), **SHORT)


def test_prompts_left_over_that_nobody_can_judge_end_the_run_all_the_same(model, tmp_path):
    class Knows(BatchReward):
        def score_batch(self, requests):
            return [RewardResult(1.0 if int(request.row["answer"]) < 3 else None) for request in requests]

    out, settings = tmp_path / "out.jsonl", {**SHORT, "prompts_per_round": 3}
    annotate(model, write(tmp_path, 5), Knows(), str(out), scripted(), **settings)
    assert [row["pass_rate"] for row in read(out)] == [1.0, 1.0, 1.0, None, None]


def test_a_prompt_without_room_is_named(model, tmp_path):
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: a prompt of \d+ tokens; .* room for 6 in front"):
        annotate(model, write(tmp_path, 2), Verdicts(), "out.jsonl", scripted(), Sampling(max_new_tokens=250))


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples_per_prompt": 0},
        {"max_new_tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": 0.0},  # eight equal completions
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_sampling_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError, match=f"sampling.{next(iter(wrong))}"):
        Sampling(**wrong)


def test_rounds_without_prompts_are_refused(model, tmp_path):
    with pytest.raises(UserError, match=r"annotate\.prompts_per_round"):
        annotate(model, write(tmp_path, 2), Verdicts(), "out.jsonl", scripted(), prompts_per_round=0)


def test_the_summary_counts_what_is_there():
    rates = [0.0, 0.0, 0.25, 1.0, None]
    rows = [{"pass_rate": rate, "samples": 0 if rate is None else 4, "truncated": 0.5} for rate in rates]
    lines = summary(rows, 4, {"reward/raised": 3, "reward/timed_out": 1})
    assert lines[0] == "5 prompts, 4 completions each: mean pass rate 0.312, 50.0% truncated"
    assert lines[1] == ("4 completions could not be judged (in this run: raised 3, timed_out 1), nor 1 prompts at all")
    assert [line.split()[3] for line in lines[2:]] == ["2", "1", "0", "0", "1"]
    assert lines[2].endswith("  " + "#" * 40) and lines[3].endswith("  " + "#" * 20)

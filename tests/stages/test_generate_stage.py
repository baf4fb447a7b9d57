"""Rows of a model's completions: what is kept, that it feeds what learns from it, and that no kill loses or doubles."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import generate_until_killed
import lightning as L
import pytest
import warm
from generate_until_killed import PROMPTS_PER_ROUND, SAMPLES, Letters

from lnlit.data.datamodule import ChatData
from lnlit.data.difficulty import DifficultySource
from lnlit.data.preference import PreferenceData
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, RewardResult
from lnlit.modules.optim import AdamW
from lnlit.modules.rpo import RPO
from lnlit.rollout.native import NativeEngine
from lnlit.rollout.scripted import ScriptedEngine
from lnlit.sampling.sampler import Weighted, request_seed
from lnlit.sampling.settings import Sampling
from lnlit.stages.annotate import annotate
from lnlit.stages.generate import Keep, Rounds, generate
from lnlit.testing.tiny import tiny_folder

#: Bytes of a tokenizer without merges: the index of "a" is 64.
A = 64
#: What the scripted engine says, chosen by the seed: right, right in other words, wrong, cut off, empty.
SAID = ["a1", "ba1", "c2", "d3333333", ""]
SCRIPT = [[ord(letter) - ord("a") + A if letter.isalpha() else ord(letter) - 33 for letter in text] for text in SAID]
LONGEST = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("policy") / "model"))


def write(folder: Path, count: int = 8, **keys) -> JsonlSource:
    rows = [{"prompt": f"say {n}", "gold": "1", **keys} for n in range(count)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(str(folder / "prompts.jsonl"))


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class Verdicts(BatchReward):
    """1 for a right answer, more for a short one; c cannot be judged."""

    def score_batch(self, requests):
        return [
            RewardResult(None if "c" in each.completion else ("1" in each.completion) * 1.5 - len(each.completion) / 10)
            for each in requests
        ]


def scripted(end: int | None = None) -> ScriptedEngine:
    return ScriptedEngine([script or [end] for script in SCRIPT])


def run(model, folder, source, keep="all", samples=5, rewards=True, **given):
    from lnlit.sampling.model import SampledModel

    engine = given.pop("engine", None) or scripted(SampledModel(model).encoder(None).end_ids()[0])
    judges = [Weighted(Verdicts(), name="verdict")] if rewards else None
    out = folder / "rows.jsonl"
    generate(model, source, str(out), judges, engine, Sampling(samples, LONGEST, seed=7), keep=keep, **given)
    return read(out)


def said(place: int, samples: int = 5) -> list[str]:
    return [SAID[request_seed(7, 0, place, sample) % len(SAID)][:LONGEST] for sample in range(samples)]


def value(text: str) -> float | None:
    return None if "c" in text else ("1" in text) * 1.5 - len(text) / 10


def test_all_completions_are_there_with_what_is_known_about_them(model, tmp_path):
    rows = run(model, tmp_path, write(tmp_path, 12, response="the gold answer", label=False), keep=Keep("all", 1.25))
    assert {text for place in range(12) for text in said(place)} == {text[:LONGEST] for text in SAID}
    for place, row in enumerate(rows):
        texts = said(place)
        assert row["messages"] == [{"role": "user", "content": f"say {place}"}] and row["gold"] == "1"
        assert row["completions"] == texts
        assert row["rewards"] == [value(text) for text in texts]
        assert row["finish_reasons"] == ["length" if text.startswith("d") else "stop" for text in texts]
        assert row["tokens"] == [min(len(text) + 1, LONGEST) for text in texts]
        judged = [value(text) for text in texts if value(text) is not None]
        assert row["pass_rate"] == (pytest.approx(sum(v >= 1.25 for v in judged) / len(judged)) if judged else None)
        assert row["replaced"] == {"response": "the gold answer", "label": False}
        assert row["generated"]["seeds"] == [request_seed(7, 0, place, sample) for sample in range(5)]
        assert row["generated"]["sampling"]["top_p"] == 1 and row["generated"]["engine"]["completions"]


def test_only_what_ended_with_an_answer_is_kept_to_learn_from(model, tmp_path):
    source = write(tmp_path, 30)
    best, right, pairs = (run(model, tmp_path, source, keep) for keep in ("best", Keep("right", 1.25), "pairs"))
    ended = [
        [text for text in said(place) if text and not text.startswith("d") and "c" not in text] for place in range(30)
    ]
    assert [row["messages"][-1] for row in best] == [
        {"role": "assistant", "content": max(texts, key=value)} for texts in ended if texts
    ]
    assert [row["reward"] for row in best] == [max(map(value, texts)) for texts in ended if texts]
    assert [row["messages"][-1]["content"] for row in right] == ["a1" for texts in ended if "a1" in texts]
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [
        ("a1", "ba1") for texts in ended if {"a1", "ba1"} <= set(texts)
    ]
    assert 0 < len(pairs) < len(right) < len(best) < 30, "all kinds of prompts must occur"


def test_the_majority_answers_where_nobody_knows(model, tmp_path, capsys):
    rows = run(model, tmp_path, write(tmp_path, 30, answer="unknown"), "majority", rewards=False)
    expected = []
    for place in range(30):
        ended = [text for text in said(place) if text and not text.startswith("d")]
        votes = [text[-1] for text in ended]
        ones, twos = votes.count("1"), votes.count("2")
        if ones != twos and max(ones, twos) > 1:
            answer = "1" if ones > twos else "2"
            first = next(text for text in ended if text.endswith(answer))
            expected.append((first, answer, [max(ones, twos), 5]))
    assert [(row["messages"][-1]["content"], row["answer"], row["votes"]) for row in rows] == expected
    assert rows[0]["replaced"] == {"answer": "unknown"} and 0 < len(rows) < 30
    assert f"{30 - len(rows)} prompts without a row" in capsys.readouterr().err


def test_another_choice_generates_nothing_again(model, tmp_path):
    class Once(ScriptedEngine):
        def generate(self, requests, sampling):
            assert not (tmp_path / "rows.jsonl").exists()
            return super().generate(requests, sampling)

    source = write(tmp_path, 4)
    engines = [Once([[A]]) for _ in range(3)]
    rows, best, again = (
        run(model, tmp_path, source, keep, engine=engine)
        for keep, engine in zip(["all", "best", "all"], engines, strict=True)
    )
    assert rows == again and len(best) == 4


def test_both_modes_are_asked_but_a_row_that_says_its_own_once(model, tmp_path):
    lines = [{"prompt": "a"}, {"prompt": "b", "thinking": "on"}, {"prompt": "c", "system": "Be brief."}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    rows = run(model, tmp_path, JsonlSource(str(tmp_path / "prompts.jsonl")), thinking=["on", False])
    assert [(row["messages"][-1]["content"], row["generated"]["thinking"]) for row in rows] == [
        ("a", "on"), ("a", "off"), ("b", "on"), ("c", None)
    ]  # fmt: skip


def rows_of_all_kinds(model, folder) -> dict[str, JsonlSource]:
    """The same prompts' rows, by what is kept."""
    found = {}
    for keep in ("all", "best", "pairs", "majority"):
        made = folder / keep
        made.mkdir()
        generated = run(model, folder, write(folder, 30, answer="0"), keep, thinking="off")
        (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in generated))
        found[keep] = JsonlSource(str(made / "rows.jsonl"))
    return found


def test_rows_feed_what_learns_from_them(model, tmp_path):
    rows = rows_of_all_kinds(model, tmp_path)
    for keep in ("best", "majority"):
        data = ChatData(model, rows[keep], sequence_length=128, micro_batch_size=2)
        data.setup("fit")
        tally = len(list(rows[keep].rows()))
        learned = [int(label) for batch in data.train_dataloader() for label in batch.labels.flatten() if label >= 0]
        ends = data.encoder.end_ids()
        answers = [row["messages"][-1]["content"] for row in rows[keep].rows()]
        assert sum(token in ends for token in learned) == tally
        assert sorted(data.encoder.tokenizer.decode([t for t in learned if t not in ends])) == sorted("".join(answers))
    for keep, completions in (("all", 3), ("pairs", 2)):
        data = PreferenceData(model, rows[keep], sequence_length=128, micro_batch_size=1, completions=completions)
        settings = {"accelerator": "cpu", "max_steps": 2, "logger": False, "enable_checkpointing": False}
        trainer = L.Trainer(enable_progress_bar=False, enable_model_summary=False, **settings)
        trainer.fit(RPO(model, AdamW(1e-3, schedule="constant", warmup_ratio=0.0), beta=0.1), data)
        assert trainer.global_step == 2
    hard = list(DifficultySource(rows["all"], pass_rate_below=0.75).rows())
    assert 0 < len(hard) < 30 and all(row["pass_rate"] < 0.75 for row in hard)


def test_rows_are_prompts_again(model, tmp_path):
    rows = rows_of_all_kinds(model, tmp_path)
    for keep in ("all", "best"):
        out = annotate(model, rows[keep], Letters(), str(tmp_path / f"{keep}.jsonl"), scripted(A), Sampling(1, 4))
        assert [row["messages"] for row in read(out)] == [row["messages"] for row in rows[keep].rows()]


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(model, tmp_path):
    """Nothing is lost or doubled, and each kill costs a round at most. `LNLIT_KILLS` is the number of kills."""
    write(tmp_path, 14)
    prompts, asked = str(tmp_path / "prompts.jsonl"), 14 * 2 * SAMPLES
    whole = generate_until_killed.run(model, prompts, str(tmp_path / "whole.jsonl"), str(tmp_path / "whole.log"))
    assert len({tuple(row["rewards"]) for row in read(whole)}) > 1, "a run in which all rows are alike proves nothing"
    wanted, moments, kills, again = int(os.environ.get("LNLIT_KILLS", "3")), random.Random(0), 0, 0
    for attempt in range(100):
        out, log, of_this = tmp_path / f"killed{attempt}.jsonl", tmp_path / f"killed{attempt}.log", 0
        while True:
            begun = log.stat().st_size if log.exists() else 0
            process = warm.Process(generate_until_killed.__file__, model, prompts, out, log)
            while process.poll() is None and (log.stat().st_size if log.exists() else 0) == begun:
                time.sleep(0.01)
            try:
                process.wait(moments.uniform(0.0, 1.0) if kills < wanted else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills, of_this = kills + 1, of_this + 1
            else:
                break
        assert process.returncode == 0, process.communicate()[1]
        assert out.read_bytes() == whole.read_bytes()
        generated = log.read_text().split()
        assert len(set(generated)) == asked
        assert len(generated) - asked <= of_this * PROMPTS_PER_ROUND * SAMPLES
        again += len(generated) - asked
        if kills >= wanted:
            break
    print(f"{kills} kills, {again} completions generated again in {attempt + 1} runs of {asked}")
    assert kills == wanted


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 8}, r"sampling\.seed is 7, now 8"),
        ({"top_p": 0.5}, r"sampling\.top_p is 1\.0, now 0\.5"),
        ({"rows": {"gold": "2"}}, "prompts is "),
        ({"rows": {"note": "new"}}, "prompts is "),
        ({"template": True}, "tokenizer is "),
        ({"weights": 1}, "model is "),
        ({"weight": 2.0}, "rewards is "),
    ],
)
def test_something_else_does_not_go_on_with_it(model, tmp_path, change, says):
    run(model, tmp_path, write(tmp_path, 3))
    before = (tmp_path / "rows.jsonl").read_bytes()
    other = Path(model)
    if "weights" in change:
        other = tiny_folder(tmp_path / "other", seed=change["weights"])
    if "template" in change:
        other = tiny_folder(tmp_path / "other")
        file = other / "chat_template.jinja"
        file.write_text(file.read_text() + " ")
    sampling = {name: change[name] for name in ("seed", "top_p") if name in change}
    reward = Weighted(Verdicts(), change.get("weight", 1.0), "verdict")
    source = write(tmp_path, 3, **change.get("rows", {}))
    engine = scripted(151)
    with pytest.raises(UserError, match=says):
        settings = Sampling(5, LONGEST, **{"seed": 7, **sampling})
        generate(str(other), source, str(tmp_path / "rows.jsonl"), [reward], engine, settings)
    assert (tmp_path / "rows.jsonl").read_bytes() == before


BAD_ROWS = {
    "not JSON": b'{"prompt": "a"',
    "not an object": b'["a"]',
    "no conversation": b'{"text": "a"}',
    "nothing to answer": b'{"messages": [{"role": "system", "content": "a"}]}',
    "not UTF-8": b'{"prompt": "\xff"}',
    "half a surrogate": b'{"prompt": "a", "note": "\\ud800"}',
    "not a number": b'{"prompt": "a", "note": NaN}',
    "a megabyte": b'{"prompt": "' + b"a" * 10**6 + b'"}',
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_is_counted_or_told(model, tmp_path, capsys, bad):
    good = b'{"prompt": "say 1"}\r\n'
    (tmp_path / "prompts.jsonl").write_bytes(b"\xef\xbb\xbf" + good + BAD_ROWS[bad] + b"\r\n" + good)
    source = JsonlSource(str(tmp_path / "prompts.jsonl"))
    with pytest.raises(UserError, match=r"prompts\.jsonl:2: "):
        run(model, tmp_path, source, strict=True)
    assert len(run(model, tmp_path, source)) == 2
    err = capsys.readouterr().err
    assert "1 rows left out" in err and err.count("prompts.jsonl:2: ") == 1 and len(err) < 2000


def test_a_tokenizer_without_a_template_is_named(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        generate(str(folder), write(tmp_path, 2), str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("keep", ["best", "right", "pairs"])
def test_what_is_chosen_by_a_reward_needs_one(model, tmp_path, keep):
    with pytest.raises(UserError, match=f"keep: {keep} needs a reward"):
        run(model, tmp_path, write(tmp_path, 2), keep, rewards=False)


def test_what_it_reads_and_what_is_not_its_own_is_not_overwritten(model, tmp_path):
    source, engine = write(tmp_path, 2), NativeEngine(4, "float32", "cpu")
    for out in ("prompts.jsonl", "other.txt"):
        (tmp_path / "other.txt").write_text("mine")
        with pytest.raises(UserError, match=r"read by this very command|is there already"):
            generate(model, source, str(tmp_path / out), engine=engine)


def test_rounds_do_not_change_the_result(model, tmp_path):
    found = []
    for name, rounds in (("a", Rounds(1, 1)), ("b", Rounds(5, 2))):
        (tmp_path / name).mkdir()
        engine = NativeEngine(4, "float32", "cpu")
        out = tmp_path / name / "rows.jsonl"
        generate(model, write(tmp_path, 7), str(out), None, engine, Sampling(2, 6), rounds=rounds)
        found.append(out.read_bytes())
    assert found[0] == found[1]

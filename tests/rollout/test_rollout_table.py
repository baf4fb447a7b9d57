"""Samples come back from a file as they were, and a folder of them goes on after a restart."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from rollout_samples import add, prompt, sample

from lnlit.errors import UserError
from lnlit.sampling.history import Entry, History
from lnlit.sampling.sample import Sample
from lnlit.sampling.table import read_table, write_table


def same(found: Sample, given: Sample) -> bool:
    unjudged = math.isnan(found.reward) and math.isnan(given.reward)
    return vars(found) == vars(given) | ({"reward": found.reward} if unjudged else {})


def test_samples_come_back_as_they_were(tmp_path):
    rich = prompt("a", task="sums", pass_rate=0.25, answer=[1, {"b": None}], thinking="on")
    odd = prompt("b", task=7, pass_rate="unknown")
    given = [
        sample("x", 0.1 + 0.2, rich, 1, good=1.0, brief=0.5),
        sample("y \u2028 \U0001f600", -1.0, rich, 2, good=0.0, brief=None),
        sample("", math.nan, odd, 3, good=None, brief=None),
    ]
    given[1] = replace(given[1], learned=False)
    write_table(tmp_path / "a.parquet", "train", 12, given)
    found = read_table(tmp_path / "a.parquet")
    assert all(map(same, found, given)) and len(found) == 3
    assert found[0].prompt is found[1].prompt and found[2].prompt is not found[1].prompt
    write_table(tmp_path / "b.parquet", "train", 12, given)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_the_columns_can_be_asked_for_by_others(tmp_path):
    import pyarrow.parquet as parquet

    given = [sample("x", 1.0, prompt("a", task="sums", pass_rate=1, extra=math.inf), good=1.0)]
    write_table(tmp_path / "a.parquet", "val", 7, given)
    (row,) = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert {key: row[key] for key in ("stage", "step", "task", "pass_rate", "thinking", "rewards/good")} == {
        "stage": "val",
        "step": 7,
        "task": "sums",
        "pass_rate": 1.0,
        "thinking": "on",
        "rewards/good": 1.0,
    }
    assert json.loads(row["prompt"])[1]["content"] == "a"
    assert json.loads(row["row"])["extra"] is None, "JSON has no infinity"


def test_half_a_surrogate_pair_does_not_end_a_run(tmp_path):
    write_table(tmp_path / "a.parquet", "val", 7, [sample("\ud800", 1.0, prompt("a", note="\udfff"))])
    (found,) = read_table(tmp_path / "a.parquet")
    assert found.text == "\\ud800" and found.prompt.row["note"] == "\udfff"


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as samples"):
        read_table(tmp_path / "a.parquet")


def test_of_the_training_the_first_and_the_newest_stay(tmp_path):
    history = History(tmp_path)
    for step in (0, 2, 4, 10, 12):
        history.add_samples("train", step, [sample("a", 1.0)], keep=3)
        history.add_samples("val", step, [sample("a", 1.0)], keep=3)
    assert history.steps("train") == [0, 10, 12]
    assert history.steps("val") == [0, 2, 4, 10, 12]


def test_a_history_can_be_cut_and_is_read_up_to_a_cut_off_line(tmp_path):
    (tmp_path / "train-notes.parquet").write_text("not ours")
    history = History(tmp_path)
    for step in (0, 1, 2):
        add(history, "train", step, [sample("a", 1.0), sample("b", step)])
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"stage": "tr')
    history = History(tmp_path)
    assert [entry.step for entry in history.entries("train")] == [0, 1, 2]
    history.cut(1)
    assert history.steps("train") == [0, 1] and (tmp_path / "train-notes.parquet").exists()
    assert History(tmp_path).entries("train") == history.entries("train") and len(history.entries("train")) == 2


def test_a_step_has_one_entry_the_last(tmp_path):
    history = History(tmp_path)
    for seconds in (1.0, 2.0):
        history.add(Entry("train", 5, 1, 8, {}, {"generate": seconds}))
    assert [entry.seconds["generate"] for entry in History(tmp_path).entries("train")] == [2.0]


def test_a_line_that_is_no_entry_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "train"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: the key 'step' is missing"):
        History(tmp_path).entries("train")

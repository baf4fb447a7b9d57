"""Models between two, evaluated by two tasks; what is picked, drawn and kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from lnlit.checkpoint.folder import read_provenance
from lnlit.errors import UserError
from lnlit.eval.front import beats_both, front, pick
from lnlit.eval.runner import Asked
from lnlit.interfaces import Continuations, Likelihood, LikelihoodTask
from lnlit.stages.evaluate import evaluated
from lnlit.stages.sweep import sweep
from lnlit.testing.tiny import mixed_spec, tiny_folder

pytest.importorskip("matplotlib")


class Prefers(LikelihoodTask):
    """Whether a model prefers one letter to another, in many contexts."""

    def __init__(self, first: str, second: str) -> None:
        self.letters = [first, second]

    def questions(self) -> Iterator[Continuations]:
        for number in range(12):
            yield Continuations(f"q{number}", f"{number} and {number * number}:", self.letters, {})

    def values(self, question: Continuations, likelihoods: Sequence[Likelihood]) -> Mapping[str, float]:
        return {"accuracy": float(likelihoods[0].log_prob > likelihoods[1].log_prob)}


class Surprise(Prefers):
    """Nats, of which less is better."""

    def values(self, question: Continuations, likelihoods: Sequence[Likelihood]) -> Mapping[str, float]:
        return {"nats": -likelihoods[0].log_prob + 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("sweep")
    return [str(tiny_folder(folder / name, seed=seed)) for seed, name in enumerate(("one", "two"))]


ASKED = Asked([Prefers("a", "b"), Prefers("c", "d")])


@pytest.fixture(scope="module")
def swept(models, tmp_path_factory) -> Path:
    return sweep(models, str(tmp_path_factory.mktemp("out") / "swept"), ASKED)


def test_nine_models_are_compared_and_one_of_the_front_is_written(models, swept):
    found = json.loads((swept / "sweep.json").read_text())
    points = found["points"]
    assert [point["weight"] for point in points] == [n / 8 for n in range(9)]
    values = [tuple(result["value"] for result in point["results"]) for point in points]
    assert len({*values}) > 2, "the models differ, or there is nothing to test"
    assert [n for n, point in enumerate(points) if point["on_front"]] == front(values)
    (picked,) = (n for n, point in enumerate(points) if point["picked"])
    assert picked == pick(values, "balanced") and values[picked] in {values[n] for n in front(values)}
    for point, own in zip(points, values, strict=True):
        assert point["beats_both"] == beats_both(own, [values[0], values[-1]])
        for side in point["results"]:
            assert side["low"] <= side["value"] <= side["high"] and side["questions"] == 12
        for end, number in zip(models, (0, 8), strict=True):
            for side, difference in enumerate(point["against"].get(end, ())):
                assert difference["value"] == pytest.approx(own[side] - values[number][side])
    share = points[picked]["weight"]
    one, two, merged = (load_file(Path(folder) / "model.safetensors") for folder in (*models, swept / "model"))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (1 - share) * one[name] + share * two[name])
    assert [each["weight"] for each in read_provenance(swept / "model")["merged"]] == [1 - share, share]
    assert (swept / "front.png").read_bytes().startswith(b"\x89PNG") and "picked" in (swept / "sweep.md").read_text()
    assert not list(swept.glob("weight-*")), "merged models that were not picked are gone"


def test_values_are_those_of_the_evaluations(swept):
    rows = [json.loads(line) for line in (swept / "eval" / "weight-0.5" / "questions.jsonl").read_text().splitlines()]
    point = next(each for each in json.loads((swept / "sweep.json").read_text())["points"] if each["weight"] == 0.5)
    for task, result in zip(("Prefers", "Prefers-2"), point["results"], strict=True):
        values = [row["results"][0]["of_all_samples"]["accuracy"] for row in rows if row["task"] == task]
        assert len(values) == 12 and fmean(values) == result["value"]


def test_a_killed_sweep_goes_on_and_asks_nothing_twice(models, swept, tmp_path, monkeypatch):
    asked: list[str] = []

    def dies_at_the_third(sources, *args):
        asked.append(Path(sources[0]).name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return evaluated(sources, *args)

    monkeypatch.setattr("lnlit.stages.sweep.evaluated", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        sweep(models, str(tmp_path / "swept"), ASKED)
    before = {file: file.read_bytes() for file in (tmp_path / "swept" / "eval").rglob("*") if file.is_file()}
    out = sweep(models, str(tmp_path / "swept"), ASKED)
    assert asked == [
        "one",
        "weight-0.125",
        "weight-0.25",
        "one",
        *(f"weight-{n / 8:g}" for n in range(1, 8)),
        "two",
    ]
    assert all(file.read_bytes() == content for file, content in before.items())
    assert (out / "sweep.json").read_bytes() == (swept / "sweep.json").read_bytes()
    assert not list(out.glob("weight-*"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"models": 1}, "expected two models, got 1"),
        ({"weights": [float("nan")]}, "expected finite numbers"),
        ({"weights": [1.5], "method": "slerp"}, "the arc ends at the two models, so from 0 to 1"),
        ({"asked": Asked([Prefers("a", "b")])}, "a front is of two results, and these are 1: Prefers. Give"),
        ({"asked": Asked([Prefers("a", "b"), Surprise("a", "b")])}, "a sweep trades shares from 0 to 1, of which more"),
        ({"asked": Asked([])}, "tasks: there is none"),
    ],
)
def test_a_mistake_is_told_before_anything_is_merged(models, tmp_path, settings, told, monkeypatch):
    monkeypatch.setattr("lnlit.stages.sweep.write_merged", lambda *_, **__: pytest.fail("a model was merged"))
    given = {"models": models, "asked": ASKED, **settings}
    given["models"] = models[: given["models"]] if isinstance(given["models"], int) else models
    with pytest.raises(UserError, match=told):
        sweep(out=str(tmp_path / "out"), **given)


def test_unlike_models_are_refused_before_anything_is_asked(models, tmp_path, monkeypatch):
    monkeypatch.setattr("lnlit.stages.sweep.evaluated", lambda *_, **__: pytest.fail("a model was asked"))
    other = tiny_folder(tmp_path / "other", mixed_spec())
    for second, told in ((str(other), "is another architecture than"), ("nowhere", "no such file or folder")):
        with pytest.raises(UserError, match=told):
            sweep([models[0], second], str(tmp_path / "out"), ASKED)
    assert not (tmp_path / "out").exists()


def test_slerp_and_the_other_rule(models, tmp_path):
    out = sweep(models, str(tmp_path / "swept"), ASKED, weights=[0.5], method="slerp", rule="mean")
    found = json.loads((out / "sweep.json").read_text())
    assert [point["weight"] for point in found["points"]] == [0, 0.5, 1] and found["rule"] == "mean"
    sums = [sum(result["value"] for result in point["results"]) for point in found["points"]]
    assert sums[[point["picked"] for point in found["points"]].index(True)] == max(sums)

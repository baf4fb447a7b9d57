"""What a policy samples and learns is the same however the run is cut: micro-batches, ranks, packing, padding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_runs import CASES, ON_RANKS, run, write_prompts
from warm import torchrun

from lnlit.data.chat import Document
from lnlit.data.packing import collate
from lnlit.rl import collector, on_policy
from lnlit.rl.batch import Packed
from lnlit.sampling.sample import Drawn
from lnlit.testing.tiny import tiny_decoder, tiny_folder

CHANGE = "relative change of a weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[str, str]:
    """(model, prompts)"""
    folder = tmp_path_factory.mktemp("policy")
    return str(tiny_folder(folder / "model")), write_prompts(folder / "prompts.jsonl")


@cache
def reference(files: tuple[str, str], case: str) -> dict[str, Any]:
    """The whole step in one packed micro-batch on one rank."""
    return run(*files, case)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest relative difference of a weight."""
    assert found["seen"] == expected["seen"]
    errors = {
        name: ((found["weights"][name] - weight).norm() / weight.norm()).item()
        for name, weight in expected["weights"].items()
    }
    for name, error in errors.items():
        assert error <= 1e-6, f"{name}: {error}"
    for name, value in expected["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name
    return max(errors.values())


@pytest.mark.parametrize("case", CASES)
def test_the_cases_say_something(files, case):
    """Samples of several lengths, cut and uncut ones, rewards that are missing, rows of many samples, weights that
    move."""
    found, start = reference(files, case), dict(tiny_decoder().named_parameters())
    assert len({len(tokens) for _, tokens, _ in found["seen"]}) > 3
    assert {reward == "nan" for *_, reward in found["seen"]} == {False, True}
    assert 0 < found["metrics"]["train/completions/clipped_ratio"] < 1
    assert found["packed"]
    assert any((found["weights"][name] - start[name]).norm() > 1e-3 * start[name].norm() for name in start)


@pytest.mark.parametrize("case", CASES)
def test_accumulation_changes_nothing(files, case, record_property):
    """In three parts, which are not of one size; two are what is padded below."""
    record_property(CHANGE, assert_same(run(*files, case, 3), reference(files, case)))


def one_per_row(padding_side: str):
    """Instead of `pack`: each sample has a row to itself, longer than any needs."""

    def pack(samples: Sequence[Drawn], learned_S: Sequence[bool], padding_id: int) -> Packed:
        rows, owners = [], []
        for number, (sample, learned) in enumerate(zip(samples, learned_S, strict=True)):
            prompt, answer = sample.rollout.prompt_ids, sample.rollout.token_ids
            rows.append([Document([*prompt, *answer], [False] * len(prompt) + [learned] * len(answer))])
            owners += [number] * (len(answer) if learned else 0)
        tokens = collate(rows, max(len(row[0]) for row in rows) + 5, padding_id, padding_side)
        return Packed(tokens, torch.tensor(owners, dtype=torch.int64), len(samples))

    return pack


@pytest.mark.parametrize(("case", "padding_side"), zip(CASES, cycle(("left", "right")), strict=False))
def test_packing_and_padding_change_nothing(files, case, padding_side, monkeypatch, record_property):
    expected = reference(files, case)
    for module in (collector, on_policy):
        monkeypatch.setattr(module, "pack", one_per_row(padding_side))
    found = run(*files, case, 2)
    assert expected["packed"] and not found["packed"]
    record_property(CHANGE, assert_same(found, expected))


@pytest.fixture(scope="module")
def two_ranks(files, tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank found; its name is the case and the number of micro-batches."""
    out = tmp_path_factory.mktemp("ranks") / "found.pt"
    run(*files, "two_updates", steps=1, root=out.parent)
    script = Path(__file__).with_name("policy_runs.py")
    torchrun(2, script, *files, out.parent, out, cwd=out.parent, timeout=280)
    return [torch.load(out.with_suffix(f".{rank}"), weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(("case", "accumulate"), ON_RANKS)
def test_two_gloo_ranks_equal_one(files, two_ranks, case, accumulate, record_property):
    """On both, for each hands on to the next rollout what it made of the last one."""
    for rank in two_ranks:
        record_property(CHANGE, assert_same(rank[f"{case} {accumulate}"], reference(files, case)))


def test_two_ranks_go_on_where_one_stopped(files, two_ranks):
    """Amid a rollout: what is left of it was drawn by the one, the next by both."""
    expected = run(*files, "two_updates", steps=3)
    drawn = len(expected["seen"]) // 2
    expected["metrics"].pop("train/rewards/Letters/none")  # counted since the process began
    for rank in two_ranks:
        assert_same(rank["resumed"], {**expected, "seen": expected["seen"][drawn:]})

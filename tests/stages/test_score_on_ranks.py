"""Processes that score together have a share of the parent each, and write what one process writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import warm
from score_on_ranks import LIMIT_S, run
from test_score_stage import WORDS, lines

from lnlit.testing.tiny import mixed_spec, tiny_folder
from lnlit.testing.tiny_library import tiny_library

#: Layer 4 of the parent holds nothing.
SHARES = [0, 2], [1, 3, 5]
#: Passes before an interruption, and candidates in a pass: on each rank three, as a layer of 40 KiB and 12 KiB of text.
PASSES, AT_ONCE = 3, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    tiny_folder(folder / "model", mixed_spec())
    tiny_library(folder / "library", folder / "model", mixed_spec())
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} {WORDS}"}) + "\n" for n in range(4)))
    return folder


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """What one process writes."""
    return run(folder, folder / "by-one" / "scores.jsonl")


@pytest.fixture(scope="module")
def two(folder, whole) -> Path:
    """The folder after the runs of two processes."""
    (folder / "left-by-one").mkdir()
    rows = whole.read_text().splitlines(keepends=True)
    (folder / "left-by-one" / "scores.jsonl").write_text("".join(rows[: 1 + PASSES]))
    script = Path(__file__).with_name("score_on_ranks.py")
    warm.torchrun(2, script, folder, cwd=folder, timeout=LIMIT_S + 20)
    return folder


def seen(folder: Path, name: str) -> list[Any]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["whole", "left-by-one", "stopped"])
def test_two_processes_write_what_one_does(two, whole, name):
    """From the beginning, after one process and after two that were interrupted."""
    assert lines(two / name / "scores.jsonl") == lines(whole)
    assert [file.name for file in (two / name).iterdir()] == ["scores.jsonl"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("block", {"granularity": "block", "only": ["layer_01/*", "layer_03/*"]}),
        ("half", {"dtype": "bfloat16"}),
        ("single", {"only": ["layer_03/ffn/noop"]}),
        ("disk", {"only": ["layer_00/*", "layer_03/*"]}),
    ],
)
def test_so_they_do_of_some_candidates(two, tmp_path, name, options):
    found, expected = lines(two / name / "scores.jsonl"), lines(run(two, tmp_path / "scores.jsonl", **options))
    assert found == expected and len(found) > 1


def test_each_holds_its_share_of_the_layers_and_the_open_one(two):
    for rank, found in zip(SHARES, seen(two, "whole"), strict=True):
        assert sorted(found["read"]) == rank  # once
        assert all(held == rank for held in found["closed"])
        opened = {layer for layer, _ in found["open"]}
        assert opened == set(range(6))
        assert all(set(held) <= {*rank, layer} for layer, held in found["open"])
        assert all(layer in held for layer, held in found["open"] if layer != 4)


def test_without_room_for_its_share_each_holds_the_open_layer_only(two):
    for rank, found in zip(SHARES, seen(two, "disk"), strict=True):
        assert set(found["read"]) == set(rank) and len(found["read"]) > 2 * len(rank)
        assert all(held == [] for held in found["closed"])
        assert all(set(held) <= {layer} for layer, held in found["open"])


def test_candidates_are_dealt_evenly_and_some_share_a_pass(two, whole):
    ours = [found["passes"] for found in seen(two, "whole")]
    assert [count for count, _ in ours[0]] == [count for count, _ in ours[1]]
    assert {count for count, _ in ours[0][:-1]} == {AT_ONCE}
    for (count, mine), (_, theirs) in zip(*ours, strict=True):
        assert mine + theirs == count and mine - theirs in (0, 1)
    assert [found["passes"] for found in seen(two, "single")] == [[[1, 1]], [[1, 0]]]


def test_what_was_done_is_not_done_again(two, whole):
    count = len(lines(whole)) - 1
    for name, done in (("left-by-one", PASSES), ("stopped", PASSES * AT_ONCE)):
        for found in seen(two, name):
            assert sum(each for each, _ in found["passes"]) == count - done


def test_one_process_goes_on_with_what_two_have_left(two, whole):
    left = two / "stopped-for-one"
    assert sum(len(lines(file)) - 1 for file in left.iterdir()) == PASSES * AT_ONCE
    assert lines(run(two, left / "scores.jsonl")) == lines(whole)
    assert [file.name for file in left.iterdir()] == ["scores.jsonl"]


def test_what_is_wrong_on_one_rank_ends_both_with_its_message(two):
    assert seen(two, "refused") == ["rank 1: it is lost."] * 2
    assert sum(len(lines(file)) - 1 for file in (two / "refused").iterdir()) == 2 * AT_ONCE


def test_a_rank_that_dies_ends_the_other(two):
    said = json.loads((two / "died-0.json").read_text())
    assert said.startswith("another process of this command has ended, and says why itself") and "\n" not in said
    assert "connection" in said.lower()

"""Ranks that share one engine get what engines of their own would give, and fail together, without waiting for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engines_on_ranks import SAMPLING, plain, weights
from warm import torchrun

from lnlit.errors import UserError
from lnlit.interfaces import RolloutRequest
from lnlit.modules.prompt_checks import check_ranks
from lnlit.rollout.native import NativeEngine
from lnlit.rollout.shared import indivisible, place_among, shared

SCRIPT = Path(__file__).with_name("engines_on_ranks.py")


@pytest.fixture
def on_ranks(tmp_path):
    def run(scenario: str, ranks: int = 2) -> list[Any]:
        """What each rank returns; None for one that has ended before."""
        torchrun(ranks, SCRIPT, scenario, tmp_path / scenario, cwd=tmp_path, timeout=110)
        files = [tmp_path / f"{scenario}.{rank}" for rank in range(ranks)]
        return [json.loads(file.read_text()) if file.exists() else None for file in files]

    return run


@pytest.mark.parametrize("ranks", [2, 4])
def test_samples_are_those_of_an_engine_per_rank_bit_by_bit(on_ranks, ranks):
    found = on_ranks("same_samples", ranks)
    for rank, each in enumerate(found):
        assert [len(rollouts) for rollouts in each["own"]] == [2 * rank] * 2
        for size in {2, ranks}:
            assert each[f"shared by {size}"] == each["own"]
            first = rank - rank % size
            assert each[f"has weights {size}"] == (rank == first)
            names = [f"device {other}" for other in range(first, first + size)]
            assert each[f"devices {size}"] == (names if rank == first else [])
        assert each["apart"] == each["own"]
        assert each["has a process"] == (rank % 2 == 0)
    own = found[1]["own"]
    assert own[0] != own[1] and len({tuple(tokens) for _, tokens, *_ in own[0] + own[1]}) == 4


def test_ranks_that_share_an_engine_keep_the_contract(on_ranks):
    on_ranks("contract")


def test_what_goes_wrong_on_one_rank_is_raised_on_each(on_ranks):
    first, second = on_ranks("errors")

    def elsewhere(rank: int, said: str) -> list[str]:
        return ["RuntimeError", f"rank {rank}, which shares an engine: {said}"]

    prompt = ["UserError", "the engine cannot answer this"]
    assert [first["prompt"], second["prompt"]] == [[prompt, True]] * 2
    assert first["bug"] == [["ValueError", "the engine is broken"], True]
    assert second["bug"] == [elsewhere(0, "ValueError: the engine is broken"), True]
    assert first["long"] == second["long"]
    (kind, said), goes_on = first["long"]
    assert kind == "UserError" and "is 310 tokens, the model's context is 256" in said and goes_on
    assert (
        first["incomplete"] == second["incomplete"]
        and "tensors that the model needs are missing" in first["incomplete"][1]
    )
    assert first["no start"] == ["ValueError", "the engine does not start"]
    assert second["no start"] == elsewhere(0, "ValueError: the engine does not start")
    assert first["gathers none"] == second["gathers none"] == [True, True]
    assert first["wants no more"] == ["ValueError", "the engine wants no more"]
    assert second["wants no more"] == elsewhere(0, "ValueError: the engine wants no more")
    assert first["gathers all"] == second["gathers all"] == [True, True]
    for rank in (0, 1):
        here, there = (first, second) if rank == 0 else (second, first)
        said = f"rank {rank} cannot gather this"
        assert here[f"rank {rank} breaks"] == ["ValueError", said]
        assert there[f"rank {rank} breaks"] == elsewhere(rank, f"ValueError: {said}")
    for when in ("after incomplete", "after 0 broke", "after 1 broke"):
        for each in (first, second):
            (kind, said), goes_on = each[when]
            assert kind == "UserError" and "no complete weights to generate with" in said and goes_on
    assert first["both break"] == [["ValueError", "rank 0 cannot gather this"], True]
    assert second["both break"] == [["ValueError", "rank 1 cannot gather this"], True]


def test_groups_that_cannot_be_are_refused_on_every_rank(on_ranks):
    first, second = on_ranks("unwilling")
    assert first == second
    (three, said), (apart, of_machines) = first["three"], first["apart"]
    assert three == apart == "UserError"
    assert "shared by 3 ranks, and the run has 2, which is no multiple" in said
    assert "ranks 0 to 1 are on machine0 and machine1" in of_machines


@pytest.mark.parametrize(("scenario", "dead"), [("death", 1), ("death_of_the_first", 0)])
def test_a_rank_that_ends_does_not_keep_the_others_waiting(on_ranks, scenario, dead):
    found = on_ranks(scenario)
    assert found[dead] is None
    assert found[1 - dead] == ["RuntimeError", f"rank {dead}, which shares an engine: it has ended"]


def test_who_closes_waits_no_more_and_the_other_is_told(on_ranks):
    """Or the two would wait for each other."""
    first, second = on_ranks("closing")
    assert first == ["RuntimeError", "rank 1, which shares an engine: it has ended"]
    assert second == ["RuntimeError", "rank 0, which shares an engine: it has ended"]


def test_the_engine_has_memory_only_while_all_ranks_have_moved_away(on_ranks):
    first, second = on_ranks("turns")
    assert first["seen"] == [
        *(["generate", 2, 2], ["sleep", 2, 0], ["wake", 0, 0]),
        *(["generate", 2, 6], ["sleep", 2, 0], ["wake", 0, 0]),
        *(["generate", 2, 4], ["sleep", 2, 0]),
    ]
    assert second["seen"] == []
    alone = NativeEngine(1, "float32", "cpu")
    for version, groups in enumerate(first["drawn"], start=1):
        alone.load_weights(weights(version, version))
        asked = [[RolloutRequest((n, 7, 9), seed) for seed in (5, 6)] for n in range(len(groups))]
        assert groups == json.loads(json.dumps([plain(alone.generate(each, SAMPLING)) for each in asked]))
    assert first["drawn"] == second["drawn"]


def test_few_prompts_keep_all_engines_busy(on_ranks):
    assert on_ranks("dealt", 4) == [[1, 3, 1], [], [1, 2, 0], []]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_rank_has_a_place_of_its_own(size):
    places = [place_among(rank, 16, size) for rank in range(16)]
    assert sorted(places) == list(range(16))
    first = sorted(range(16), key=places.__getitem__)[: 16 // size]
    assert [rank // size for rank in first] == list(range(16 // size))


def test_one_process_has_the_engine_to_itself():
    class ForEight(NativeEngine):
        ranks_per_engine = 8  # type: ignore[assignment]

    engine = ForEight(8, "float32", "cpu")
    assert shared(engine) is engine


@pytest.mark.parametrize(
    ("nodes", "ranks", "fits"), [(1, 8, True), (2, 8, True), (4, 8, False), (1, 6, False), (1, 1, True)]
)
def test_nodes_without_room_for_whole_engines_are_refused_early(nodes, ranks, fits):
    class ForFour(NativeEngine):
        ranks_per_engine = 4  # type: ignore[assignment]

    class Trainer:
        world_size, num_nodes = ranks, nodes

    assert (indivisible(4, ranks, ranks // nodes) is None) == fits
    if fits:
        check_ranks(Trainer(), ForFour())  # type: ignore[arg-type]
    else:
        with pytest.raises(UserError, match="ForFour: 4 ranks of one node share an engine, and a node has"):
            check_ranks(Trainer(), ForFour())  # type: ignore[arg-type]

"""A reward that misbehaves costs its own sample and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, NoVerdictError, Reward, RewardRequest, RewardResult
from lnlit.rewards.pool import RewardPool


class Unsendable(Exception):
    """Cannot be made again from what is pickled of it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)


class Endless:
    def __float__(self) -> float:
        time.sleep(600)
        return 1.0


class Told(Reward):
    """Does what the completion says."""

    time_limit_s = 2.0

    def score(self, request: RewardRequest):
        match request.completion:
            case "raise":
                raise RuntimeError("no idea")
            case "hang":
                time.sleep(600)
            case "crash":
                os._exit(3)
            case "quiet crash":
                os._exit(0)
            case "exit":
                sys.exit(0)
            case "unsendable":
                raise Unsendable(7, "no words")
            case "none":
                return None
            case "nothing to say":
                raise NoVerdictError("", "")
            case "endless number":
                return Endless()
            case "text":
                return "good"
            case "nan":
                return float("nan")
            case "set up wrongly":
                raise UserError("the row has no answer")
        return float(request.completion)


class Length(Reward):
    def score(self, request: RewardRequest) -> float:
        return len(request.completion)


def requests(*completions: str) -> list[RewardRequest]:
    return [RewardRequest([], completion, False) for completion in completions]


@pytest.fixture
def pool():
    pool = RewardPool({"told": Told(), "length": Length()}, workers=2)
    yield pool
    pool.close()


def test_every_fault_is_its_own_outcome(pool):
    asked = ["1", "raise", "hang", "2.5", "crash", "none", "text", "nan", "-3", "quiet crash", "exit", "unsendable"]
    asked += ["nothing to say", "endless number"]
    found = pool.score(requests(*asked))
    assert [row["told"].value for row in found] == [1, None, None, 2.5, None, None, None, None, -3, *[None] * 5]
    assert [row["length"].value for row in found] == [len(text) for text in asked]
    assert pool.outcomes == {
        f"told/{kind}": count
        for kind, count in {
            "raised": 3,
            "wrong_type": 1,
            "not_finite": 1,
            "timed_out": 2,
            "crashed": 2,
            "no_verdict": 1,
            "none": 1,
        }.items()
    }
    assert found[1]["told"].error == "RuntimeError: no idea"
    assert "took longer than 2.0 s" in found[2]["told"].error
    assert "exit code 3" in found[4]["told"].error
    assert "exit code 0" in found[9]["told"].error
    assert [row["told"].error for row in found[10:12]] == ["SystemExit: 0", "Unsendable: no words"]
    assert pool.score(requests("7"))[0]["told"].value == 7  # and it works on


class Exhausted(Reward):
    """Judges by a row, which may be at fault itself, and does what the completion says."""

    def __init__(self, time_limit_s: float) -> None:
        self.time_limit_s = time_limit_s

    def score(self, request: RewardRequest):
        match request.row.get("gold", request.completion):
            case "hang":
                9**9**9**9  # in C, where Python cannot interrupt it
            case "crash":
                os._exit(0)
            case "memory":
                raise MemoryError
            case "deep":
                raise RecursionError("too deep")
            case "unknown":
                raise NoVerdictError("unreadable_gold", "the row says: unknown")
        return 1.0


def test_a_completion_that_uses_up_its_verifier_is_paid_nothing():
    with closing(RewardPool({"it": Exhausted(2.0)}, workers=2)) as exhausted:
        found = exhausted.score(requests("right", "hang", "crash", "memory", "deep", "right"))
    assert [row["it"].value for row in found] == [1, 0, 0, 0, 0, 1]
    assert exhausted.outcomes == {"it/exhausting": 4}
    assert "took longer than 2.0 s" in found[1]["it"].error


class OnlyOnce(Reward):
    """Dies of a completion the first time alone, as if another's death were taken for its own."""

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    def score(self, request: RewardRequest) -> float:
        if request.completion == "unlucky" and not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return 1.0


def test_a_completion_that_was_only_unlucky_is_judged_again(tmp_path):
    with closing(RewardPool({"it": OnlyOnce(str(tmp_path / "died"))}, workers=1)) as pool:
        assert [row["it"].value for row in pool.score(requests("unlucky", "other"))] == [1, 1]
        assert not pool.outcomes and (tmp_path / "died").exists()


@pytest.mark.parametrize(
    ("gold", "kind"),
    [("hang", "timed_out"), ("crash", "crashed"), ("deep", "raised"), ("unknown", "unreadable_gold")],
)
def test_a_verifier_that_breaks_on_every_completion_has_no_verdict(gold, kind):
    row, limit = {"gold": gold}, 0.3 if gold == "hang" else 2.0  # it hangs while it warms up, which takes 20 times that
    with closing(RewardPool({"it": Exhausted(limit)}, workers=2)) as exhausted:
        found = exhausted.score([RewardRequest([], text, False, row) for text in ("right", "wrong")])
    assert [row["it"].value for row in found] == [None, None]
    assert exhausted.outcomes == {f"it/{kind}": 2}


class SlowToStart(Reward):
    """Like one that imports torch when it is first asked."""

    time_limit_s = 1.0

    def score(self, request: RewardRequest) -> float:
        if "started" not in vars(SlowToStart):
            time.sleep(1.5)
            SlowToStart.started = True
        return 1.0


def test_what_a_reward_imports_first_is_not_its_completions_time():
    pool = RewardPool({"slow": SlowToStart()}, workers=2)
    try:
        assert [row["slow"].value for row in pool.score(requests("a", "b", "c"))] == [1, 1, 1]
    finally:
        pool.close()


def test_a_reward_that_is_set_up_wrongly_stops_the_run(pool):
    with pytest.raises(UserError, match="the row has no answer"):
        pool.score(requests("1", "set up wrongly"))


class Model(BatchReward):
    """A reward model that now and then forgets a completion."""

    def score_batch(self, requests):
        if requests[0].completion == "raise":
            raise RuntimeError("out of memory")
        return [RewardResult(float(len(r.completion))) for r in requests if r.completion != "forget"]


@pytest.mark.parametrize(
    ("completions", "values", "outcomes"),
    [
        (("a", "bb"), [1, 2], {}),
        (("a", "forget"), [None, None], {"model/wrong_length": 2}),
        (("raise", "a"), [None, None], {"model/raised": 2}),
    ],
)
def test_a_batch_reward_sees_all_completions_at_once(completions, values, outcomes):
    pool = RewardPool({"model": Model()}, workers=1)
    assert [row["model"].value for row in pool.score(requests(*completions))] == values
    assert pool.outcomes == outcomes


class Gives(BatchReward):
    def __init__(self, what) -> None:
        self.what = what

    def score_batch(self, requests):
        return self.what


@pytest.mark.parametrize(
    ("what", "values", "outcomes"),
    [
        ([1.0, 0.5], [None, None], {"wrong_type": 2}),
        (np.array([1.0, 0.5]), [None, None], {"wrong_type": 2}),
        (None, [None, None], {"raised": 2}),
        (7, [None, None], {"raised": 2}),
        ("ab", [None, None], {"wrong_type": 2}),
        ([RewardResult("1.0"), RewardResult(b"1")], [None, None], {"wrong_type": 2}),
        ([RewardResult([1.0]), RewardResult(np.ones(2))], [None, None], {"wrong_type": 2}),
        ([RewardResult(np.float32(0.5)), RewardResult(True)], [0.5, 1.0], {}),
        ([RewardResult(None, "asleep"), RewardResult(float("inf"))], [None, None], {"none": 1, "not_finite": 1}),
        ((RewardResult(n) for n in (1, 2)), [1, 2], {}),
        ({"a": 1, "b": 2}, [None, None], {"wrong_type": 2}),
        ([None, RewardResult(1.0)], [None, 1.0], {"wrong_type": 1}),
    ],
)
def test_a_batch_reward_that_gives_something_else_is_counted(what, values, outcomes):
    pool = RewardPool({"it": Gives(what)}, workers=1)
    found = [row["it"].value for row in pool.score(requests("a", "b"))]
    assert found == values and {type(value) for value in found} <= {float, type(None)}
    assert pool.outcomes == {f"it/{kind}": count for kind, count in outcomes.items()}


def test_a_script_that_starts_at_its_import_is_told_so(tmp_path):
    """Worker processes import the script, which would make workers of its own."""
    script = tmp_path / "run.py"
    script.write_text(
        "from lnlit.interfaces import RewardRequest\n"
        "from lnlit.rewards.format import FormatReward\n"
        "from lnlit.rewards.pool import RewardPool\n"
        "RewardPool({'format': FormatReward('on')}, 1).score([RewardRequest([], 'x', False)] * 3)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode
    assert "must stand below `if __name__" in done.stderr


def test_close_ends_the_processes(pool):
    pool.score(requests("1"))
    pool.close()
    pool.close()


class DoesNotClose(Model):
    def close(self) -> None:
        raise RuntimeError("the service is gone")


def test_close_ends_the_processes_even_if_a_reward_does_not_close():
    pool = RewardPool({"model": DoesNotClose(), "length": Length(), "other": (other := Closed())}, workers=1)
    pool.score(requests("1"))
    before = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="the service is gone"):
        pool.close()
    assert before and other.closed and not multiprocessing.active_children()


class Closed(Model):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_pool_without_processes_is_refused():
    with pytest.raises(UserError, match="at least one"):
        RewardPool({"length": Length()}, 0)


def test_without_rewards_nothing_is_judged():
    assert RewardPool({}, 1).score([RewardRequest([], "a", False)] * 2) == [{}, {}]

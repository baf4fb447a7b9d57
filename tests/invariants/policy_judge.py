"""The reward of `policy_parts`. Its process imports this file, and no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

from lnlit.interfaces import Reward, RewardRequest


def is_time_to_die(where: str) -> bool:
    journal = Path(os.environ["JOURNAL"])
    rollouts = len(journal.read_text().splitlines()) if journal.exists() else 0
    return os.environ.get("DIES") == where and rollouts == int(os.environ["AFTER"])


class DeadlyReward(Reward):
    """The number of lower-case letters, judged in a process of its own, which then ends the trainer's."""

    def score(self, request: RewardRequest) -> float:
        with Path(os.environ["JOURNAL"]).with_suffix(".judges").open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        if is_time_to_die("reward"):
            parent = multiprocessing.parent_process()
            assert parent is not None and parent.pid is not None
            os.kill(parent.pid, signal.SIGKILL)
        return float(sum(letter.islower() for letter in request.completion))

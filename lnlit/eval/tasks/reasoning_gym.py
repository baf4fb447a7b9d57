"""Questions of PyPI `reasoning-gym`, as the package itself scores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.data.reasoning_gym import ReasoningGymSource
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.benchmark import Benchmark, user
from lnlit.interfaces import Question, Reward, Source
from lnlit.rewards.reasoning_gym import ReasoningGymReward


class ReasoningGym(Benchmark):
    """Short calculations, grouped by task. `accuracy` is for right answers alone, `score` what the package gives.

    Args:
        source: Rows with `question`, `answer`, `task` and, for tasks that score by it, `metadata`. By default 1000
            held-out questions of source `reasoning_gym`, which its split `train` never has.
    """

    def public(self) -> Source:
        return ReasoningGymSource("heldout", 1000, thinking="off")

    def question(self, row: Mapping[str, Any]) -> Question:
        question, task = text_of(row, "question"), text_of(row, "task")
        given = {key: row[key] for key in row if key not in ("messages", "thinking")}
        return Question(key_of(task, question), [user(question)], given, task)

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": ReasoningGymReward(partial_credit=False), "score": ReasoningGymReward()}

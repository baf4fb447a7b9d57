"""A reward for correct answers to questions of PyPI `reasoning-gym`, as the task itself scores them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from lnlit.errors import UserError, did_you_mean, optional
from lnlit.interfaces import Reward, RewardRequest
from lnlit.thinking import answer_of, last_boxed

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

#: Tasks whose scores cannot be learned from, whatever the question.
_REFUSED = {
    "game_of_life_halting": "pays for any text that is not empty where the answer is True",
    "coin_flip": "pays 1 for the answer 0, whatever the question",
    "complex_arithmetic": "pays 1 for the answer nan, whatever the question",
    "puzzle24": "pays for any four numbers that make 24, whichever the question gives",
    "composite": "is a mixture: give rows the task that made them",
}

#: Tasks that compare grids of tuples, which a row of JSON holds as lists.
_TUPLES = {"arc_agi", "rearc"}


class ReasoningGymReward(Reward):
    """What the task's own `score_answer` gives, between 0 and 1.

    A row has `task` (a reasoning-gym name), `question`, `answer` and, for tasks that accept several answers,
    `metadata`, all as reasoning-gym made them; source `reasoning_gym` writes such rows. Of the text after the thinking
    the last `\\boxed{}` or `<answer></answer>` counts, or else all of it. Needs `pip install lnlit[quickstart]`.

    Args:
        partial_credit: Pay for part of an answer as the task does. Many give something to whatever contains the right
            answer, 0.5 to 45 where it is 5, which a policy learns to use; false pays 1 or 0.
    """

    def __init__(self, partial_credit: bool = True) -> None:
        self.partial_credit = partial_credit

    def score(self, request: RewardRequest) -> float:
        row = request.row
        self.check_row(row)
        entry = {
            "question": row.get("question", ""),
            "answer": row["answer"],
            "metadata": {"source_dataset": row["task"], **(row.get("metadata") or {})},
        }
        if row["task"] in _TUPLES:
            entry["metadata"] = {key: _tuples(value) for key, value in entry["metadata"].items()}
        score = _scorer(row["task"])
        # Without its metadata a task does not fail: it swallows the error and calls every answer wrong.
        if "metadata" not in row and "metadata" in score.__func__.__code__.co_consts:
            raise UserError(f"reasoning_gym: {row['task']} scores by the question's metadata; give rows its `metadata`")
        found = _scored(score, final_answer(answer_of(request.completion)), entry)
        return found if self.partial_credit else float(found == 1)

    def final_answer(self, completion: str) -> str | None:
        return final_answer(answer_of(completion)) or None

    def check_row(self, row: Mapping[str, Any]) -> None:
        missing = [key for key in ("task", "answer") if key not in row]
        if missing:
            raise UserError(
                f"reasoning_gym: the prompt's row needs {' and '.join(missing)}; it has {', '.join(row) or 'nothing'}"
            )
        if why := _REFUSED.get(row["task"]):
            raise UserError(f"reasoning_gym: the task {row['task']} {why}. Leave it out.")


def _scored(score: Any, answer: str, entry: Mapping[str, Any]) -> float:
    """The task's score. Some tasks fail on answers of an unexpected form. These count as wrong, unless the task fails
    on the correct answer too."""
    try:
        return float(score(answer, entry=entry))
    except (MemoryError, RecursionError):
        raise
    except Exception:
        score(str(entry["answer"] or ""), entry=entry)
        return 0.0


def final_answer(text: str) -> str:
    """The last boxed or tagged answer in a text, or all of it, without spaces around."""
    boxed, tagged = last_boxed(text), list(_TAGGED.finditer(text))
    if boxed is not None and (not tagged or boxed[0] > tagged[-1].start()):
        return boxed[1].strip()
    return (tagged[-1][1] if tagged else text).strip()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@cache
def _scorer(task: str) -> Any:
    factory = optional("reasoning_gym.factory", "quickstart")
    if task not in factory.DATASETS:
        raise UserError(f"reasoning_gym: reasoning-gym has no task {task!r}.{did_you_mean(task, factory.DATASETS)}")
    return factory.get_score_answer_fn(task)

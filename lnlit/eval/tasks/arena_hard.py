"""Arena-Hard (Li et al. 2024): requests of people, where a judge compares a model's answers with a baseline's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lnlit.data.sources import naming_row, rows_of
from lnlit.errors import UserError, shown
from lnlit.eval.protocol import SamplingProtocol, text_of
from lnlit.eval.tasks.benchmark import Benchmark, user
from lnlit.eval.tasks.hub import HubFiles
from lnlit.interfaces import Answer, Question, Reward, Source
from lnlit.rewards.pair_judge import Judge, PairJudgeReward

_HUB = "lmarena-ai/arena-hard-auto"
_FOLDER = "data/arena-hard-v0.1"


class ArenaHard(Benchmark):
    """Requests whose answers are judged in both orders against those of a baseline.

    `win_rate` is the mean of both verdicts, from 0 for much worse to 1 for much better, and 0.5 on average for the
    baseline itself. `inconsistent` is 1 if each order prefers another answer.

    Args:
        judge: The judge.
        source: Rows with `uid` and `prompt`. By default the 500 requests of Arena-Hard 0.1 in
            `lmarena-ai/arena-hard-auto` on the Hugging Face hub.
        baseline: Rows with `uid` and `messages`, the last of which is the baseline's answer. By default those of
            gpt-4-0314 there.
    """

    def __init__(
        self,
        judge: Judge,
        source: Source | None = None,
        baseline: Source | None = None,
        rows: int | None = None,
        protocol: SamplingProtocol = SamplingProtocol(samples=1),
    ) -> None:
        super().__init__(source, rows, protocol)
        self.judge = judge
        self.baseline = baseline or HubFiles(_HUB, [f"{_FOLDER}/model_answer/gpt-4-0314.jsonl"])
        self._answers: Mapping[str, str] = {}

    def public(self) -> Source:
        return HubFiles(_HUB, [f"{_FOLDER}/question.jsonl"])

    def questions(self) -> Iterator[Question]:
        self._answers = self._read_baseline()
        return super().questions()

    def question(self, row: Mapping[str, Any]) -> Question:
        name, prompt = text_of(row, "uid"), text_of(row, "prompt")
        if name not in self._answers:
            raise UserError(f"{self.baseline} has no answer to {name}.")
        return Question(name, [user(prompt)], {**row, "baseline": self._answers[name]})

    def rewards(self) -> Mapping[str, Reward]:
        return {"first": PairJudgeReward(self.judge, place="first"), "second": PairJudgeReward(self.judge)}

    def values(self, answers: Sequence[Sequence[Answer]]) -> Mapping[str, Sequence[float | None]]:
        pairs = [[answer.rewards[place].value for place in ("first", "second")] for answer in answers[0]]
        wins: list[float | None] = []
        inconsistent: list[float | None] = []
        for first, second in pairs:
            if first is None or second is None:
                wins.append(None)
                inconsistent.append(None)
            else:
                wins.append((first + second) / 2)
                inconsistent.append(float((first - 0.5) * (second - 0.5) < 0))
        return {"win_rate": wins, "inconsistent": inconsistent}

    def _read_baseline(self) -> Mapping[str, str]:
        found = {}
        for number, row in enumerate(rows_of(self.baseline)):
            with naming_row(self.baseline, number):
                found[text_of(row, "uid")] = _answer(row)
        return found


def _answer(row: Mapping[str, Any]) -> str:
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, Mapping) else None
    text = content.get("answer") if isinstance(content, Mapping) else content
    if not isinstance(text, str):
        raise UserError(f"messages: expected messages that end with the baseline's answer, got {shown(messages)}.")
    return text

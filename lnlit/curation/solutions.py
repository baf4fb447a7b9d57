"""Solutions of problems: generated, judged, voted on and paired by thinking mode (Llama-Nemotron section 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datatrove.data import Document

from lnlit.curation.asking import AskStep, without_answer
from lnlit.curation.model import Model
from lnlit.curation.rows import Row, text_of
from lnlit.curation.settings import shared, stated
from lnlit.curation.step import BatchStep, Dropped, GroupStep, Outcome
from lnlit.data.rows import asked
from lnlit.errors import UserError
from lnlit.interfaces import Reward, RewardRequest, RewardResult
from lnlit.rewards.final_answer import canonical_answer
from lnlit.rewards.pool import RewardPool
from lnlit.thinking import Thinking


class Generate(AskStep):
    """Makes a row for each completion of a prompt by each of the models, under `completion`, with its thinking mode
    under `thinking`, and what it was made by under `generated`. The row's own answer is left out, but `answer` is kept.

    A completion that was cut off or is missing makes no row, and is counted.

    Args:
        models: The models. One with `thinking: on` and one with `thinking: off` make pairs of a prompt.
        rows_per_batch: The number of prompts that are answered together.
    """

    def __init__(self, models: list[Model], rows_per_batch: int = 64) -> None:
        super().__init__(rows_per_batch)
        if not models:
            raise UserError("Generate.models: expected at least one model")
        self.models = models

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        made: list[list[Row]] = [[] for _ in documents]
        why: dict[int, Dropped] = {}
        conversations: dict[int, list[dict[str, Any]]] = {}
        for number, each in enumerate(documents):
            said = _asked(each.metadata)
            if isinstance(said, Dropped):
                why[number] = said
            else:
                conversations[number] = said
        for place, model in enumerate(self.models):
            questions = [(f"{documents[number].id}/{place}", said) for number, said in conversations.items()]
            for number, answers in zip(conversations, self.ask(model, questions, None), strict=True):
                for answer in answers:
                    if missing := answer.missing():
                        why[number] = missing
                        self.stat_update(f"completions_{missing.reason}")
                        continue
                    row = without_answer(documents[number].metadata)
                    row |= {"completion": answer.text}
                    row |= {"thinking": model.mode} if model.mode else {}
                    row["generated"] = {"model": place, "tokens": answer.tokens, "seed": answer.seed}
                    made[number].append(row)
        return [rows or why[number] for number, rows in enumerate(made)]


def _asked(row: Row) -> list[dict[str, Any]] | Dropped:
    """The conversation to answer, without a toggle of its own, so that each model's counts."""
    try:
        plain = {key: value for key, value in row.items() if key not in ("thinking", "reasoning")}
        return asked(plain).messages or Dropped("no_prompt", "there is nothing to answer")
    except UserError as error:
        return Dropped("no_prompt", str(error))


class Judge(BatchStep):
    """Scores rows' completions by any reward, and drops those below a threshold. The score is kept under a column.

    A completion without a verdict is dropped, and counted by the reason.

    Args:
        reward: The reward.
        at_least: The lowest score that is kept. Null keeps all, for `BestOf`.
        column: The column of the score.
        workers: The number of processes that judge.
        rows_per_batch: The number of completions that are judged together.
    """

    def __init__(
        self,
        reward: Reward,
        at_least: float | None = 1.0,
        column: str = "reward",
        workers: int = 1,
        rows_per_batch: int = 256,
    ) -> None:
        super().__init__(rows_per_batch)
        self.reward, self.at_least, self.column, self.workers = reward, at_least, column, workers

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        read = [self._request(each.metadata) for each in documents]
        pool = shared(
            ["pool", stated(self.reward), self.workers], lambda: RewardPool({"judge": self.reward}, self.workers)
        )
        before = Counter(pool.outcomes)
        verdicts = iter(pool.score([each for each in read if isinstance(each, RewardRequest)]))
        for kind, count in (Counter(pool.outcomes) - before).items():
            self.stat_update(f"unjudged_{kind.rpartition('/')[2]}", value=count)
        return [
            each if isinstance(each, Dropped) else self._outcome(next(verdicts)["judge"], each.row) for each in read
        ]

    def _request(self, row: Row) -> RewardRequest | Dropped:
        text, messages = text_of(row, "completion"), _asked(row)
        if text is None:
            return Dropped("no_completion", "completion holds nothing")
        return messages if isinstance(messages, Dropped) else RewardRequest(messages, text, False, row)

    def _outcome(self, result: RewardResult, row: Mapping[str, Any]) -> Outcome:
        if result.value is None:
            return Dropped("unjudged")
        if self.at_least is not None and result.value < self.at_least:
            return Dropped("below_threshold")
        return {**row, self.column: result.value}


class BestOf(GroupStep):
    """Keeps the rows with the highest scores of each prompt: rejection sampling, after a `Judge` with a reward model.

    Of equal scores the first ones are kept, of each thinking mode by itself.

    Args:
        keep: The number of rows that are kept of each prompt and mode.
        column: The column of the score.
    """

    def __init__(self, keep: int = 1, column: str = "reward") -> None:
        super().__init__()
        if keep < 1:
            raise UserError(f"BestOf.keep: expected a positive number, got {keep}")
        self.keep, self.column = keep, column

    def group(self, rows: Sequence[Row]) -> list[Row | Dropped]:
        scores = [row.get(self.column) for row in rows]
        scored = [number for number, score in enumerate(scores) if _is_number(score)]
        best: set[int] = set()
        for mode in {str(row.get("thinking")) for row in rows}:
            own = [number for number in scored if str(rows[number].get("thinking")) == mode]
            best.update(sorted(own, key=lambda number: (-float(scores[number] or 0), number))[: self.keep])
        return [
            row
            if number in best
            else Dropped("not_best")
            if number in scored
            else Dropped("no_score", f"{self.column} holds no number")
            for number, row in enumerate(rows)
        ]


class MajorityVote(GroupStep):
    """Finds the answer of a problem that has none: the final answer that most of its completions reach. It becomes the
    rows' `answer`, and completions that reach another are dropped. Rows that have an answer pass.

    Args:
        at_least: The lowest share of the completions that have to reach the answer, more than this or equal to it.
    """

    def __init__(self, at_least: float = 0.0) -> None:
        super().__init__()
        if not 0 <= at_least <= 1:
            raise UserError(f"MajorityVote.at_least: expected a share from 0 to 1, got {at_least}")
        self.at_least = at_least

    def group(self, rows: Sequence[Row]) -> list[Row | Dropped]:
        open_ = [row for row in rows if row.get("answer") in (None, "")]
        found = [canonical_answer(text_of(row, "completion") or "") for row in open_]
        counts = Counter(answer for answer in found if answer is not None).most_common(2)
        outcomes: Iterator[Row | Dropped]
        if not counts or (len(counts) > 1 and counts[0][1] == counts[1][1]):
            outcomes = (Dropped("no_answer" if answer is None else "no_majority") for answer in found)
        elif counts[0][1] < self.at_least * len(open_):
            outcomes = (Dropped("no_majority") for _ in found)
        else:
            outcomes = (self._voted(row, answer, counts[0][0]) for row, answer in zip(open_, found, strict=True))
        return [row if row.get("answer") not in (None, "") else next(outcomes) for row in rows]

    def _voted(self, row: Row, answer: str | None, wanted: str) -> Row | Dropped:
        if answer is None:
            return Dropped("no_answer")
        return {**row, "answer": wanted} if answer == wanted else Dropped("minority")


class OnOffPairs(GroupStep):
    """Keeps one row with thinking on and one with thinking off of each prompt, and drops prompts without both."""

    def group(self, rows: Sequence[Row]) -> list[Row | Dropped]:
        first: dict[Thinking, int] = {}
        for number, row in enumerate(rows):
            mode = row.get("thinking")
            if mode == "on" or mode == "off":
                first.setdefault(mode, number)
        if len(first) < 2:
            return [Dropped("no_partner") for _ in rows]
        return [row if number in first.values() else Dropped("has_a_pair") for number, row in enumerate(rows)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

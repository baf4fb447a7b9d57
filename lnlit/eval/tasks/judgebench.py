"""JudgeBench (Tan et al. 2025): whether a model, as a judge, tells a right answer from a wrong one (Llama-Nemotron
section 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.benchmark import Benchmark, user
from lnlit.interfaces import Answer, NoVerdictError, Question, Reward, RewardRequest, Source
from lnlit.rewards.choice import chosen

_PROMPT = """You are an impartial judge of two answers to a question. One of them is right and the other is wrong, or \
one is clearly better. First work out the answer yourself. Then compare. Neither the order nor the length of the \
answers may matter. End with \\boxed{{A}} if Answer A is better, or with \\boxed{{B}} if Answer B is.

[Question]
{question}

[Answer A]
{first}
[End of Answer A]

[Answer B]
{second}
[End of Answer B]"""

#: The paper's columns (table 6) by the beginning of a row's `source`.
_GROUPS = {"mmlu": "knowledge", "livebench-reasoning": "reasoning", "livebench-math": "math", "livecodebench": "coding"}


class JudgeBench(Benchmark):
    """Pairs of answers, each shown in both orders, grouped as in the paper's table.

    `accuracy` is 1 if the right answer is chosen in both orders, `inconsistent` is 1 if the two choices differ, and
    `undecided` is the share of the orders without a choice.

    Args:
        source: Rows with `question`, `response_A`, `response_B`, `label` (`A>B` or `B>A`) and perhaps `source` and
            `pair_id`. By default the pairs of GPT-4o in `ScalerLab/JudgeBench` on the Hugging Face hub.
    """

    SORTED_BY_GROUP = True

    def public(self) -> Source:
        return HuggingFaceSource("ScalerLab/JudgeBench", "gpt")

    def question(self, row: Mapping[str, Any]) -> Question:
        if row.get("label") not in ("A>B", "B>A"):
            raise UserError(f"label: got {row.get('label')!r:.80}; expected A>B or B>A.")
        if text_of(row, "response_A") == text_of(row, "response_B"):
            raise UserError("response_A and response_B are the same, so that neither is better.")
        text_of(row, "question")
        kind = str(row.get("source") or "")
        group = next((name for start, name in _GROUPS.items() if kind.startswith(start)), kind)
        key = str(row.get("pair_id") or key_of(row["question"], row["response_A"], row["response_B"]))
        return Question(key, [user(_prompt(row, swapped)) for swapped in (False, True)], row, group)

    def rewards(self) -> Mapping[str, Reward]:
        return {"right": Verdict(), "decided": Decided()}

    def values(self, answers: Sequence[Sequence[Answer]]) -> Mapping[str, Sequence[float | None]]:
        found = list(zip(*answers, strict=True))
        rights = [[answer.rewards["right"].value for answer in pair] for pair in found]
        decided = [[answer.rewards["decided"].value for answer in pair] for pair in found]
        judged = [None not in (*right, *known) for right, known in zip(rights, decided, strict=True)]
        numbers = {
            "accuracy": [float(all(right)) for right in rights],
            "inconsistent": [float(all(d) and any(r) != all(r)) for r, d in zip(rights, decided, strict=True)],
            "undecided": [1 - sum(map(bool, known)) / len(known) for known in decided],
        }
        return {
            name: [n if is_known else None for n, is_known in zip(column, judged, strict=True)]
            for name, column in numbers.items()
        }


class Verdict(Reward):
    """1 if a completion chooses the better answer of the row, in whichever order its prompt shows them, else 0."""

    def score(self, request: RewardRequest) -> float:
        shown = request.messages[-1]["content"]
        swapped = shown == _prompt(request.row, True)
        if not swapped and shown != _prompt(request.row, False):
            raise NoVerdictError("other_prompt", "the prompt is none of the two that this row makes")
        better = "A" if (request.row["label"] == "A>B") != swapped else "B"
        return float(_choice(request.completion) == better)


class Decided(Reward):
    """1 if a completion chooses one of two answers, else 0."""

    def score(self, request: RewardRequest) -> float:
        return float(_choice(request.completion) is not None)


def _choice(text: str) -> str | None:
    choice = chosen(text)
    return choice if choice in ("A", "B") else None


def _prompt(row: Mapping[str, Any], swapped: bool) -> str:
    first, second = row["response_A"], row["response_B"]
    if swapped:
        first, second = second, first
    return _PROMPT.format(question=row["question"], first=first, second=second)

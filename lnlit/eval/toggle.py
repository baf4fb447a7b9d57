"""Evaluates the reasoning toggle: whether answers obey it and are correct (Llama-Nemotron sections 1 and 4)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lnlit.eval.intervals import share
from lnlit.notation import tidy, tidy_text, word_of
from lnlit.thinking import answer_of, last_boxed, obeys

_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d+(?:\.\d+)?|(?<!\d)\.\d+)(?:/\d+)?")
_FRACTION = re.compile(r"(-?)\\[dtc]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}")


@dataclass(frozen=True)
class Share:
    """The fraction `hits` / `total` with its 95% interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return share(self.hits, self.total).value

    @property
    def interval(self) -> tuple[float, float]:
        """From 0 to 1 if one of them says nothing of others."""
        found = share(self.hits, self.total)
        if found.low is None or found.high is None:
            return (0.0, 1.0) if self.total else (math.nan, math.nan)
        return found.low, found.high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:6.1%} ({low:.0%}-{high:.0%})"


def final_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, else the last number after any thinking, else None."""
    after = answer_of(text)
    if boxed := last_boxed(after):
        return tidy(boxed[1])
    numbers = _NUMBER.findall(tidy_text(after).replace(",", ""))
    return numbers[-1] if numbers else None


def canonical_answer(text: str) -> str | None:
    """The final answer in a form in which equal numbers and equal words are equal texts, as for a majority vote. None
    if there is none."""
    answer = final_answer(text)
    if answer is None:
        return None
    number = _number(answer)
    return str(number) if number is not None else word_of(answer) or answer.replace(" ", "") or None


def is_correct(text: str, answer: str) -> bool:
    """True if the final answer equals `answer`, compared as numbers if both are numbers. Expressions are compared as
    text; the reward `math_answer` compares their values."""
    given, right = final_answer(text), tidy(answer)
    if given is None:
        return False
    numbers = _number(given), _number(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return given == right or (word_of(given) is not None and word_of(given) == word_of(right))


def _number(text: str) -> Fraction | None:
    """A tidy answer as a number, or None if it is anything else."""
    plain = _FRACTION.sub(r"\1\2/\3", text.partition("\\text")[0].replace("\\%", "").rstrip("% ")).replace(",", "")
    try:
        return Fraction(plain.removeprefix("--"))
    except (ValueError, ZeroDivisionError):
        return None


def best_constant(answers: Sequence[str]) -> Share:
    """The accuracy of always giving the most frequent answer: a floor that a model must beat."""
    return Share(max(Counter(answers).values(), default=0), len(answers))


def echo_last_number(questions: Sequence[str], answers: Sequence[str]) -> Share:
    """The accuracy of repeating the last number of the question."""
    return Share(sum(is_correct(q, a) for q, a in zip(questions, answers, strict=True)), len(answers))


@dataclass(frozen=True)
class ToggleScore:
    """The results of one thinking mode over the evaluated rows."""

    obedience: Share
    accuracy: Share
    truncated: Share


def score(texts: Sequence[str], finished: Sequence[bool], answers: Sequence[str], thinking: str) -> ToggleScore:
    """Scores one thinking mode. `texts` are whole answers, and `finished` says whether each ended by itself."""
    rows = len(texts)
    return ToggleScore(
        Share(sum(obeys(text, thinking) for text in texts), rows),
        Share(sum(is_correct(text, answer) for text, answer in zip(texts, answers, strict=True)), rows),
        Share(sum(not done for done in finished), rows),
    )

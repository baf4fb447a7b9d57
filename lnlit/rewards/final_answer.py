r"""The final answer of a completion in one form, so that equal answers are equal texts: what votes count.

Numbers are compared by their value, words without regard to case, and all else as tidy LaTeX. Computing more would need
the time limits of `math_answer`, which alone knows that `\sqrt{8}` is `2\sqrt{2}`; in a vote these are two answers.
"""

from __future__ import annotations

import re
from fractions import Fraction

from lnlit.notation import tidy, tidy_text, word_of
from lnlit.thinking import answer_of, last_boxed

_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d+(?:\.\d+)?|(?<!\d)\.\d+)(?:/\d+)?")
_FRACTION = re.compile(r"(-?)\\[dtc]?frac\s*(?:\{(-?\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
_ASSIGNED = re.compile(r"[A-Za-z]\s*=(?=[^=]+$)")


def final_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, else the last number after any thinking, else None."""
    after = answer_of(text)
    if boxed := last_boxed(after):
        return tidy(boxed[1])
    numbers = _NUMBER.findall(_with_slashes(tidy_text(after)).replace(",", ""))
    return numbers[-1] if numbers else None


def canonical_answer(text: str) -> str | None:
    """The final answer of a text in the form in which answers are compared. None if there is none."""
    answer = final_answer(text)
    return None if answer is None else _in_one_form(answer)


def is_correct(text: str, answer: str) -> bool:
    """True if the final answer of a text has the same form as `answer`. The reward `math_answer` also finds equal what
    is written otherwise."""
    given = canonical_answer(text)
    return given is not None and given == _in_one_form(tidy(answer))


def _in_one_form(answer: str) -> str | None:
    """A tidy answer in one form, or None if nothing is left of it."""
    answer = _ASSIGNED.sub("", answer, count=1) if _ASSIGNED.match(answer) else answer
    number = _number(answer)
    if number is not None:
        return str(number)
    return word_of(answer) or re.sub(r"\\[dtc]frac", r"\\frac", answer.replace(" ", "")) or None


def _number(text: str) -> Fraction | None:
    """A tidy answer as a number, or None if it is anything else."""
    plain = _with_slashes(text.partition("\\text")[0].replace("\\%", "").rstrip("% ")).replace(",", "")
    try:
        return Fraction(plain.strip().removeprefix("--"))
    except (ValueError, ZeroDivisionError):
        return None


def _with_slashes(text: str) -> str:
    """A text whose fractions of whole numbers are written with a slash."""
    return _FRACTION.sub(lambda found: f"{found[1]}{found[2] or found[3]}/{found[4] or found[5]}", text)

r"""Decides whether two answers are the same. math-verify reads and compares them, with guards against its errors.

It compares decimals by their first six places, so that all tiny numbers are equal. It ignores bases, so that `4210_7`
equals `4210_5`. It ignores the order of letters, so that `seat` equals `east`. It drops units with their powers. And it
computes whatever it is given, however large.
"""

from __future__ import annotations

import logging
import math
import re
from decimal import Context, Decimal
from itertools import product
from typing import Any

import sympy
from math_verify import parse, verify
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from lnlit.errors import UserError
from lnlit.notation import tidy, tidy_text, word_of

_IN_A_BASE = re.compile(
    r"(-?)([0-9][0-9A-Za-z. ]*?)\s*(?:_\s*\{?\s*\(?\s*(?:\\text\s*\{)?\s*([0-9]+|[a-z]+)\)?[\s})]*"
    r"|(?:\\text\s*\{)?\s*\(?(?:in )?base[\s}-]*([0-9]+|[a-z]+)\)?\s*\}?)"
)
_NAMES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_BASES = {name: number for number, name in enumerate(_NAMES, start=2)} | {"sixteen": 16}
_UNIT = re.compile(r"\\text\s*\{\s*([A-Za-z][A-Za-z /.]*)\}\s*\^\s*\{?\s*(\d)\s*\}?$")
_SAID = re.compile(
    r"answer(?:\s+is|\W*:)\s*(.*)|\$([^$]+)\$|\\[(\[](.*?)\\[)\]]|\*\*(?![^*]*answer)([^*]+)\*\*", re.IGNORECASE
)
#: Text that math-verify ignores, so that `\max 5`, `> 5` and `5 \text{ or more}` would all be 5.
_PASSED_OVER = re.compile(
    r"^(?:[<>]|\\(?:[gl]e(?:q|qslant)?|[gl]t|[gl]g|[gl](?:trsim|esssim)|neq?|neg|lnot|not|n?mid|propto|equiv|deg|det|gcd"
    r"|lcm|max|min|sup|inf|arg|lim|sum|prod|partial|forall|exists|operatorname\s*\{\w+\})(?![A-Za-z]))"
    r"|\bor (?:more|less|fewer|greater)\b"
)

#: Numbers with more binary digits are compared as text, because computing one may take forever.
_MOST_BITS = 100_000
#: The number of significant digits from which on a decimal may approximate a number with infinitely many.
_FEWEST_DIGITS = 6


class Answer:
    """The correct answer to a question, for comparisons. Raises `UserError` if it cannot be read.

    Args:
        gold: The answer in LaTeX or in words.
        question: The question. A base that it names may be missing in the answer.
    """

    def __init__(self, gold: str, question: str = "") -> None:
        self.gold, self.question = tidy(gold), question
        self.word, self.in_base = word_of(self.gold), _number_in_base(self.gold)
        self.values = _values(rf"${self.gold}$") if self.gold else []
        if not self.values and not self.word:
            raise UserError(f"{gold!r} cannot be read as mathematics")

    @property
    def is_of_several_values(self) -> bool:
        return any(isinstance(value, (sympy.Set, sympy.Tuple)) for value in self.values)

    def is_in(self, text: str) -> bool:
        """True if the final result of a text is this answer."""
        text = tidy_text(text)
        if self.word:
            said = [next(filter(None, found.groups()), "") for found in _SAID.finditer(text)] or [text]
            return _same_words(self.word, word_of(tidy(said[-1])))
        return self._is_among(_values(text))

    def equals(self, answer: str) -> bool:
        """True if an answer that stands alone equals this one."""
        answer = tidy(answer)
        word = word_of(answer)
        if self.word and word:
            return _same_words(self.word, word)
        in_base = _number_in_base(answer)
        if self.in_base or in_base:
            return self._is_same_number(answer, in_base)
        if _PASSED_OVER.findall(answer) != _PASSED_OVER.findall(self.gold):
            return False
        unit, own = _UNIT.search(answer), _UNIT.search(self.gold)
        if unit and own and unit[2] != own[2]:
            return False
        return self._is_among(_values(rf"\boxed{{{answer}}}")) if answer else False

    def _is_same_number(self, answer: str, in_base: tuple[str, int] | None) -> bool:
        if self.in_base:
            return in_base == self.in_base if in_base else answer.replace(" ", "").lower() == self.in_base[0]
        digits, base = in_base or ("", 10)
        named = rf"base[\s$-]*(?:{base}|{_name(base)})\b|_\{{?{base}\b"
        if base != 10 and not re.search(named, self.question):
            return False
        return self.gold.replace(" ", "").lower() == digits

    def _is_among(self, values: list[Any]) -> bool:
        return any(_is_same(gold, value) for gold, value in product(self.values, values))


def _is_same(gold: Any, value: Any) -> bool:
    if isinstance(gold, str) or isinstance(value, str) or _is_too_large(gold) or _is_too_large(value):
        return type(gold) is type(value) and bool(gold == value)
    try:
        if _is_number(gold) and _is_number(value) and (_is_equal(gold, value) or _is_approximation(gold, value)):
            return True
        return verify(gold, value, timeout_seconds=0, allow_set_relation_comp=True) and not _differ(gold, value)
    except (MemoryError, RecursionError):  # whose fault that is, is not said here
        raise
    except Exception:  # of every kind, where SymPy cannot do what an answer asks for
        return False


def _values(text: str) -> list[Any]:
    """What math-verify finds in a text: an expression and its text, or nothing."""
    # No time limits of its own, and no warning of it: those are alarm signals, and this process may be killed.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    found = [_with_one_i(value) for value in parse(text, parsing_timeout=0)]
    return [_union(value) for value in found] if re.search(r"\bor\b|\\lor\b|\\vee\b", text) else found


def _with_one_i(value: Any) -> Any:
    """The expression with a single symbol `i`. math-verify has two that are never equal: not real in `2 i`, and real in
    `2i`."""
    if not isinstance(value, (sympy.Basic, sympy.MatrixBase)):
        return value
    return value.xreplace({symbol: sympy.Symbol("i", real=True) for symbol in value.free_symbols if str(symbol) == "i"})


def _union(value: Any) -> Any:
    """The set of numbers that satisfy a condition such as `x < 2 or x > 3`; other values unchanged."""
    parts = [part for part in value.args if isinstance(part, Relational)] if isinstance(value, sympy.FiniteSet) else []
    if not parts or len(parts) < len(value.args) or len(value.free_symbols) != 1:
        return value
    return sympy.Or(*parts).as_set()


def _same_words(gold: str, given: str | None) -> bool:
    if given and re.fullmatch(r"[a-z](?:, [a-z])+", gold):  # several choices
        return sorted(gold.split(", ")) == sorted(given.split(", "))
    return gold == given


def _number_in_base(answer: str) -> tuple[str, int] | None:
    found = _IN_A_BASE.fullmatch(answer)
    if not found:
        return None
    sign, digits, *bases = found.groups()
    name = next(filter(None, bases))
    base = int(name) if name.isdecimal() else _BASES.get(name, 0)
    return (sign + digits.replace(" ", "").lower(), base)


def _name(base: int) -> str:
    return next((name for name, number in _BASES.items() if number == base), str(base))


# Sizes, before anything is computed


def _is_too_large(value: Any) -> bool:
    try:
        return not _bits(value) <= _MOST_BITS
    except RecursionError:
        return True


def _bits(value: Any) -> float:
    """A rough number of binary digits of the largest number that occurs when an expression is computed."""
    if isinstance(value, sympy.Rational):
        return float(max(value.p.bit_length(), value.q.bit_length()))
    if isinstance(value, (sympy.MatrixBase, sympy.Basic)):
        parts = value.flat() if isinstance(value, sympy.MatrixBase) else list(value.args)
    else:
        return 0.0
    sizes = [_bits(part) for part in parts]
    if isinstance(value, sympy.Pow):
        base, exponent = value.args
        if sizes[1] > 64:
            return math.inf if base not in (0, 1, -1) else 1.0
        times = _about(exponent)
        # of a sum in brackets every term is written out
        growth = 1 if base.is_number else 8 * len(base.free_symbols)
        return max(*sizes, abs(times) * max(sizes[0], 1.0) * growth)
    if isinstance(value, (sympy.factorial, sympy.binomial)):
        times = max((abs(_about(part)) for part in parts), default=0.0)
        return max(*sizes, times * math.log2(times + 2))
    if isinstance(value, (sympy.Sum, sympy.Product)):
        ends = [abs(_about(end)) for limits in value.args[1:] for end in limits.args[1:]]
        return max(*sizes, *(100 * end for end in ends if math.isfinite(end)), 0.0)
    return sum(sizes) if isinstance(value, sympy.Mul) else max(sizes, default=0.0)


def _about(value: Any) -> float:
    """The approximate value of an exponent, which is not a large number itself."""
    try:
        return float(value.evalf(5)) if value.is_number else 1.0
    except (TypeError, ValueError, OverflowError):
        return math.inf


# Numbers


def _exact(value: Any) -> Any:
    """The expression with every decimal replaced by an exact fraction."""
    return value.xreplace({part: sympy.Rational(str(part)) for part in value.atoms(sympy.Float)}).doit()


def _differ(gold: Any, value: Any) -> bool:
    """True if numbers in two expressions that math-verify considers equal differ by more than rounding."""
    if isinstance(gold, sympy.Eq) and isinstance(value, sympy.Eq):
        return gold.lhs == value.lhs and _differ(gold.rhs, value.rhs)
    gold, value = (part.rhs if isinstance(part, sympy.Eq) else part for part in (gold, value))
    parts = [_parts(gold), _parts(value)]
    if all(parts) and len(parts[0]) == len(parts[1]):
        if isinstance(gold, sympy.FiniteSet) or isinstance(value, sympy.FiniteSet):
            return any(all(_differ(own, other) for other in parts[1]) for own in parts[0])
        return any(map(_differ, *parts))
    if not isinstance(gold, sympy.Expr) or not isinstance(value, sympy.Expr):
        return False
    points = [_at_a_point(part) for part in (gold, value)]
    if None in points:
        return False
    return all(
        not _close(own, other) for own, other in product(_as_percent(gold, points[0]), _as_percent(value, points[1]))
    )


def _parts(value: Any) -> list[Any]:
    if isinstance(value, sympy.Interval):
        return [value.start, value.end]
    if isinstance(value, (sympy.FiniteSet, sympy.Tuple)):
        return list(value.args)
    return value.flat() if isinstance(value, sympy.MatrixBase) else []


def _at_a_point(value: Any) -> Any:
    """The value of an expression when each variable has a distinct value; None if it is not a number."""
    if value.atoms(AppliedUndef) or any(len(variable.name) > 1 for variable in value.free_symbols):
        return None
    at = {variable: sympy.Rational(ord(variable.name) % 31 + 2, 7) for variable in value.free_symbols}
    found = _exact(value.xreplace(at)).evalf(30)
    return found if found.is_number and found.is_finite else None


def _as_percent(value: Any, number: Any) -> list[Any]:
    """Both readings of a percentage, since 9 % may mean 9 or 0.09."""
    return [number, number * 100] if value.has(sympy.UnevaluatedExpr) else [number]


def _close(a: Any, b: Any) -> bool:
    size = max(abs(a), abs(b))
    return bool(size < 1e-60 or abs(a - b) <= size * 1e-12)


def _is_number(value: Any) -> bool:
    return isinstance(value, sympy.Expr) and not value.free_symbols


def _is_equal(gold: Any, value: Any) -> bool:
    """True if fractions or decimals are equal without rounding. Other numbers are left to math-verify."""
    exact, other = _exact(gold), _exact(value)
    if not exact.is_Rational or not other.is_Rational:
        return False
    return any(own == its for own, its in product(_as_percent(gold, exact), _as_percent(value, other)))


def _is_approximation(gold: Any, value: Any) -> bool:
    """True if one is a decimal and the other, with more digits, rounds or truncates to it."""
    decimals = [part for part in (gold, value) if isinstance(part, sympy.Float)]
    if not decimals:
        return False
    short = min(decimals, key=_digits)
    long = _exact(value if short is gold else gold)
    digits = _digits(short)
    if digits < _FEWEST_DIGITS or long.is_integer or not long.is_real:
        return False
    if len(decimals) == 2 and abs(short) * 10**_FEWEST_DIGITS > 10**digits:  # 6 of the digits after the point
        return False
    exact = long.evalf(40)
    return _written(exact, digits, "ROUND_HALF_UP") == _written(short, digits) or _written(
        exact, digits, "ROUND_DOWN"
    ) == _written(short, digits)


def _digits(decimal: Any) -> int:
    """The number of significant digits."""
    return len(Decimal(str(decimal)).normalize().as_tuple().digits)


def _written(number: Any, digits: int, rounding: str = "ROUND_HALF_UP") -> Any:
    return Context(prec=digits, rounding=rounding).create_decimal(Decimal(str(number)))

"""Toggle rows from PyPI `reasoning-gym` arithmetic, with step-by-step traces that a program wrote and checked.

Every number in a trace is computed here and the last one is compared with reasoning-gym's answer, so the rows are
correct by construction. They need no hub: this is the data of the quickstart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import islice
from typing import Any, Literal

from lnlit.data.split import Split, check_split, is_heldout
from lnlit.errors import UserError, optional, unknown_key
from lnlit.interfaces import Source
from lnlit.thinking import on_or_off

#: Settings of each task unless the user gives others: questions that a 135M model learns in a few hundred steps.
DEFAULTS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 3,
        "min_digits": 1,
        "max_digits": 1,
        "operators": ["+", "-", "*"],
        "allow_parentheses": False,
        "allow_negation": False,
    },
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 60},
}

_SEED_STRIDE = 1_000_003  # reasoning-gym seeds item i with seed + i, so neighbouring seeds repeat each other
_PATIENCE = 20_000  # draws without a new question before a task counts as exhausted


class ReasoningGymSource(Source):
    """Arithmetic questions with short `<think>` traces ("on") and with the bare answer ("off"), every question once.

    A question belongs to `train` or `heldout` by the hash of its expression, whatever the seed, size and wording, so
    the splits never share a question. Needs `pip install lnlit[quickstart]`.

    Args:
        split: `train` or `heldout`.
        size: Number of rows.
        tasks: Names out of chain_sum, basic_arithmetic, products, gcd, taken in turn; or a mapping from names to
            settings of the reasoning-gym task.
        thinking: `on`, `off`, or `both`: each question twice in a row, first on, then off.
        seed: Seed of the questions within the split.
        heldout_percent: Share of all questions that is held out. Give both splits the same.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        tasks: list[str] | dict[str, dict[str, Any]] | None = None,
        thinking: Literal["on", "off", "both"] | bool = "both",
        seed: int = 0,
        heldout_percent: int = 10,
    ) -> None:
        check_split("reasoning-gym", split, heldout_percent)
        if size < 1:
            raise UserError(f"reasoning-gym: size must be positive, got {size}")
        tasks = ["chain_sum", "basic_arithmetic"] if tasks is None else tasks
        settings = dict(tasks) if isinstance(tasks, dict) else {name: {} for name in tasks}
        if not settings:
            raise UserError(f"reasoning-gym: no task given; choose from {', '.join(DEFAULTS)}")
        for name in settings:
            if name not in DEFAULTS:
                raise unknown_key("reasoning-gym tasks", name, DEFAULTS)
        self.split = split
        self.size = size
        self.tasks = {name: {**DEFAULTS[name], **(chosen or {})} for name, chosen in settings.items()}
        self.thinking = "both" if thinking == "both" else on_or_off(thinking)
        self.seed = seed
        self.heldout_percent = heldout_percent

    def __str__(self) -> str:
        return f"reasoning-gym {'+'.join(self.tasks)} ({self.split}, seed {self.seed}, {self.size} rows)"

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        return islice(self._rows(), start, self.size)

    def _rows(self) -> Iterator[dict[str, Any]]:
        modes = ("on", "off") if self.thinking == "both" else (self.thinking,)
        questions = [self._questions(name) for name in self.tasks]
        while True:
            for name, items in zip(self.tasks, questions, strict=True):
                question, answer, steps = next(items)
                for mode in modes:
                    yield toggle_row(question, answer, steps, mode, name)

    def _questions(self, name: str) -> Iterator[tuple[str, str, str]]:
        """(question, answer, steps) of one task, no expression twice."""
        dataset = _dataset(name, self.tasks[name], self.seed * _SEED_STRIDE)
        seen: set[str] = set()
        misses = index = 0
        while misses < _PATIENCE:
            item = dataset[index]
            index += 1
            expression = _expression(name, item["metadata"])
            steps, value = (solve_gcd if name == "gcd" else solve_arithmetic)(expression)
            # Without parentheses reasoning-gym ignores precedence (2 + 3 * 4 = 20): such questions are left out.
            wrong = str(value) != item["answer"]
            if wrong or expression in seen or is_heldout(expression, self.heldout_percent) != (self.split == "heldout"):
                misses += 1
                continue
            misses = 0
            seen.add(expression)
            yield item["question"], item["answer"], steps
        raise UserError(
            f"reasoning-gym: {name} has only {len(seen)} different {self.split} questions with its settings, too few "
            f"for {self.size} rows. Lower size, allow more digits or terms, or drop the task."
        )


def toggle_row(question: str, answer: str, steps: str, thinking: str, task: str) -> dict[str, Any]:
    """One chat row: the steps between think tags (on) or none (off), then the boxed answer."""
    final = f"The answer is \\boxed{{{answer}}}."
    reply = f"<think>\n{steps}\n</think>\n\n{final}" if thinking == "on" else final
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "thinking": thinking, "question": question, "answer": answer, "task": task}


def _dataset(name: str, settings: Mapping[str, Any], seed: int) -> Any:
    reasoning_gym = optional("reasoning_gym", "quickstart")
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=2**31, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"reasoning-gym: {name} does not take the settings {dict(settings)}: {error}") from error


def _expression(name: str, metadata: Mapping[str, Any]) -> str:
    if name == "gcd":
        return " ".join(str(number) for number in metadata["numbers"])
    expression = str(metadata["expression"])
    if not re.fullmatch(r"\d+( [-+*] \d+)*", expression):
        raise UserError(
            f"reasoning-gym: no steps can be written for {expression!r} of {name}. Leave out negation, parentheses, "
            "division and other spacing in its settings."
        )
    return expression


def solve_arithmetic(expression: str) -> tuple[str, int]:
    """Steps and value of a flat expression like `7 + 3 * 12`: products first, then sums from left to right."""
    first, *rest = expression.split()
    lines: list[str] = []
    terms: list[tuple[int, int]] = [(1, int(first))]  # (sign, value)
    for operator, number in zip(rest[::2], map(int, rest[1::2]), strict=True):
        if operator == "*":
            sign, value = terms[-1]
            lines.append(_multiply(value, number))
            terms[-1] = (sign, value * number)
        else:
            terms.append((-1 if operator == "-" else 1, number))
    total = terms[0][1]
    for sign, value in terms[1:]:
        lines.append(_add(total, value) if sign > 0 else _subtract(total, value))
        total += sign * value
    return "\n".join(lines) or f"{total}", total


def solve_gcd(numbers: str) -> tuple[str, int]:
    """Euclid's algorithm, one division with remainder per step."""
    lines: list[str] = []

    def divide(a: int, b: int) -> int:
        while b:
            lines.append(f"{a} = {a // b} * {b} + {a % b}")
            a, b = b, a % b
        return a

    value = reduce(divide, map(int, numbers.split()))
    return "\n".join(lines) or f"{value}", value


def _places(number: int) -> list[int]:
    """A number as the sum of its digits' places, from left to right without zeros: 305 -> [300, 5]."""
    digits = str(number)
    places = [int(digit) * 10 ** (len(digits) - 1 - at) for at, digit in enumerate(digits)]
    return [place for place in places if place] or [0]


def _add(a: int, b: int) -> str:
    """`27 + 45: 27 + 40 = 67, 67 + 5 = 72`. A negative `a` turns it into a difference."""
    if a < 0:
        inner = _subtract(b, -a) if b >= -a else _subtract(-a, b)
        return f"{inner}, so {a} + {b} = {a + b}"
    return _step_by_place(a, "+", b)


def _subtract(a: int, b: int) -> str:
    """`72 - 45: 72 - 40 = 32, 32 - 5 = 27`. A negative result comes from the difference the other way round."""
    if a < 0:
        return f"{_add(-a, b)}, so {a} - {b} = {a - b}"
    if a < b:
        return f"{_subtract(b, a)}, so {a} - {b} = {a - b}"
    return _step_by_place(a, "-", b)


def _step_by_place(a: int, operator: str, b: int) -> str:
    """Adds or subtracts b one place at a time, highest first."""
    places = _places(b)
    steps = []
    value = a
    for place in places:
        result = value + place if operator == "+" else value - place
        steps.append(f"{value} {operator} {place} = {result}")
        value = result
    head = f"{a} {operator} {b}: " if len(places) > 1 else ""
    return head + ", ".join(steps)


def _multiply(a: int, b: int) -> str:
    """`23 * 47: 20 * 40 = 800, 20 * 7 = 140, 3 * 40 = 120, 3 * 7 = 21, 800 + 140 = 940, ...`."""
    products = [(x, y) for x in _places(a) for y in _places(b)]
    steps = [f"{x} * {y} = {x * y}" for x, y in products]
    total = products[0][0] * products[0][1]
    for x, y in products[1:]:
        steps.append(f"{total} + {x * y} = {total + x * y}")
        total += x * y
    head = f"{a} * {b}: " if len(products) > 1 else ""
    return head + ", ".join(steps)

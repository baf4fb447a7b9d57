"""Answers that look like the right one and are others, made from golds by rules on their text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from answer_forms import (
    BASED,
    CHOICE,
    FRACTION,
    INTEGER,
    INTERVAL,
    LIST,
    MATRIX,
    PLUS_MINUS,
    WORDS,
    Rule,
    is_interval,
)

NEIGHBOURS: dict[str, Rule] = {}


def neighbour(rule: Rule) -> Rule:
    """A rule that writes another answer, as LaTeX."""
    NEIGHBOURS[rule.__name__] = rule
    return rule


@neighbour
def another_digit(gold: str) -> Iterator[str]:
    for found in re.finditer(r"\d", gold):
        changed = str((int(found[0]) + 1) % 10)
        if not (changed == "0" and found.start() == 0):
            yield gold[: found.start()] + changed + gold[found.end() :]


@neighbour
def another_sign(gold: str) -> Iterator[str]:
    if INTEGER.fullmatch(gold) or FRACTION.fullmatch(gold):
        if gold != "0":
            yield gold.removeprefix("-") if gold.startswith("-") else f"-{gold}"
    elif " + " in gold and "(" not in gold:
        yield gold.replace(" + ", " - ", 1)


@neighbour
def another_base(gold: str) -> Iterator[str]:
    if found := BASED.fullmatch(gold):
        for number in (int(found[2]) + 2, 10, int(found[2]) - 1):
            yield f"{found[1]}_{{{number}}}"
            yield f"{found[1]}_{str(number)[0]}" if number < 10 else f"{found[1]}_{{{number}}}"
        yield str(int(found[1], int(found[2])))


@neighbour
def another_exponent(gold: str) -> Iterator[str]:
    for found in re.finditer(r"\^\{?(-?\d+)\}?", gold):
        yield gold[: found.start()] + f"^{{{int(found[1]) + 1}}}" + gold[found.end() :]
    if re.fullmatch(r"\d{2,}", gold):
        yield rf"{gold} \times 10^{{1}}"
        yield rf"{gold} \times 10^{{-9}}"


@neighbour
def moved_point(gold: str) -> Iterator[str]:
    if re.fullmatch(r"-?\d*\.?\d+", gold) and float(gold):
        yield f"{Decimal(gold) / 10:f}" if float(gold) < 10**6 else f"{gold}0"
        yield gold + "0" if "." not in gold else gold.replace(".", ".0", 1)


@neighbour
def permuted_words(gold: str) -> Iterator[str]:
    if found := WORDS.fullmatch(gold):
        word = found[1].strip()
        yield rf"\text{{{word[::-1]}}}"
        yield rf"\text{{{word[1:] + word[0]}}}"
        yield word[1:] + word[0]
        yield rf"\text{{not {word}}}"
        yield rf"\text{{{word}}} \text{{ or }} \text{{other}}"


@neighbour
def another_choice(gold: str) -> Iterator[str]:
    if found := CHOICE.fullmatch(gold):
        other = "ABCDEA"["ABCDE".index(found[1]) + 1]
        yield rf"\text{{({other})}}"
        yield other
        yield rf"\text{{({found[1]}) or ({other})}}"


@neighbour
def swapped_ends(gold: str) -> Iterator[str]:
    if found := INTERVAL.fullmatch(gold):
        left, low, high, right = found.groups()
        if low.strip() != high.strip():
            yield f"{left}{high},{low}{right}"


@neighbour
def another_endpoint(gold: str) -> Iterator[str]:
    if found := is_interval(gold):
        left, low, high, right = found.groups()
        other_left, other_right = "(["[left == "("], ")]"[right == ")"]
        if r"\infty" not in low:
            yield f"{other_left}{low},{high}{right}"
            yield f"x {'>' if left == '[' else chr(92) + 'ge'} {low}" if r"\infty" in high else f"({low},{high}{right}]"
        if r"\infty" not in high:
            yield f"{left}{low},{high}{other_right}"


@neighbour
def another_infinity(gold: str) -> Iterator[str]:
    if r"\infty" in gold and r"\cup" not in gold:
        yield gold.replace(r"\infty", "100")
    if r"\cup" in gold:
        yield gold.replace(r"\cup", r"\cap")
        yield re.split(r" ?\\cup ?", gold)[0]


@neighbour
def a_value_less(gold: str) -> Iterator[str]:
    if LIST.fullmatch(gold):
        values = [value.strip() for value in gold.split(",")]
        yield ", ".join(values[1:])
        yield values[0]
        yield ", ".join([*values, "77"])
    if found := PLUS_MINUS.fullmatch(gold):
        yield f"{found[1]} + {found[2]}"
        yield rf"{found[1]} \mp 2{found[2]}"


@neighbour
def swapped_coordinates(gold: str) -> Iterator[str]:
    plain = gold.replace(r"\left", "").replace(r"\right", "")
    if re.fullmatch(r"\([^()]*,[^()]*\)", plain):
        parts = [part.strip() for part in plain[1:-1].split(",")]
        if parts[0] != parts[-1]:
            yield f"({','.join([parts[-1], *parts[1:-1], parts[0]])})"
            yield f"({','.join([*parts, parts[0]])})"
    if found := MATRIX.fullmatch(gold):
        rows = [row.strip() for row in found[1].split(r"\\")]
        if rows[0] != rows[-1]:
            yield r"\begin{pmatrix}" + r" \\ ".join([rows[-1], *rows[1:-1], rows[0]]) + r"\end{pmatrix}"
        if "&" not in gold:
            yield r"\begin{pmatrix}" + r" \\ ".join([*rows, "0"]) + r"\end{pmatrix}"


@neighbour
def upside_down(gold: str) -> Iterator[str]:
    found = FRACTION.fullmatch(gold)
    if found and found[2] != found[3]:
        yield rf"{found[1]}\frac{{{found[3]}}}{{{found[2]}}}"


@neighbour
def rounded(gold: str) -> Iterator[str]:
    found = FRACTION.fullmatch(gold)
    if found and 10**9 % Fraction(int(found[2]), int(found[3])).denominator:
        value = Fraction(int(found[2]), int(found[3]))
        yield f"{found[1]}{float(value):.2f}"
        yield f"{found[1]}{float(value):.1f}"


@neighbour
def without_root(gold: str) -> Iterator[str]:
    if r"\sqrt{" in gold:
        yield gold.replace(r"\sqrt{", "{")
    if re.search(r"\\pi(?![a-z])", gold):
        yield re.sub(r"\\pi(?![a-z])", "3", gold)
        yield re.sub(r"\\pi(?![a-z])", "x", gold)


@neighbour
def another_variable(gold: str) -> Iterator[str]:
    plain = re.sub(r"\\[a-z]+", "", gold)
    letters = sorted(set(re.findall(r"[a-z]", plain)) - {"i"})
    if letters and not re.search(r"\\text|\\mbox|=|\\begin|\\in\b", gold):
        yield re.sub(rf"(?<![a-z\\]){letters[0]}", "w", gold)

r"""One answer in many notations: completions made from golds by rules on their text.

The rules know next to no mathematics, so that they cannot share a mistake with what is tested. Each yields nothing for
a gold that it does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

INTEGER = re.compile(r"-?\d+")
FRACTION = re.compile(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}")
DEGREES = re.compile(r"(\d+)\^\\circ")
WORDS = re.compile(r"\\text\{([A-Za-z ]+)\}")
CHOICE = re.compile(r"\\text\{\(([A-E])\)\}")
BASED = re.compile(r"(\d+)_\{?(\d+)\}?")
PRICE = re.compile(r"\\\$(\d[\d.,\\!]*)")
INTERVAL = re.compile(r"(?:\\left)?([(\[])\s*([^,()\[\]]+),\s*([^,()\[\]]+?)\s*(?:\\right)?([)\]])")
LIST = re.compile(r"(?!-?\d{1,3}(?:,\d{3})+$)-?\d+(,\s*-?\d+)+")
MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
PLUS_MINUS = re.compile(r"(-?\d+) \\pm (.*)")
VALUE = re.compile(r"x=(-?\d+)")
WITH_UNIT = re.compile(r"(\d[\d.]*) ?\\(?:text|mbox)\{ ?[a-z]+\}(?:\^2)?")

Rule = Callable[[str], Iterator[str]]
FORMS: dict[str, Rule] = {}


def form(rule: Rule) -> Rule:
    """A rule that writes a completion with the same answer."""
    FORMS[rule.__name__] = rule
    return rule


def boxed(answer: str) -> str:
    return rf"So the result is $\boxed{{{answer}}}$."


def is_interval(gold: str) -> re.Match[str] | None:
    """An interval for certain: a pair in round brackets could as well be a point."""
    found = INTERVAL.fullmatch(gold)
    return found if found and ("[" in gold or "]" in gold or r"\infty" in gold) else None


@form
def box(gold: str) -> Iterator[str]:
    yield boxed(gold)
    yield rf"\boxed{{{gold}}}"
    yield rf"\[\boxed{{{gold}}}\]" + "\n"
    yield rf"**Final answer:** \(\boxed{{ {gold} }}\)"


@form
def full_stop(gold: str) -> Iterator[str]:
    yield boxed(f"{gold}.")
    yield boxed(f"{gold} .")


@form
def mathematics_in_text(gold: str) -> Iterator[str]:
    yield f"The answer is ${gold}$."
    yield rf"The answer is \({gold}\)."
    yield f"Thus we have\n$${gold}$$"
    yield f"**Answer:** ${gold}$"


@form
def dollars_in_the_box(gold: str) -> Iterator[str]:
    yield rf"\boxed{{${gold}$}}"
    yield rf"\boxed{{\({gold}\)}}"


@form
def braces_and_styles(gold: str) -> Iterator[str]:
    yield boxed(f"{{{gold}}}")
    yield boxed(rf"\displaystyle {gold}")
    if INTEGER.fullmatch(gold):
        yield boxed(rf"\mathbf{{{gold}}}")
        yield boxed(rf"\text{{{gold}}}")
        yield boxed(rf"\textbf{{{gold}}}")
        yield boxed(rf"\bf {gold}")


@form
def plain_number(gold: str) -> Iterator[str]:
    if INTEGER.fullmatch(gold):
        yield f"The answer is {gold}."
        yield f"The answer is **{gold}**."
        yield f"Answer: {gold}"
        yield f"#### {gold}"
        yield f"A: {gold}\n"
        yield f"It is `{gold}`."


@form
def unicode_minus(gold: str) -> Iterator[str]:
    if "-" in gold and r"\begin" not in gold:
        yield boxed(gold.replace("-", "\N{MINUS SIGN}"))
        if INTEGER.fullmatch(gold):
            yield "The answer is " + gold.replace("-", "\N{MINUS SIGN}")
            yield "The answer is " + gold.replace("-", "\N{EN DASH}") + "."


@form
def other_fractions(gold: str) -> Iterator[str]:
    if r"\frac{" in gold:
        yield boxed(gold.replace(r"\frac", r"\dfrac"))
        yield boxed(gold.replace(r"\frac", r"\tfrac"))
        yield boxed(gold.replace(r"\frac", r"\cfrac"))
    if found := FRACTION.fullmatch(gold):
        sign, top, bottom = found.groups()
        yield boxed(f"{sign}{top}/{bottom}")
        yield f"The answer is {sign}{top}/{bottom}."
        yield boxed(rf"\frac{{{sign}{top}}}{{{bottom}}}")
        yield boxed(rf"{sign}{{{top} \over {bottom}}}")
        yield boxed(rf"\frac{{{sign}{2 * int(top)}}}{{{2 * int(bottom)}}}")


@form
def decimal(gold: str) -> Iterator[str]:
    if found := FRACTION.fullmatch(gold):
        value = Fraction(int(found[2]), int(found[3]))
        if 10**9 % value.denominator == 0:
            yield boxed(found[1] + f"{float(value):.9f}".rstrip("0"))


@form
def mixed_number(gold: str) -> Iterator[str]:
    found = FRACTION.fullmatch(gold)
    if found and int(found[2]) > int(found[3]):
        whole, rest = divmod(int(found[2]), int(found[3]))
        yield boxed(rf"{found[1]}{whole}\frac{{{rest}}}{{{found[3]}}}")
        yield boxed(rf"{found[1]}{whole}\ \dfrac{{{rest}}}{{{found[3]}}}")
        yield boxed(rf"{found[1]}{whole} {rest}/{found[3]}")


@form
def sizes(gold: str) -> Iterator[str]:
    plain = gold.replace(r"\left", "").replace(r"\right", "")
    if plain.startswith(("(", "[")) and plain.endswith((")", "]")) and plain.count("(") + plain.count("[") == 1:
        inside = plain[1:-1].strip()
        yield boxed(plain)
        yield boxed(rf"\left{plain[0]}{inside}\right{plain[-1]}")
        yield boxed(rf"\left{plain[0]} {inside} \right{plain[-1]}")
        yield boxed(rf"\bigl{plain[0]}{inside}\bigr{plain[-1]}")
        yield boxed(rf"\Big{plain[0]}{inside}\Big{plain[-1]}")


@form
def degrees(gold: str) -> Iterator[str]:
    if found := DEGREES.fullmatch(gold):
        for unit in ("", r"^{\circ}", r"^\circ", "°", r"\degree", r"\text{ degrees}", r"\,^\circ", r"~\text{degrees}"):
            yield boxed(found[1] + unit)
        yield f"The angle is {found[1]}°."
        yield f"The answer is {found[1]} degrees."


@form
def units(gold: str) -> Iterator[str]:
    if INTEGER.fullmatch(gold):
        yield boxed(rf"{gold}\text{{ cm}}")
        yield boxed(rf"{gold} \text{{ square units}}")
        yield boxed(rf"{gold}\,\mathrm{{cm}}^2")
        yield boxed(rf"{gold}\ \text{{miles per hour}}")
        yield boxed(rf"{gold} \text{{ km/h}}")
        yield f"There are {gold} apples in all."
    if found := WITH_UNIT.fullmatch(gold):
        yield boxed(found[1])
        yield f"The answer is {found[1]}."


@form
def percent(gold: str) -> Iterator[str]:
    if gold.endswith(r"\%"):
        yield boxed(gold[:-2])
        yield f"The answer is {gold[:-2]}%."
        yield boxed(rf"{gold[:-2]} \%")
        yield boxed(rf"{gold[:-2]}\text{{ percent}}")


@form
def thousands(gold: str) -> Iterator[str]:
    digits = re.sub(r",(\\!)? ?", "", gold)
    if INTEGER.fullmatch(digits) and abs(int(digits)) >= 1000 and not LIST.fullmatch(gold):
        for mark in (",", r",\!", "{,}", r"\,", "\N{THIN SPACE}", r"\ ", "\N{NARROW NO-BREAK SPACE}"):
            yield boxed(f"{int(digits):,}".replace(",", mark))
        yield f"The answer is {int(digits):,}."
        yield boxed(digits)


@form
def named(gold: str) -> Iterator[str]:
    if INTEGER.fullmatch(gold) or FRACTION.fullmatch(gold):
        yield boxed(f"x = {gold}")
        yield boxed(f"n={gold}")
        yield f"Therefore $x = {gold}$."
        yield boxed(f"f(2) = {gold}")
        yield boxed(f"a + b = {gold}")
    if found := VALUE.fullmatch(gold):
        yield boxed(found[1])


@form
def trailing_zeros(gold: str) -> Iterator[str]:
    if INTEGER.fullmatch(gold):
        yield boxed(f"{gold}.0")
        yield boxed(f"{gold}.00")
        yield f"The answer is {gold}.0"


@form
def inequality(gold: str) -> Iterator[str]:
    if found := is_interval(gold):
        left, low, high, right = found.groups()
        low_sign, high_sign = ("<", r"\le")[left == "["], ("<", r"\leq")[right == "]"]
        if low.strip() == r"-\infty":
            yield boxed(f"x {high_sign} {high}")
            yield f"So $x {high_sign} {high}$."
        elif high.strip() == r"\infty":
            yield boxed(f"x {low_sign.replace('<', '>').replace('le', 'ge')} {low}")
            yield boxed(f"{low} {low_sign} x")
            yield boxed(f"{low_sign.replace('<', 'x>').replace(chr(92) + 'le', 'x≥')} {low}")
        else:
            yield boxed(f"{low} {low_sign} x {high_sign} {high}")


@form
def membership(gold: str) -> Iterator[str]:
    if is_interval(gold) or (r"\cup" in gold and INTERVAL.match(gold)):
        yield boxed(rf"x \in {gold}")
        yield boxed(rf"x\in{gold}")
    if gold.startswith(r"x \in "):
        yield boxed(gold.removeprefix(r"x \in "))


@form
def infinity(gold: str) -> Iterator[str]:
    if r"\infty" in gold:
        yield boxed(gold.replace(r"\infty", "∞").replace(r"\cup", "\N{UNION}"))
        yield boxed(re.sub(r"(?<!-)\\infty", r"+\\infty", gold))
    if r"\cup" in gold:
        yield boxed(r" \cup ".join(reversed(re.split(r" ?\\cup ?", gold))))


@form
def another_order(gold: str) -> Iterator[str]:
    if LIST.fullmatch(gold):
        values = [value.strip() for value in gold.split(",")]
        yield boxed(", ".join(reversed(values)))
        yield boxed(rf"\{{{', '.join(values)}\}}")
        yield boxed(rf"\left\{{{', '.join(reversed(values))}\right\}}")
        yield boxed(r" \text{ and } ".join(values)) if len(values) == 2 else boxed(", ".join(values))
        yield boxed(r" \text{ or } ".join(values)) if len(values) == 2 else boxed(",".join(values))
        yield " and ".join(rf"\boxed{{{value}}}" for value in values)
        yield boxed(", ".join(f"x={value}" for value in values))


@form
def plus_or_minus(gold: str) -> Iterator[str]:
    if found := PLUS_MINUS.fullmatch(gold):
        yield boxed(f"{found[1]} + {found[2]}, {found[1]} - {found[2]}")
        yield boxed(rf"{found[1]} - {found[2]} \text{{ and }} {found[1]} + {found[2]}")
        yield boxed(rf"x = {gold}")


@form
def words(gold: str) -> Iterator[str]:
    if found := WORDS.fullmatch(gold):
        word = found[1].strip()
        for written in (word, word.lower(), word.capitalize(), f"{word}."):
            yield boxed(rf"\text{{{written}}}")
            yield boxed(written)
        yield boxed(rf"\textbf{{{word}}}")
        yield boxed(rf"\mathrm{{{word}}}")
        yield boxed(rf"\mbox{{{word}}}")


@form
def choice(gold: str) -> Iterator[str]:
    if found := CHOICE.fullmatch(gold):
        for written in ("{}", "({})", r"\text{{{}}}", r"\textbf{{({})}}", r"\mathrm{{({})}}", r"\text{{({})}}.", "{}."):
            yield boxed(written.format(found[1]))


@form
def price(gold: str) -> Iterator[str]:
    if found := PRICE.fullmatch(gold):
        number = re.sub(r",\\!", "", found[1])
        yield boxed(number)
        yield boxed(rf"{number}\text{{ dollars}}")
        yield f"It costs \\${number}."
        yield f"It costs ${number}."
        if number.isdecimal():
            yield boxed(rf"\${number}.00")


@form
def matrix(gold: str) -> Iterator[str]:
    if MATRIX.fullmatch(gold):
        yield boxed(gold.replace("pmatrix", "bmatrix"))
        yield boxed(re.sub(r"\s+", " ", gold))
        yield boxed(re.sub(r"(\d+)/(\d+)", r"\\frac{\1}{\2}", gold))
        yield boxed(re.sub(r"(\d+)/(\d+)", r"\\tfrac{\1}{\2}", gold))


@form
def unicode_signs(gold: str) -> Iterator[str]:
    written = gold.replace(r"\pi", "π").replace(r"\pm", "±")
    written = re.sub(r"\^([2-9])(?!\d)", lambda found: "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(found[1])], written)
    written = re.sub(r"\\sqrt\{(\d+)\}", r"√\1", written)
    if written != gold:
        yield boxed(written)


@form
def base(gold: str) -> Iterator[str]:
    if found := BASED.fullmatch(gold):
        digits, number = found.groups()
        yield boxed(f"{digits}_{number}") if len(number) == 1 else boxed(f"{digits}_{{{number}}}")
        yield boxed(f"{digits}_{{{number}}}")
        yield boxed(digits + "₀₁₂₃₄₅₆₇₈₉"[int(number)])
        yield boxed(rf"{digits}_{{\text{{{number}}}}}")
        yield boxed(rf"{digits}_{{({number})}}")
        yield boxed(rf"{digits}\text{{ (base {number})}}")
        yield boxed(digits)


@form
def spacing(gold: str) -> Iterator[str]:
    yield boxed(f"  {gold}\t")
    yield boxed(rf"\,{gold}\;")
    yield boxed(f"\n{gold}\n")
    yield boxed(re.sub(r" ?([+=-]) ?", r" \1 ", gold)) if r"\begin" not in gold else boxed(gold)


@form
def terms_in_another_order(gold: str) -> Iterator[str]:
    if found := re.fullmatch(r"(\w+|\d+\\?\w*) ?([+-]) ?(\w+|\d*\\?\w+)", gold):
        first, sign, second = found.groups()
        yield boxed(f"{second} + {first}" if sign == "+" else f"-{second} + {first}")

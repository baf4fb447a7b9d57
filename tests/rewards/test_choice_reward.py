"""The letter that a text chooses, as people and models write it."""

from __future__ import annotations

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import RewardRequest
from lnlit.rewards.choice import ChoiceReward, chosen


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{A}", "A"),
        (r"So \boxed{C}, not \boxed{\text{(B)}}.", "B"),
        (r"\boxed{\textbf{(D)}}", "D"),
        (r"\boxed{b) seven}", "B"),
        (r"\boxed{A. 4}", "A"),
        (r"The answer is B. \boxed{7}", None),
        (r"\boxed{Apples}", None),
        (r"\boxed{A1}", None),
        ("<think>\\boxed{A}</think>The answer is B.", "B"),
        ("<think>The answer is B.", None),
        ("<think>B</think>", None),
        ("The answer is (A), since B is false.", "A"),
        ("I first thought the answer is A. The correct choice is **D**.", "D"),
        ("**Answer:** B", "B"),
        ("**Answer: B**", "B"),
        ("The answer is:\n\nB", "B"),
        ("Option A is right.", "A"),
        ("The correct option is: (C) 5", "C"),
        ("ANSWER: C", "C"),
        ("The answer would be $\\mathrm{C}$", "C"),
        ("The answer is A because I say so.", "A"),
        ("The answer is A good one.", None),
        ("The answer is a dog.", None),
        ("The answer is I'd say 4.", None),
        ("B", "B"),
        ("(D)", "D"),
        ("\n**C**\n", "C"),
        ("B. seven\n\nSeven it is.", "B"),
        ("A. one\nB. two\nC. three", None),
        ("A man walks in.", None),
        ("", None),
    ],
)
def test_the_letter_is_found(text, letter):
    assert chosen(text) == letter
    if letter:
        score = ChoiceReward().score
        assert score(RewardRequest([], text, False, {"answer": letter})) == 1
        assert score(RewardRequest([], text, False, {"answer": "Z"})) == 0


def test_a_row_needs_a_letter():
    for answer in (None, 1, "b", "AB", "", "\N{CYRILLIC CAPITAL LETTER A}"):
        with pytest.raises(UserError, match="must be a letter from A to Z"):
            ChoiceReward().check_row({"answer": answer})


@pytest.mark.parametrize("part", ["*", "\n", "answer ", "answer*", ":", "(", "A", "A. ", "\\text{", "answer is\n"])
def test_a_long_text_is_read_once(part):
    """Whoever read it anew from each place would need hours."""
    assert chosen("The answer is" + part * (1_000_000 // len(part)) + "!") in (None, "A")

"""Scoring of the reasoning toggle."""

import pytest

from lnlit.eval.intervals import share
from lnlit.eval.toggle import Share, best_constant, echo_last_number, final_answer, is_correct
from lnlit.thinking import obeys


@pytest.mark.parametrize(
    ("text", "on", "off"),
    [
        ("<think>\n1 + 1 = 2\n</think>\n\nThe answer is 2.", True, False),
        ("The answer is 2.", False, True),
        ("<think>a</think><think>b</think> 2", False, False),
        ("<think>a <think> b</think> 2", False, False),
        ("<think>a</think>", False, False),  # no answer after it
        ("<think>a", False, False),  # cut off
        ("2 <think>a</think> 2", False, False),  # an answer before thinking
        ("a</think> 2", False, False),
    ],
)
def test_obedience_is_one_thought_then_an_answer_or_none_at_all(text, on, off):
    assert (obeys(text, "on"), obeys(text, "off")) == (on, off)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>7</think> The answer is \boxed{-12}.", "-12"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        ("<think>5</think> it is 1,234", "1234"),
        ("<think>5</think> no idea", None),
        (" <think>5 is what I", None),  # cut off
        ("It is 4. <think>5", "4"),  # what was cut off is no answer
    ],
)
def test_the_final_answer_comes_after_the_thought(text, answer):
    assert final_answer(text) == answer


def test_numbers_are_compared_as_numbers():
    assert is_correct("The answer is 7.0", "7") and not is_correct("The answer is 71", "7")
    assert is_correct(r"\boxed{1,000}", "1000") and is_correct("so 1000", "1,000")


def test_a_share_has_the_interval_of_evaluations():
    assert Share(8, 10).interval == (share(8, 10).low, share(8, 10).high)
    assert Share(1, 1).interval == (0, 1) and str(Share(8, 10)) == " 80.0% (44%-95%)"


def test_baselines():
    assert best_constant(["1", "2", "2"]) == Share(2, 3)
    assert echo_last_number(["1 + 2", "3 + 4"], ["2", "7"]) == Share(1, 2)

"""What a completion answers in the end, in one form for all ways to write it."""

import pytest

from lnlit.callbacks.toggle_report import best_constant, echo_last_number, render
from lnlit.rewards.final_answer import canonical_answer, final_answer, is_correct
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


@pytest.mark.parametrize(
    ("form", "same"),
    [
        ("1/2", (r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", r"It is $\frac12$.", r"\boxed{\dfrac{2}{4}}")),
        ("1/2", (r"\boxed{x = 1/2}", r"\boxed{n=0.50}")),
        ("1000", (r"\boxed{1,000}", "1000", r"\boxed{1000\text{ cm}}", "<think>7</think>It is 1,000.")),
        ("east", (r"\boxed{\text{East}}", r"\boxed{east}")),
        ("B", (r"\boxed{(B)}", r"\boxed{\text{B}}")),
        (r"\frac{\pi}{2}", (r"\boxed{\dfrac{\pi}{2}}", r"\boxed{\frac{\pi} {2}}")),
        ("(1,2)", (r"\boxed{(1, 2)}", r"\boxed{\left(1,2\right)}")),
        (None, ("no idea", "", "<think>5", r"<think>\boxed{5}")),
    ],
)
def test_equal_answers_have_one_form(form, same):
    assert {canonical_answer(text) for text in same} == {form}


def test_baselines():
    assert best_constant(["1", "2", "2"]) == [False, True, True]
    assert echo_last_number(["1 + 2", "3 + 4"], ["2", "7"]) == [True, False]


def test_the_report_is_the_table_of_the_readme():
    one = {
        "accuracy": [7, 200],
        "obedience": [0, 200],
        "truncated": [10, 200],
        "sample": {"question": "q", "answer": "a"},
    }
    results = {
        "before": {"on": one, "off": one},
        "after": {"on": one, "off": one},
        "baselines": {"best constant": [4, 200]},
    }
    lines = render(results).splitlines()
    assert lines[1].rstrip() == "before    on          3.5% (2%-7%)        0.0% (0%-1%)        5.0% (3%-9%)"
    assert lines[5] == "best constant         2.0% (1%-5%)"

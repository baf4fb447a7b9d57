"""What each reward pays for."""

from __future__ import annotations

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import NoVerdictError, RewardRequest
from lnlit.rewards.format import FormatReward
from lnlit.rewards.math_answer import MathAnswerReward


def request(completion: str, system: str | None = None, **row) -> RewardRequest:
    messages = [{"role": "system", "content": system}] if system else []
    return RewardRequest([*messages, {"role": "user", "content": "?"}], completion, False, row)


@pytest.mark.parametrize(
    ("mode", "completion", "value"),
    [
        ("on", "<think>2 + 2 = 4</think>\nIt is 4.", 1),
        ("on", "It is 4.", 0),
        ("on", "<think>2 + 2 = 4</think>", 0),
        ("on", "<think>a</think><think>b</think>4", 0),
        ("on", "<think>never ends", 0),
        ("off", "It is 4.", 1),
        ("off", "<think></think>It is 4.", 0),
        ("off", "It is 4.</think>", 0),
    ],
)
def test_format(mode, completion, value):
    assert FormatReward().score(request(completion, f"detailed thinking {mode}")) == value
    assert FormatReward().score(request(completion, f"Be kind.\n\ndetailed thinking {mode}\n\nGo.")) == value
    assert FormatReward(mode).score(request(completion)) == value


def test_a_prompt_without_a_toggle_has_no_format_to_keep():
    assert FormatReward().score(request("4")) is None


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("<think>It may be 7.</think> It is 4.", "4", 1),
        ("<think>It is 4.</think> It is 7.", "4", 0),
        (r"\boxed{4}", "4", 1),
        (r"The result is \boxed{\frac{1}{2}}.", "0.5", 1),
        ("So 1,234 in all", "1234", 1),
        ("no idea", "4", 0),
        ("", "4", 0),
        ("It is -4.", "4", 0),
        ("It is 4.0", "4", 1),
        (r"\boxed{7}. No, \boxed{4}.", "4", 1),
        ("\\boxed{7}\n\nWait, that is wrong. 1+3 is 4, so it is \\boxed{4}.", "4", 1),
        (r"The sum of \boxed{1} and \boxed{3} is \boxed{4}.", "4", 1),
        (r"\boxed{4}. No, \boxed{7}.", "4", 0),
        (r"\boxed{4}, that is 7.", "4", 1),
        (r"\boxed{4} and \boxed{}", "4", 1),
        (r"It is 4. \boxed{ }", "4", 1),
        (r"\boxed{4} or \boxed{7", "4", 1),
        (r"\boxed{no idea}, but maybe 4", "4", 0),
        (r"\boxed{1} and \boxed{2}", "\\{1, 2\\}", 1),
        (r"Not \boxed{3}, but \boxed{1, 2}.", "1, 2", 1),
        (r"\boxed{1} and \boxed{3}", "1, 2", 0),
        (r"\boxed{1} or \boxed{2}", "2", 1),
        ("<think> first 1 + 3 = 4, now let me", "4", 0),
        ("<think>7</think><think>4", "4", 0),
    ],
)
def test_math_answer(completion, answer, value):
    assert MathAnswerReward().score(request(completion, answer=answer)) == value


@pytest.mark.parametrize(
    "gold", [None, float("nan"), float("inf"), True, ["4"], {"value": 4}, "N/A", "", "nan", " null "]
)
def test_a_row_whose_answer_is_none_gives_no_verdict(gold):
    for completion in (r"\boxed{None}", r"\boxed{4}", str(gold)):
        with pytest.raises(NoVerdictError, match=r"unreadable_gold.*is no answer\. One text or number is expected"):
            MathAnswerReward().score(request(completion, answer=gold))
    with pytest.raises(UserError, match=r"answer: .* is no answer"):
        MathAnswerReward().check_row({"answer": gold})


@pytest.mark.parametrize("gold", ["x+1\n", "  x + 1", "1+x"])
def test_spaces_around_the_rows_answer_are_nothing(gold):
    MathAnswerReward().check_row({"answer": gold})
    assert MathAnswerReward().score(request(r"\boxed{x+1}", answer=gold)) == 1


def test_the_rows_answer_may_be_a_number():
    assert MathAnswerReward().score(request(r"\boxed{4}", answer=4)) == 1
    assert MathAnswerReward().score(request(r"\boxed{\frac{1}{4}}", answer=0.25)) == 1


def test_a_row_without_an_answer_is_a_mistake_of_the_setup():
    with pytest.raises(UserError, match="the prompt's row has no 'answer'; it has question"):
        MathAnswerReward().score(request("4", question="?"))

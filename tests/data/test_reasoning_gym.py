import re

import pytest

from lnlit.data.reasoning_gym import DEFAULTS, ReasoningGymSource, solve_arithmetic, solve_gcd
from lnlit.errors import UserError

SETTINGS = {
    "chain_sum": {"max_terms": 4, "max_digits": 3},
    "basic_arithmetic": {"max_digits": 2},
    "products": {"max_digits": 2},
    "gcd": {},
}


def replies(row):
    return row["messages"][-1]["content"]


def check_trace(row) -> int:
    """Every equation in the trace holds by Python's own arithmetic; returns how many there were."""
    trace = re.fullmatch(r"<think>\n(.+)\n</think>\n\nThe answer is \\boxed\{(-?\d+)\}\.", replies(row), re.DOTALL)
    assert trace and trace[2] == row["answer"]
    equations = re.findall(r"(?:^|[,:;] |so |\n)(-?\d+(?: [-+*] -?\d+)*) = (-?\d+(?: [-+*] -?\d+)*)", trace[1])
    for left, right in equations:
        assert eval(left) == eval(right), row
    return len(equations)


def test_two_thousand_traces_are_correct_by_an_independent_check():
    rows = list(ReasoningGymSource("train", 2000, tasks=SETTINGS, thinking="on", seed=3).rows())
    assert len(rows) == 2000
    for row in rows:
        assert check_trace(row) >= 1 and replies(row).count(" = ") == check_trace(row)
        if row["task"] != "gcd":
            expression = re.search(r"\d+( [-+*] \d+)+", row["question"])
            assert expression and eval(expression[0]) == int(row["answer"])


def test_the_last_equation_gives_the_answer():
    for row in ReasoningGymSource("train", 300, tasks=["chain_sum", "basic_arithmetic"], thinking="on").rows():
        steps = replies(row).split("\n</think>")[0]
        assert steps.endswith(f"= {row['answer']}")


def test_splits_share_no_question_whatever_their_seeds_and_wording():
    train = {
        re.sub(r"[^-+*\d ]", "", row["question"]).strip(" -")
        for seed in range(3)
        for row in ReasoningGymSource("train", 1200, seed=seed, thinking="off").rows()
    }
    held = [
        re.sub(r"[^-+*\d ]", "", row["question"]).strip(" -")
        for row in ReasoningGymSource("heldout", 300, seed=9, thinking="off").rows()
    ]
    assert not train & set(held)
    assert len(train) > 1000


def test_pairs_the_same_question_on_and_off_and_asks_nothing_twice():
    rows = list(ReasoningGymSource("train", 400).rows())
    assert [row["thinking"] for row in rows] == ["on", "off"] * 200
    assert all(on["question"] == off["question"] for on, off in zip(rows[::2], rows[1::2], strict=True))
    assert len({row["question"] for row in rows}) == 200
    assert replies(rows[1]) == f"The answer is \\boxed{{{rows[1]['answer']}}}."


def test_deterministic_by_seed_and_resumable_from_any_row():
    source = ReasoningGymSource("train", 60, seed=5)
    rows = list(source.rows())
    assert rows == list(ReasoningGymSource("train", 60, seed=5).rows())
    assert rows[23:] == list(source.rows(23))
    assert rows != list(ReasoningGymSource("train", 60, seed=6).rows())


def test_precedence_holds_even_where_reasoning_gym_ignores_it():
    rows = ReasoningGymSource("train", 800, tasks=["basic_arithmetic"], thinking="off").rows()
    mixed = [row for row in rows if re.search(r"[-+] \d+ \*", row["question"])]
    assert all(eval(row["question"][len("Calculate ") : -1]) == int(row["answer"]) for row in mixed)


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("27 + 45", "27 + 45: 27 + 40 = 67, 67 + 5 = 72"),
        ("23 - 60", "60 - 23: 60 - 20 = 40, 40 - 3 = 37, so 23 - 60 = -37"),
        ("2 + 3 * 4", "3 * 4 = 12\n2 + 12: 2 + 10 = 12, 12 + 2 = 14"),
        ("1 - 9 + 3", "9 - 1 = 8, so 1 - 9 = -8\n8 - 3 = 5, so -8 + 3 = -5"),
        ("12 * 30", "12 * 30: 10 * 30 = 300, 2 * 30 = 60, 300 + 60 = 360"),
        ("7", "7"),
    ],
)
def test_steps_read_left_to_right(expression, steps):
    assert solve_arithmetic(expression) == (steps, eval(expression))


def test_gcd_is_euclids():
    assert solve_gcd("48 18") == ("48 = 2 * 18 + 12\n18 = 1 * 12 + 6\n12 = 2 * 6 + 0", 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test", "size": 4}, "must be train or heldout"),
        ({"split": "train", "size": 0}, "size must be positive"),
        ({"split": "train", "size": 4, "tasks": []}, "no task given"),
        ({"split": "train", "size": 4, "tasks": ["chain_sums"]}, "Did you mean 'chain_sum'"),
        ({"split": "train", "size": 4, "thinking": "maybe"}, "expected on or off"),
        ({"split": "train", "size": 4, "tasks": {"chain_sum": {"max_term": 3}}}, "does not take the settings"),
        ({"split": "train", "size": 90, "tasks": {"chain_sum": {"allow_negation": True}}}, "no steps can be written"),
        ({"split": "heldout", "size": 90, "tasks": ["products"]}, "only 9 different heldout questions"),
    ],
)
def test_errors_say_what_to_do(arguments, message):
    with pytest.raises(UserError, match=message):
        list(ReasoningGymSource(**arguments).rows())


def test_every_task_has_defaults_that_work():
    for name in DEFAULTS:
        assert len(list(ReasoningGymSource("train", 4, tasks=[name]).rows())) == 4

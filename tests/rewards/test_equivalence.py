r"""Right answers are paid however they are written, and wrong ones are not however like them they look."""

# ruff: noqa: RUF001  signs that look like others are what is tested
from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from answer_forms import FORMS, boxed
from answer_neighbours import NEIGHBOURS

from lnlit.errors import UserError
from lnlit.interfaces import RewardRequest
from lnlit.rewards.equivalence import Answer
from lnlit.rewards.final_answer import is_correct
from lnlit.rewards.math_answer import MathAnswerReward

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

SAME = r"""
9 | 9.
60 | 60°
60 | 60\degree
1{,}000 | 1000
-4 | −4
[0,\infty) | x\ge 0
[0,\infty) | 0 ≤ x
[0,\infty) | 0 \le x < \infty
(-\infty,2)\cup(3,\infty) | x<2 \text{ or } x>3
[-2,7] | -2\le x\le 7
-2\le x\le 7 | x\in[-2,7]
x<2 | 2>x
1.6\times10^{-19} | 1.6e-19
1.6\times10^{-19} | 16 \cdot 10^{-20}
1.6\times10^{-19} | 1.60 × 10⁻¹⁹\text{ C}
6.02\times10^{23} | 602000000000000000000000
4210_5 | 4210_{5}
4210_5 | 4210
1A_{16} | 1a_{16}
13 | 13_{10}
east | \text{East}
\text{two lines} | Two lines.
\text{October 30} | \text{October 30}
\text{(C)} | C
\text{B} | (b)
\text{B,E} | E, B
\text{B,E} | \text{B, E}
\frac{1}{3} | 0.333333
\frac{1}{3} | 0.\overline{3}
\frac{2}{3} | 0.666666
\frac{1}{2} | ½
\frac72 | 3½
\sqrt{2} | 1.41421356
\sqrt{x+1} | √(x+1)
0.5 | 50\%
237.5\% | 237.5
x=1,y=2 | y=2,x=1
\left(1,\frac12\right) | (1, 0.5)
y=2x+3 | 3+2x
15\text{ cm}^2 | 15 cm²
15\text{ cm}^2 | 15 \mathrm{~cm}^{2}
\$1,657 | 1657
1,000,000 | 10^6
5! | 120
2^{2008}-2 | 2^{2008}-2
\emptyset | \varnothing
3-4i | 3 - 4 i
3-4i | 3-4\cdot i
4210_5 | 4210\text{ base }5
\sqrt[3]{4} | \sqrt[3]4
\binom{10}{3} | {10 \choose 3}
120 | 10 \choose 3
\ln 2 | \log_e 2
5:3 | 5\colon 3
7 | \text{7 days}
"""

DIFFERENT = r"""
9 | 8.
[0,\infty) | x > 0
(-\infty,2)\cup(3,\infty) | x<2\text{ or }x\ge3
[-2,7] | -2<x\leq 7
x<2 | x\le 2
1.6\times10^{-19} | 9.1\times10^{-31}
1.6\times10^{-19} | 1.6\times10^{-18}
(1.6\times10^{-19}, 2) | (9.1\times10^{-31}, 2)
10^{-8} x | 10^{-9} x
2^{-100} | 3^{-100}
\sqrt{2}\times 10^{-20} | \sqrt{3}\times 10^{-20}
.0000672 | .0000668
4210_5 | 4210_7
4210_5 | 555
1A_{16} | 1B_{16}
110111 | 110111_2
13 | 13_7
east | seat
\text{two lines} | \text{lines two}
(2,5) | (5,2)
[2,5) | (2,5]
\frac{1}{3} | 0.33
\frac{1}{3} | 0.333334
\pi | 3.14
1234567.5 | 1234567.4
123456789 | 123456788
50\% | 5\%
x=1,y=2 | x=2,y=1
1\frac{4}{5} | \frac{4}{5}
15\text{ cm}^2 | 15\text{ cm}^3
10,\!080 | 10.080
7000 | 7.000
12 | 1,2
E | 2.718281828
\text{True} | False
\text{B,E} | B, D
\text{B,E} | B
3-4i | 3 + 4 i
\sqrt[3]{4} | \sqrt[3]5
3 | 10 \choose 3
2 | \log_e 2
5 | \max 5
5 | \lim 5
5 | > 5
5 | <5
5 | \ge 5
5 | \leq 5
5 | \neq 5
5 | \not 5
5 | 5 \text{ or more}
7 | \text{8 days}
"""


def pairs(table: str) -> list[tuple[str, str]]:
    cut = [line.partition(" | ") for line in table.strip().splitlines()]
    return [(gold, answer) for gold, _, answer in cut]


def paid(gold: str, completion: str, question: str = "?") -> float | None:
    request = RewardRequest([{"role": "user", "content": question}], completion, False, {"answer": gold})
    return MathAnswerReward().score(request)


@pytest.mark.parametrize(("gold", "answer"), pairs(SAME))
def test_the_same_answer_is_paid_however_it_is_written(gold, answer):
    assert paid(gold, rf"\boxed{{{answer}}}") == 1


@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_another_answer_is_not_paid_however_like_it_it_looks(gold, answer):
    assert paid(gold, rf"\boxed{{{answer}}}") == 0


def test_a_base_that_the_question_names_may_stand_in_the_answer():
    assert paid("110111", r"\boxed{110111_2}", "Find the product. Express your answer in base $2$.") == 1
    assert paid("110111", r"\boxed{110111_7}", "Find the product. Express your answer in base $2$.") == 0


@pytest.mark.parametrize(
    "answer",
    [
        r"9^{9^{9^{9}}}",
        r"9^{99999999999}",
        r"10^{-10^{10^{10}}}",
        r"(10^8)!",
        r"\binom{10^9}{5\cdot10^8}",
        r"(x+y+z)^{5000}",
        r"\sum_{k=1}^{1000000000}\frac{1}{k}",
        r"\sin(10^{10^{10}})",
    ],
)
def test_what_takes_for_ever_to_compute_is_not_computed(answer):
    assert paid("9", rf"\boxed{{{answer}}}") == 0
    assert paid(answer, rf"\boxed{{{answer}}}") == 1


@pytest.mark.parametrize(
    "completion", ["", "$", r"\boxed{}", r"\boxed{\frac{1}{0}}", r"\boxed{\frac{0}{0}}", "$$$$", "{" * 50]
)
def test_no_completion_is_the_verifiers_fault(completion):
    assert paid("9", completion) == 0


@pytest.mark.parametrize(
    "completion",
    [
        "**Answer:** Evelyn",
        "**Answer**: Evelyn",
        "**The answer is Evelyn.**",
        "**Answer: Evelyn**",
        "It is **Evelyn**.",
    ],
)
def test_a_word_in_bold_type_is_read(completion):
    assert paid(r"\text{Evelyn}", completion) == 1
    assert paid(r"\text{Angela}", completion) == 0


def test_what_is_no_mathematics_is_refused():
    with pytest.raises(UserError, match=r"'\$' cannot be read as mathematics"):
        Answer("$")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{9.}", "9"),
        (r"\boxed{60°}", "60"),
        ("The answer is −4", "-4"),
        ("The answer is 3/4.", "0.75"),
        ("<answer>7</answer>", "7"),
        ("<answer>3/4</answer>", "0.75"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        ("It costs \\$1,250.", "1250"),
        (r"\boxed{\text{East.}}", "east"),
        (r"\boxed{$12$}", "12.0"),
    ],
)
def test_a_report_counts_them_as_right_too(completion, answer):
    assert is_correct(completion, answer)
    assert not is_correct(completion, "77")


# Golds of real questions


def golds() -> list[str]:
    file = SHARED / "math500" / "test.jsonl"
    return list(dict.fromkeys(json.loads(line)["answer"] for line in file.read_text().splitlines()))


needs_math500 = pytest.mark.skipif(not (SHARED / "math500").is_dir(), reason="needs ../shared/data/math500")


@pytest.mark.data
@needs_math500
def test_golds_of_math500_are_paid_in_other_notations(record_property):
    cases = [(gold, text) for rule in FORMS.values() for gold in golds() for text in rule(gold)]
    chosen = random.Random(0).sample(cases, 400)
    wrong = [case for case in chosen if paid(*case) != 1]
    record_property("share of other notations paid", 1 - len(wrong) / len(chosen))
    assert not wrong


@pytest.mark.data
@needs_math500
def test_neighbours_of_math500s_golds_are_not_paid(record_property):
    cases = [(gold, boxed(other)) for rule in NEIGHBOURS.values() for gold in golds() for other in rule(gold)]
    chosen = random.Random(0).sample(cases, 200)
    wrong = [case for case in chosen if paid(*case) != 0]
    record_property("share of neighbours paid", len(wrong) / len(chosen))
    assert not wrong


@pytest.mark.data
@pytest.mark.skipif(not (SHARED / "gsm8k").is_dir(), reason="needs ../shared/data/gsm8k")
def test_labelled_solutions_are_judged_as_their_labels_say():
    for line in (SHARED / "gsm8k" / "example_model_solutions.jsonl").read_text().splitlines()[::20]:
        row = json.loads(line)
        gold = row["ground_truth"].rpartition("A: ")[2]
        for solution in [value for value in row.values() if isinstance(value, dict)]:
            assert paid(gold, solution["solution"]) == float(solution["is_correct"])
            assert is_correct(solution["solution"], gold) == solution["is_correct"]

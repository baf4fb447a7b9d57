"""What repeats a benchmark is found, however it is set, and what merely resembles it is not."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from talking import model

from lnlit.curation.decontaminate import Decontaminate
from lnlit.curation.embedding import Embedding
from lnlit.curation.ngrams import Index, words
from lnlit.curation.rows import document
from lnlit.curation.step import Dropped
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs = {
    name: pytest.mark.skipif(not (SHARED / name).is_dir(), reason=f"needs ../shared/data/{name}")
    for name in ("math_train", "gsm8k")
}


def outcome(step, row):
    """What becomes of a row."""
    return step.batch([document(row, "0")])[0]


QUESTION = (
    "Let $a$ and $b$ be positive numbers with $\\frac{a}{b} = 1{,}200$ and $a + b = 3$. Find $a \\cdot b$ exactly."
)


@pytest.fixture
def step(rows_in):
    benchmark = [{"question": QUESTION}, {"question": "What is $2+2$?"}, {"question": " ".join(map(str, range(40)))}]
    return Decontaminate({"maths": rows_in(benchmark, "benchmark")})


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        QUESTION.upper().replace("\\FRAC", "\\frac").replace("\\CDOT", "\\cdot"),
        QUESTION.replace("\\frac", "\\dfrac").replace("1{,}200", "1,\\!200").replace("$", "\\("),
        "Let \\[\\begin{align*} a & \\text{ and } b\\end{align*}\\] be positive numbers with $\\tfrac ab = 1200$, and "
        "$a+b=3.$ Find $a\\cdot b$ exactly.",
        f"Here is a problem from a contest.\n\n{QUESTION}\n\nGive the answer as an integer.",
        "what is 2 + 2 ?",
        " ".join(map(str, range(36))),
    ],
)
def test_a_repetition_is_found(step, text):
    assert outcome(step, {"prompt": text}) == Dropped("in_maths")


@pytest.mark.parametrize(
    "text",
    [
        "Let $a$ and $b$ be positive numbers with $ab = 7$. Find $a + b$ exactly.",
        "What is $2-2$?",
        "What is $2+2$? Add the same number to it, and say how many digits it has.",
        " ".join(map(str, range(20))),
    ],
)
def test_a_resemblance_is_not(step, text):
    assert outcome(step, {"prompt": text}) == {"prompt": text}


def test_only_what_is_asked_counts(step):
    row = {"messages": [{"role": "user", "content": "Name a question."}, {"role": "assistant", "content": QUESTION}]}
    assert outcome(step, row) == row
    row["messages"][0]["content"] = QUESTION
    assert outcome(step, row) == Dropped("in_maths")


def test_shares_are_those_of_a_hand_count():
    """The share of distinct 3-grams of the question that the text has, counted by string search."""
    draw = random.Random(1)
    texts = [" ".join(draw.choice("abcd") for _ in range(30)) for _ in range(30)]
    index = Index([("b", text) for text in texts[:10]], 3)
    for text in texts[10:]:
        expected = {}
        for number, question in enumerate(texts[:10]):
            own = {question[at : at + 5] for at in range(0, len(question) - 4, 2)}
            if found := sum(gram in text for gram in own):
                expected[number] = found / len(own)
        assert dict(index.found(text)) == pytest.approx(expected)


def test_a_benchmark_without_questions_is_told(rows_in):
    step = Decontaminate({"b": rows_in([{"question": "a b"}, {"no": 1}], "b")})
    with pytest.raises(UserError, match=r"b.jsonl:2: the benchmark 'b' has no a question"):
        outcome(step, {"prompt": "x"})
    with pytest.raises(UserError, match="at least one source"):
        Decontaminate({})
    with pytest.raises(UserError, match="threshold above 0 and up to 1, got 8 and 70"):
        Decontaminate({"b": rows_in([], "b")}, threshold=70)


def plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


@pytest.mark.data
@needs["math_train"]
def test_rows_of_math_train_that_repeat_benchmarks(record_property):
    """All rows whose letters and digits are those of a benchmark's question are found, and all others that are
    found have 60 % of the five-letter sequences of one."""
    sources = {
        "math500": JsonlSource(str(SHARED / "math500/test.jsonl")),
        "mmlu": JsonlSource(str(SHARED / "mmlu/*.gz")),
    }
    step, rows = Decontaminate(sources), list(JsonlSource(str(SHARED / "math_train/train.json")).rows())
    found = [row for row in rows if isinstance(outcome(step, row), Dropped)]
    questions = {plain(row.get("problem") or row["question"]) for source in sources.values() for row in source.rows()}
    same = [row for row in rows if plain(row["problem"]) in questions]
    assert len(same) > 70 and all(row in found for row in same)
    sequences = [Counter(text[at : at + 5] for at in range(len(text) - 4)) for text in questions]
    for row in (row for row in found if row not in same):
        own = plain(row["problem"])
        own_sequences = Counter(own[at : at + 5] for at in range(len(own) - 4))
        best = max((own_sequences & other).total() / max(other.total(), 1) for other in sequences)
        assert best > 0.6, row["problem"]
    record_property("rows of math_train that repeat MATH-500 or MMLU", len(found))
    record_property("of them letter by letter", len(same))


@pytest.mark.data
@needs["gsm8k"]
def test_no_row_of_gsm8k_repeats_its_test_set():
    step = Decontaminate({"gsm8k": JsonlSource(str(SHARED / "gsm8k/test.jsonl"))})
    rows = JsonlSource(str(SHARED / "gsm8k/train.jsonl")).rows()
    assert not [row for row in rows if isinstance(outcome(step, row), Dropped)]
    assert all(
        outcome(step, row) == Dropped("in_gsm8k") for row in JsonlSource(str(SHARED / "gsm8k/test.jsonl")).rows()
    )


def test_words():
    assert words("Ångström's \\left( x^2+1 \\right)\\!, 10,000 or 1,5") == [
        *("ångström", "s", "x", "^", "2", "+", "1", "10000", "or", "1", "5")
    ]


@pytest.fixture(scope="module")
def tiny(tiny_parent):
    return str(tiny_parent)


def test_a_judge_decides_about_what_is_near(rows_in, curated):
    """Of three rows that share a third of a question's n-grams, the judge names one; a row that shares none is not
    asked about, nor one that repeats it."""
    question = "A farmer has seventeen sheep and all but nine of them run away in the night. How many are left?"
    other = "A shepherd counts her flock"
    rows = [{"prompt": question}] + [
        {"prompt": f"A farmer has seventeen sheep and all but nine of them die. {end}"}
        for end in ("yes", "no", "odd", "slow")
    ]
    judge = model(
        {"First.*yes\n.*Second": "Yes.", "First.*no\n": "<think>yes</think> no", "First.*odd": "Hm.", "slow": None}
    )
    step = Decontaminate({"sheep": rows_in([{"question": question}], "b")}, judge=judge)
    kept, dropped = curated(rows_in([*rows, {"prompt": other}]), [step])
    assert [row["prompt"][-2:] for row in kept] == ["no", "ck"]
    assert dropped["Decontaminate"] == {
        "in_sheep": 1, "judged_sheep": 1, "unreadable_reply": 1, "unanswered_timed_out": 1
    }  # fmt: skip


def test_an_embedding_finds_what_is_near(rows_in, curated, tiny):
    """Against cosines by hand, of the states that the decoder gives."""
    texts = ["one two three", "four five six seven", "eight", "one two three!", "nothing of it", "fourfive six seven"]
    step = Decontaminate({"b": rows_in([{"question": text} for text in texts[:3]], "b")}, embedding=Embedding(tiny))
    questions = texts[:3]
    vectors = [torch.stack([step.embedding.index(questions)._mean(text)])[0].double() for text in texts]
    centre = sum(vectors[:3]) / 3
    unit = [(vector - centre) / (vector - centre).norm() for vector in vectors]
    kept, dropped = curated(rows_in([{"prompt": text} for text in texts[3:]]), [step])
    expected = [n for n in (3, 4, 5) if max(float(unit[n] @ unit[m]) for m in range(3)) >= 0.8]
    assert 0 < len(expected) < 3 and dropped["Decontaminate"] == {"near_b": len(expected)}
    assert [row["prompt"] for row in kept] == [texts[n] for n in (3, 4, 5) if n not in expected]

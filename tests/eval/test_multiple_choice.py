"""Questions as token rows: every continuation behind its own question, and only its tokens count."""

import json

import pytest
import torch

from lnlit.data.sources import JsonlSource
from lnlit.data.tokenizer import read_tokenizer
from lnlit.errors import UserError
from lnlit.eval.multiple_choice import Questions
from lnlit.testing.tiny import tiny_folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return read_tokenizer(tiny_folder(tmp_path_factory.mktemp("choices") / "model"))


def questions(tmp_path, *rows: dict, limit: int = 200) -> Questions:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Questions(JsonlSource(str(file)), limit)


def test_rows_hold_the_question_and_labels_the_continuation(tmp_path, tokenizer):
    first = {"context": "One and", "choices": ["two", "é"], "answer": 1}
    second = {"context": "B", "choices": ["c", " d", "longer"], "answer": "A"}
    encoded = questions(tmp_path, first, second).encode(tokenizer)
    assert encoded.question == (0, 0, 1, 1, 1)
    assert encoded.right == (1, 2)
    assert encoded.size_R.tolist() == [4, 3, 2, 2, 7]
    texts = ["One and two", "One and é", "B c", "B d", "B longer"]
    for text, tokens, labels, size in zip(texts, encoded.tokens_RT, encoded.labels_RT, encoded.size_R, strict=True):
        ids = tokenizer(text)["input_ids"]  # bytes, so that text joins without merges
        counted = labels != -100
        assert tokens[: len(ids) - 1].tolist() == ids[:-1]
        assert labels[counted].tolist() == ids[-int(size) :]
        assert torch.equal(
            labels[: len(ids) - 1][counted[: len(ids) - 1]], torch.tensor(ids[1:])[counted[: len(ids) - 1]]
        )


def test_limit_takes_the_first_questions(tmp_path, tokenizer):
    row = {"context": "a", "choices": ["b", "c"], "answer": 0}
    assert questions(tmp_path, row, row, row, limit=2).encode(tokenizer).right == (0, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "a", "choices": ["b"]}, r"question 1: no key 'answer'; it has: context, choices"),
        ({"context": "a", "choices": ["b"], "answer": 1}, r"question 1: the answer 1 is none of its 1 choices"),
        ({"context": "a", "choices": ["b"], "answer": "C"}, r"the answer 'C' is none of its 1 choices"),
        ({"context": "a", "choices": ["b"], "answer": -1}, r"the answer -1 is none of its 1 choices"),
        ({"context": "a", "choices": "bc", "answer": 0}, r"question 1: 'context' must be text and 'choices' a list"),
        ({"context": "", "choices": ["b"], "answer": 0}, r"question 1: 'context' is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path, tokenizer, row, message):
    with pytest.raises(UserError, match=message):
        questions(tmp_path, row).encode(tokenizer)


def test_no_rows(tmp_path, tokenizer):
    with pytest.raises(UserError, match="has no rows"):
        questions(tmp_path).encode(tokenizer)

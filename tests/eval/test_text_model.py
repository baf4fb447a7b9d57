"""A model that is asked with texts: where its answers end, and that thinking is no part of them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lnlit.errors import UserError
from lnlit.eval import text_model
from lnlit.eval.text_model import TextModel
from lnlit.testing.tiny import mixed_spec, tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TextModel:
    return TextModel(tiny_folder(tmp_path_factory.mktemp("text") / "model", mixed_spec()), "float32", batch_size=2)


def spoken(model: TextModel, monkeypatch: Any, said: str, stop: Sequence[str], prompt: str = "Q") -> tuple[str, int]:
    """(what is taken of a model that says this text, how many tokens it was asked for)."""
    asked = []

    def generate(_decoder, prompts, _sampling, _end_ids, on_token, _seeds):
        for row in range(len(prompts)):
            for token in model.encode([said], special_tokens=False)[0]:
                asked.append(token)
                if on_token(row, token):
                    break
        return [SimpleNamespace()] * len(prompts)

    monkeypatch.setattr(text_model, "generate", generate)
    ((_, text),) = model.continued([prompt], [0], 8, stop=stop)
    return text, len(asked)


@pytest.mark.parametrize(
    ("said", "stop", "prompt", "text", "tokens"),
    [
        ("It is 4.\n\nQ: more", ["\n\n", "Q:"], "Q", "It is 4.", 10),
        ("It is 4.", ["\n\n", ""], "Q", "It is 4.", 8),
        ("ab STOPSTART", ["START", "STOP"], "Q", "ab ", 7),
        ("<think>a\n\nb</think>\nSo 4.\n\nmore", ["\n\n"], "Q", "So 4.", 27),
        ("a\n\nb</think>\nSo 4.\n\nmore", ["\n\n"], "Q<think>\n", "So 4.", 20),
        ("<think>a\n\nb and no end", ["\n\n"], "Q", "", 22),
        ("a\n\nb and no end", ["\n\n"], "Q<think>\n", "", 15),
        ("Fünf ü€", ["€"], "Q", "Fünf ü", 11),
        ("4<|im_end|>", [], "Q", "4", 2),
        ("4<|im_start|>user", ["<|im_start|>"], "Q", "4", 2),
    ],
)
def test_where_an_answer_ends(model, monkeypatch, said: str, stop: list[str], prompt: str, text: str, tokens: int):
    assert spoken(model, monkeypatch, said, stop, prompt) == (text, tokens)


def test_a_row_that_ends_early_changes_no_other(model: TextModel):
    prompts, seeds = ["One", "Two and", "Three", "Four"], [1, 2, 3, 4]
    whole = dict(model.continued(prompts, seeds, 30, temperature=1.0))
    stop = whole[1][3:5]
    cut = dict(model.continued(prompts, seeds, 30, temperature=1.0, stop=[stop]))
    assert cut == {row: text.split(stop)[0] for row, text in whole.items()}
    assert cut[1] != whole[1]


def test_a_prompt_that_leaves_no_room_loses_its_beginning(model: TextModel):
    long = "ab" * 200
    room = model.context_length - 10
    assert list(model.continued([long], [0], 10)) == list(model.continued([long[-room:]], [0], 10))
    with pytest.raises(UserError, match="max_new_tokens: 256 leave no room"):
        list(model.continued(["a"], [0], 256))


def test_likelihoods_of_token_ids(model: TextModel):
    (front, back) = model.encode(["One and", " two"])
    (found,) = model.pair_likelihoods([(front, back)])
    assert found.log_prob < 0 and not found.is_greedy
    with pytest.raises(UserError, match="dtype: expected"):
        TextModel("nowhere", "float16")  # type: ignore[arg-type]

"""`lnlit chat`: what it sends, and what it says to what cannot be sent."""

from __future__ import annotations

import io
import json
import sys

import pytest

from lnlit.checkpoint.folder import knows_thinking
from lnlit.data.chat import ChatEncoder
from lnlit.testing.tiny import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model with a context of 256 tokens."""
    return tiny_folder(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def sent(monkeypatch):
    """The texts that models were prompted with."""
    texts = []
    encode = ChatEncoder.encode_prompt

    def remembered(self, messages, *arguments):
        ids = encode(self, messages, *arguments)
        texts.append(self.tokenizer.decode(ids))
        return ids

    monkeypatch.setattr(ChatEncoder, "encode_prompt", remembered)
    return texts


def test_a_short_context_is_filled_by_default_and_a_wish_is_refused(lnlit, model, sent):
    code, _, err = lnlit("chat", model, "--prompt", "hello")
    assert code == 0, err
    code, _, err = lnlit("chat", model, "--prompt", "hello", "--max-new-tokens", "256")
    assert code == 2 and "the model's context is 256" in err
    code, _, err = lnlit("chat", model, "--prompt", "x" * 300)
    assert code == 2 and "the model's context 256; it is forgotten" in err


SAYS = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("options", "system"),
    [
        ([], None),
        (["--thinking", "none"], None),
        (["--thinking", "off"], "detailed thinking off"),
        (["--system", "Be short."], "Be short."),
        (["--thinking", "on", "--system", "Be short."], "detailed thinking on\n\nBe short."),
    ],
)
def test_the_toggle_is_sent_where_it_was_asked_for(lnlit, model, sent, options, system):
    assert lnlit("chat", model, "--prompt", "hello", "--max-new-tokens", "1", *options)[0] == 0
    assert sent == [SAYS if system is None else f"<|im_start|>system\n{system}<|im_end|>\n{SAYS}"]


def test_a_model_that_learned_the_toggle_gets_it_unless_told_otherwise(lnlit, model, sent, rows_file, tmp_path):
    rows = [json.loads(line) | {"thinking": "off"} for line in rows_file.read_text().splitlines()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "trainer": {
            **{"accelerator": "cpu", "max_steps": 1, "default_root_dir": "runs", "enable_progress_bar": False},
            "callbacks": [{"class_path": "ExportModel", "init_args": {"out": "taught"}}],
        },
        "model": {"class_path": "SFT", "init_args": {"model": str(model), "optimizer": {"learning_rate": 1e-3}}},
        "data": {
            "class_path": "ChatData",
            "init_args": {
                "tokenizer": str(model),
                "train": {"class_path": "jsonl", "init_args": {"paths": "rows.jsonl"}},
                **{"sequence_length": 128, "micro_batch_size": 1},
            },
        },
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    code, _, err = lnlit("fit", "--config", "run.yaml")
    assert code == 0, err
    assert knows_thinking(tmp_path / "taught") and not knows_thinking(model)
    assert lnlit("import", "taught", "copy")[0] == 0
    sent.clear()  # samples were drawn while it trained
    code, _, err = lnlit("chat", "copy", "--prompt", "hello", "--max-new-tokens", "1")
    assert code == 0 and "thinking: on, for the model knows the toggle" in err
    assert lnlit("chat", "copy", "--prompt", "hello", "--max-new-tokens", "1", "--thinking", "none")[0] == 0
    assert [text.startswith("<|im_start|>system\ndetailed thinking on") for text in sent] == [True, False]


def test_bytes_that_are_no_text_are_told_and_the_chat_goes_on(lnlit, model, sent, monkeypatch):
    typed = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nhello\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    code, _, err = lnlit("chat", model, "--max-new-tokens", "1", "--system", "S")
    assert code == 0, err
    assert "error: chat: character 3 is no UTF-8 text ('\\udce9'); the message was not sent" in err
    assert sent == [f"<|im_start|>system\nS<|im_end|>\n{SAYS}"]


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_an_option_that_is_no_text_is_refused(lnlit, model, option):
    code, _, err = lnlit("chat", model, "--prompt", "a", option, "b\udce9")
    assert code == 2 and err.startswith("error: chat: character 1 is no UTF-8 text"), err


def test_a_run_and_its_checkpoint_are_told_how_they_become_a_model(lnlit, tmp_path):
    saved = tmp_path / "my run" / "checkpoints" / "step-12.ckpt"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(b"")
    saved.with_name("step-4.ckpt").write_bytes(b"")
    for given in (saved, tmp_path / "my run"):
        code, _, err = lnlit("chat", given, "--prompt", "hello")
        assert code == 2 and f"Make one: lnlit export '{saved}' DIR." in err and err.count("\n") == 1

"""Whatever lnlit writes stops where it was taught to stop, and keeps the template it was taught with."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
from template_corpus import LLAMA3, TEMPLATES, tokenizer_for, tokenizer_of

from lnlit.callbacks.export import ExportModel
from lnlit.checkpoint.convert import export_model, import_model
from lnlit.checkpoint.folder import save_folder
from lnlit.data.chat import ChatEncoder
from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.data.tokenizer import load_tokenizer
from lnlit.errors import UserError
from lnlit.models.weights import canonical_weights
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.testing.tiny import tiny_decoder, tiny_spec

THOUGHT = "<think>1 + 2</think>3"
CHAT = [{"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "3"}]


def folder(path: Path, name: str, template: bool = True) -> Path:
    """A tiny model with the tokenizer of a template, whose generation_config knows the end of a text alone."""
    tokenizer = tokenizer_for(name)
    if not template:
        tokenizer.chat_template = None
    spec = tiny_spec().replace(vocab_size=640)
    save_folder(path, spec, canonical_weights(tiny_decoder(spec)), tokenizer_from=None, provenance={})
    tokenizer.save_pretrained(path)
    end = tokenizer.convert_tokens_to_ids(TEMPLATES[name].specials[0])
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "temperature": 0.6}))
    return path


def stops(path: Path) -> tuple[list[str], dict]:
    """(the tokens at which transformers and vLLM stop a folder's answers, the rest of generation_config.json)."""
    config = json.loads((path / "generation_config.json").read_text())
    ids = config.pop("eos_token_id")
    tokenizer = load_tokenizer(path)
    assert ChatEncoder(tokenizer).end_ids() == sorted(ids)
    return tokenizer.convert_ids_to_tokens(sorted(ids)), config


def test_a_base_model_with_an_added_template_is_exported_with_its_end_of_turn(tmp_path):
    source = folder(tmp_path / "base", "chatml/base")
    for write in (import_model, export_model):
        write(source, tmp_path / write.__name__)
        assert stops(tmp_path / write.__name__) == (["<|endoftext|>", "<|im_end|>"], {"temperature": 0.6})


def test_a_trained_model_is_exported_with_the_template_of_its_data(tmp_path):
    """The data's tokenizer is the model's with a template added, in a folder of its own."""
    model, data = folder(tmp_path / "base", "chatml/base", template=False), folder(tmp_path / "chat", "chatml/base")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": CHAT}) + "\n")
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ExportModel(str(tmp_path / "out"))],
    )
    chats = ChatData(str(data), JsonlSource(str(rows)), sequence_length=64, micro_batch_size=1)
    trainer.fit(SFT(str(model), AdamW(1e-3, schedule="constant", warmup_ratio=0.0)), chats)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    export_model(tmp_path / "last.ckpt", tmp_path / "exported")
    for out in (tmp_path / "out", tmp_path / "exported"):
        assert stops(out) == (["<|endoftext|>", "<|im_end|>"], {"temperature": 0.6})
        assert ChatEncoder(load_tokenizer(out)).encode({"messages": CHAT}) == chats.encoder.encode({"messages": CHAT})


@pytest.mark.parametrize(("name", "ours"), [("nemotron_super_v1", "nemotron"), ("qwen3", "chatml")])
def test_an_imported_model_keeps_thoughts_with_a_template_of_ours(tmp_path, name, ours):
    source = folder(tmp_path / "source", name)
    turns = [*CHAT[:1], {"role": "assistant", "content": THOUGHT}, *CHAT]
    with pytest.raises(UserError, match="--template NAME"):
        ChatEncoder(load_tokenizer(source)).encode({"messages": turns})
    import_model(source, tmp_path / "out", template=ours)
    encoder = ChatEncoder(load_tokenizer(tmp_path / "out"))
    document = encoder.encode({"messages": turns})
    learned = [token for token, yes in zip(document.tokens, document.loss_mask, strict=True) if yes]
    end = TEMPLATES[name].end
    assert encoder.tokenizer.decode(learned) == f"{THOUGHT}{end}3{end}"
    assert end in stops(tmp_path / "out")[0]


def test_a_template_whose_tokens_a_model_has_not_is_refused_before_it_is_read(tmp_path):
    source = folder(tmp_path / "source", "chatml")
    (source / "model.safetensors").write_bytes(b"")  # nobody looks at it
    with pytest.raises(
        UserError, match=r"nemotron: the tokenizer has no token <\|start_header_id\|> <\|end_header_id\|>"
    ):
        import_model(source, tmp_path / "out", template="nemotron")
    with pytest.raises(UserError, match=r"'chatlm' is unknown. Did you mean 'chatml'\?"):
        import_model(source, tmp_path / "out", template="chatlm")
    assert not (tmp_path / "out").exists()


def test_a_template_that_ends_no_turn_leaves_the_folder_as_it_was(tmp_path):
    source = folder(tmp_path / "source", "chatml")
    tokenizer_of("{{ messages[0].content }}", "bytes", LLAMA3, eos_token="<|eot_id|>").save_pretrained(source)
    before = (source / "generation_config.json").read_text()
    assert (import_model(source, tmp_path / "out") / "generation_config.json").read_text() == before

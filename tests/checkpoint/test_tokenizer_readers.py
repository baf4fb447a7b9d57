"""A written folder's tokenizer gives a text the same ids in transformers 4.57, in 5 and in the tokenizers library.

The real transformers 4.57 reads the folders where LNLIT_TRANSFORMERS_4 names its python:

    python -m venv tf4 && tf4/bin/pip install torch==2.13.0 'transformers==4.57.*'
    LNLIT_TRANSFORMERS_4=$PWD/tf4/bin/python pytest tests/checkpoint/test_tokenizer_readers.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tokenizer_texts import texts
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lnlit.checkpoint.tokenizer import save_tokenizer
from lnlit.data.tokenizer import read_tokenizer
from lnlit.errors import UserError
from lnlit.testing import tiny

SPECIAL = ["<|im_start|>", "<|im_end|>", "<think>"]
#: What folders say of one byte-level tokenizer: class, keys of transformers 4 and 5, and other files.
FOLDERS = {
    "llama": {
        "tokenizer_class": "LlamaTokenizerFast",
        "legacy": False,
        "bos_token": "<|im_start|>",
        "add_bos_token": True,
    },
    "gpt2": {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "unk_token": "<|im_end|>"},
    "five": {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "extra_special_tokens": ["<|im_start|>"]},
    "mapping": {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": {"image_token": "<|im_start|>"}},
    "own code": {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["mine.MyTokenizer", None]}},
    "words": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "beside": {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True},
}
OTHER_PYTHON = os.environ.get("LNLIT_TRANSFORMERS_4")


@pytest.fixture(scope="module", params=FOLDERS)
def folders(request, tmp_path_factory) -> tuple[Path, Path]:
    """A folder as somebody published it, and what is written from it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    tiny.save_tokenizer(source)
    config = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"} | FOLDERS[request.param]
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    if request.param == "words":
        backend = json.loads((source / "tokenizer.json").read_text())
        backend["pre_tokenizer"]["add_prefix_space"] = True
        (source / "tokenizer.json").write_text(json.dumps(backend))
    if request.param == "beside":
        (source / "added_tokens.json").write_text(json.dumps({"<think>": 258, "<|tool|>": 259}))
        (source / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<|tool|>"]}))
    save_tokenizer(source, out)
    for folder in (source, out):
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return source, out


def test_transformers_and_tokenizers_agree(folders):
    source, out = folders
    saved, backend = AutoTokenizer.from_pretrained(out), Tokenizer.from_file(str(out / "tokenizer.json"))
    before, ours = read_tokenizer(source), read_tokenizer(out)
    for text in texts(SPECIAL):
        assert saved(text).input_ids == backend.encode(text).ids == before(text).input_ids == ours(text).input_ids
        assert saved.decode(saved(text).input_ids, skip_special_tokens=True) == backend.decode(saved(text).input_ids)
    assert saved.get_vocab() == backend.get_vocab() == before.get_vocab()
    assert set(saved(text)) == {"input_ids", "attention_mask"}  # a Llama takes no token_type_ids


def test_the_configuration_has_what_transformers_4_reads(folders):
    """4.57 knows no TokenizersBackend, rebuilds LlamaTokenizer and others, wants a mapping of extra_special_tokens,
    reads add_prefix_space into the word rules, adds token_type_ids unless told, and ignores add_bos_token; 5 obeys it.
    """
    _, out = folders
    config = json.loads((out / "tokenizer_config.json").read_text())
    words = json.loads((out / "tokenizer.json").read_text())["pre_tokenizer"]
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["add_prefix_space"] is words["add_prefix_space"]
    assert isinstance(config.get("extra_special_tokens", {}), dict)
    assert not {"add_bos_token", "add_eos_token", "auto_map", "backend", "legacy"} & config.keys()
    assert {file.name for file in out.iterdir()} <= {
        *("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json", "chat_template.jinja")
    }


def test_writing_again_changes_nothing(folders, tmp_path):
    _, out = folders
    save_tokenizer(out, tmp_path)
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert (out / name).is_file() is (tmp_path / name).is_file()
        assert not (out / name).is_file() or (out / name).read_bytes() == (tmp_path / name).read_bytes()
    again, first = (json.loads((folder / "tokenizer.json").read_text()) for folder in (tmp_path, out))
    assert again == first


@pytest.mark.skipif(OTHER_PYTHON is None, reason="LNLIT_TRANSFORMERS_4 names no python with transformers 4.57")
def test_the_real_transformers_4_agrees(folders, record_property):
    _, out = folders
    script = (
        "import json, sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "ids = [t(text).input_ids for text in json.load(sys.stdin)];"
        "print(json.dumps([ids, [t.decode(i, skip_special_tokens=True) for i in ids], sorted(t('a'))]))"
    )
    compared = texts(SPECIAL)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    answer = subprocess.run(
        [str(OTHER_PYTHON), "-c", script, str(out)],
        **{"input": json.dumps(compared), "env": environment, "capture_output": True, "text": True, "check": True},
    ).stdout
    saved = AutoTokenizer.from_pretrained(out)
    ids = [saved(text).input_ids for text in compared]
    shown = [saved.decode(each, skip_special_tokens=True) for each in ids]
    assert json.loads(answer) == [ids, shown, ["attention_mask", "input_ids"]]
    record_property("texts_with_equal_ids", len(compared))


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"its tokenizer cannot be read: .*Copy its files again"):
        save_tokenizer(tmp_path, tmp_path)


def test_a_folder_without_tokenizer_json_says_how_to_get_one(tmp_path):
    tiny.save_tokenizer(tmp_path)
    shutil.move(tmp_path / "tokenizer.json", tmp_path / "tokenizer.model")
    with pytest.raises(UserError, match=r"it holds no tokenizer.json. `lnlit import .* OUT` makes one"):
        read_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer.model: is no SentencePiece model. The folder needs"):
        save_tokenizer(tmp_path, tmp_path)

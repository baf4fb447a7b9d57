"""The tokenizer that travels with a model folder: files of a folder copied, or built from a GGUF file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lnlit.checkpoint.safetensors_folder import read_json
from lnlit.errors import UserError

_GENERATION = "generation_config.json"
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    _GENERATION,
)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def save_tokenizer(source: Path, folder: Path) -> None:
    """Put the tokenizer of `source` (a model folder or GGUF file) and a generation_config.json into `folder`."""
    from lnlit.checkpoint.gguf import gguf_file

    file = gguf_file(source)
    if file is not None:
        _build_from_gguf(file, folder)
        return
    names = [name for name in _FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, folder / name)
    if _GENERATION not in names:
        _write_generation_config(folder, _ids_of_config(source / "config.json"))


def special_token_ids(folder: Path) -> dict[str, Any]:
    """The special token ids that a config.json repeats."""
    ids = read_json(folder / _GENERATION)
    return {key: ids[key] for key in _IDS if ids.get(key) is not None}


def _build_from_gguf(file: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    from lnlit.checkpoint.gguf import eos_token_ids

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # transformers raises whatever its conversion of a vocabulary meets
        raise UserError(f"{file}: transformers cannot build its tokenizer: {type(error).__name__}: {error}.") from error
    tokenizer.save_pretrained(folder)
    eos = eos_token_ids(file)
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    _write_generation_config(folder, ids | {"eos_token_id": eos[0] if len(eos) == 1 else eos or None})


def _ids_of_config(config: Path) -> dict[str, Any]:
    return read_json(config) if config.is_file() else {}


def _write_generation_config(folder: Path, ids: dict[str, Any]) -> None:
    known = {key: ids[key] for key in _IDS if ids.get(key) is not None}
    (folder / _GENERATION).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")

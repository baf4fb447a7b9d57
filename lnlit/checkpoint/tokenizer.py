"""The tokenizer that travels with a model folder: files of a folder copied, or built from a GGUF file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lnlit.checkpoint.gguf import eos_token_ids, gguf_file
from lnlit.errors import UserError
from lnlit.files import read_json

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


def save_tokenizer(source: Path, folder: Path) -> dict[str, Any]:
    """Put the tokenizer of `source` (a model folder or GGUF file) and a generation_config.json into `folder`. Returns
    the special token ids that a config.json repeats.
    """
    file = gguf_file(source)
    if file is not None:
        return _build_from_gguf(file, folder)
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    ids = _special_ids(_json_or_empty(source / "config.json"))
    if not (folder / _GENERATION).is_file():
        eos = _as_list(ids.get("eos_token_id")) + _as_list(_tokenizer_eos(source))
        _write_generation_config(folder, ids | _eos(eos))
    return ids


def _build_from_gguf(file: Path, folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # transformers raises whatever its conversion of a vocabulary meets
        raise UserError(f"{file}: transformers cannot build its tokenizer: {type(error).__name__}: {error}.") from error
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return _write_generation_config(folder, ids | _eos(eos_token_ids(file)))


def _tokenizer_eos(source: Path) -> int | None:
    """The id of the tokenizer's own end token, which in chat models is often another one than the config's."""
    token = _json_or_empty(source / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, Mapping) else token
    added = _json_or_empty(source / "tokenizer.json").get("added_tokens", [])
    return next((entry["id"] for entry in added if entry["content"] == content), None)


def _eos(ids: Iterable[int]) -> dict[str, Any]:
    distinct = sorted(set(ids))
    return {"eos_token_id": distinct[0] if len(distinct) == 1 else distinct or None}


def _as_list(ids: Any) -> list[int]:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _special_ids(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if values.get(key) is not None}


def _write_generation_config(folder: Path, ids: Mapping[str, Any]) -> dict[str, Any]:
    known = _special_ids(ids)
    if known:
        (folder / _GENERATION).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return known


def _json_or_empty(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}

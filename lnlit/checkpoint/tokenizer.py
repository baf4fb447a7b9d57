"""The tokenizer that travels with a model folder, copied or built from a GGUF file, and where answers stop by it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.checkpoint.gguf import eos_token_ids, gguf_file, open_gguf
from lnlit.checkpoint.gguf_tokenizer import gguf_tokenizer
from lnlit.checkpoint.sentence_piece import read_model_file
from lnlit.end_of_turn import GENERATION_CONFIG, end_ids, named_ids
from lnlit.errors import UserError
from lnlit.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_CONFIG, _BACKEND, _MODEL = "tokenizer_config.json", "tokenizer.json", "tokenizer.model"
#: Files that add to a tokenizer; what they say goes into tokenizer.json and tokenizer_config.json.
_BESIDE = (_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
#: Everything that says how text becomes tokens, and messages text.
TOKENIZER_FILES = (_BACKEND, _MODEL, "vocab.json", "merges.txt", *_BESIDE)
#: llama.cpp's converter reads tokenizer.model; transformers needs tokenizer.json alone.
_COPIED = (_MODEL, GENERATION_CONFIG)
#: Keys of transformers 4 and 5 that make one of them read a tokenizer in another way than tokenizer.json says.
_READ_DIFFERENTLY = ("auto_map", "backend", "is_local", "local_files_only", "add_bos_token", "add_eos_token", "legacy")


def save_tokenizer(source: Path, folder: Path) -> dict[str, Any]:
    """Put the tokenizer of `source` (a model folder or GGUF file) and a generation_config.json into `folder`. Returns
    the special token ids that a config.json repeats.

    tokenizer.json says everything, so that transformers 4 and 5 and whoever else reads it give a text the same ids.
    """
    file = gguf_file(source)
    if file is not None:
        return _build_from_gguf(file, folder)
    tokenizer = _read(source, folder)
    if tokenizer is not None:
        _save_for_every_reader(tokenizer, folder)
    for name in _COPIED if tokenizer is not None else (*_COPIED, *_BESIDE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for name in (GENERATION_CONFIG, "config.json"):
        for key in _SPECIAL_IDS if (source / name).is_file() else ():
            _check_ids(source / name, key)
    ids = _special_ids(_json_or_empty(source / "config.json"))
    if not (folder / GENERATION_CONFIG).is_file():
        # the tokenizer's own is in chat models often another one than the config's
        eos = _as_list(ids.get("eos_token_id")) + _as_list(getattr(tokenizer, "eos_token_id", None))
        _write_generation_config(folder, ids | _eos(eos))
    return ids


def take_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files of `source` over those in `folder`: all of them, or what is added to a tokenizer where
    `source` has none."""
    there = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in TOKENIZER_FILES if set(there) - set(_BESIDE) else ():
        (folder / name).unlink(missing_ok=True)
    for name in there:
        shutil.copyfile(source / name, folder / name)


def _build_from_gguf(file: Path, folder: Path) -> dict[str, Any]:
    from transformers import PreTrainedTokenizerFast

    metadata = open_gguf(file)
    backend, named = gguf_tokenizer(metadata)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **{"bos_token": None, "eos_token": None} | named
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    _save_for_every_reader(tokenizer, folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return _write_generation_config(folder, ids | _eos(eos_token_ids(file)))


def _read(source: Path, scratch: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder according to its tokenizer.json, whatever class it names; None if there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found = {name for name in (_BACKEND, _MODEL, "vocab.json") if (source / name).is_file()}
    reader: Any = PreTrainedTokenizerFast if found & {_BACKEND, _MODEL} else AutoTokenizer
    try:
        if _MODEL in found and _BACKEND not in found:
            backend = read_model_file(source / _MODEL, _json_or_empty(source / _CONFIG))
            for name in _BESIDE:
                if (source / name).is_file():
                    shutil.copyfile(source / name, scratch / name)
            backend.save(str(scratch / _BACKEND))
            source = scratch
        return reader.from_pretrained(source, local_files_only=True) if found else None
    except UserError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others for one cause
        reason = " ".join(str(error).split())
        raise UserError(
            f"{source}: its tokenizer cannot be read: {type(error).__name__}: {reason}. Copy its files again, or take "
            "them out of the folder to go on without a tokenizer."
        ) from error


def _save_for_every_reader(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    for name in _BESIDE:
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    config = {key: value for key, value in read_json(folder / _CONFIG).items() if key not in _READ_DIFFERENTLY}
    if more := config.pop("extra_special_tokens", None):  # transformers 4 wants a mapping under this name
        config["additional_special_tokens"] = more
    if named := config.pop("model_specific_special_tokens", None):  # and 5 has another name for that mapping
        config = {key: value for key, value in config.items() if key not in named} | {"extra_special_tokens": named}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # any other class is unknown to one or rebuilt by the other
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])  # transformers 4 adds token_type_ids
    backend = read_json(folder / _BACKEND)
    if "add_prefix_space" in (words := backend["pre_tokenizer"] or {}):  # transformers 4 changes it to what stands here
        config["add_prefix_space"] = words["add_prefix_space"]
    write_json(folder / _CONFIG, dict(sorted(config.items())))
    special = set(tokenizer.all_special_tokens)
    ordinary = [token for token in backend["added_tokens"] if token["content"] in special and not token["special"]]
    for token in ordinary:
        token |= {"special": True, "normalized": False}
    if ordinary:
        write_json(folder / _BACKEND, backend)


def _eos(ids: Iterable[int]) -> dict[str, Any]:
    distinct = sorted(set(ids))
    return {"eos_token_id": distinct[0] if len(distinct) == 1 else distinct or None}


def _as_list(ids: Any) -> list[int]:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _check_ids(file: Path, key: str) -> None:
    """Raises `UserError` unless the value at `key` in a JSON file consists of token ids. `eos_token_id` may list
    several; any other key may have one only, because transformers takes one first and one padding token."""
    named_ids(file, key)
    if key != "eos_token_id" and isinstance(given := read_json(file).get(key), list):
        raise UserError(f"{file}: {key}: expected one token id, got {given!r}. Correct the file.")


def _special_ids(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in _SPECIAL_IDS if values.get(key) is not None}


def _write_generation_config(folder: Path, ids: Mapping[str, Any]) -> dict[str, Any]:
    known = _special_ids(ids)
    if known:
        write_json(folder / GENERATION_CONFIG, known)
    return known


def _json_or_empty(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def stop_at_turn_ends(folder: Path) -> None:
    """Add the chat template's ends of turn to a folder's generation_config.json: a base model with a chat template
    added knows only the end of a text. A folder without tokenizer or template, or with one that ends no turn, stays.
    """
    tokenizer = folder_tokenizer(folder)
    if tokenizer is None or not tokenizer.chat_template:
        return
    file = folder / GENERATION_CONFIG
    config = read_json(file) if file.is_file() else {}
    try:
        ends = end_ids(tokenizer)
    except UserError:  # it serves for other things than chat; whoever trains on it is told
        return
    if set(ends) != set(named_ids(file, "eos_token_id") if config else []):
        write_json(file, {**config, "eos_token_id": ends[0] if len(ends) == 1 else ends})


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder; None where it has none that can be read."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception:  # transformers raises OSError, ValueError, KeyError and others for one and the same cause
        return None

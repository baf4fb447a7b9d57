"""Where a model folder's answers stop: every end of turn stands in generation_config.json, whoever generates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lnlit.end_of_turn import GENERATION_CONFIG, end_ids, named_ids
from lnlit.errors import UserError
from lnlit.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

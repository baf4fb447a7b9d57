"""The tokenizer of a model folder, with what training needs from it checked at load time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.errors import UserError
from lnlit.files import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Like `read_tokenizer`, but raises `UserError` if the tokenizer has no chat template."""
    tokenizer = read_tokenizer(name)
    check_tokenizer(tokenizer, str(name))
    return tokenizer


def read_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or of a Hugging Face name (`owner/model`, which may download).

    Never runs code from the folder, and reads its tokenizer.json whatever class it names, because transformers would
    rebuild a LlamaTokenizer by other rules. Raises `UserError` if there is no tokenizer.json.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    folder = expanded(name)
    hub_name = not folder.exists() and str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))
    if not folder.is_dir() and not hub_name:
        raise UserError(
            f"tokenizer: {str(name)!r} is no folder. Give a model folder (`lnlit import SRC OUT` makes one), "
            "or a Hugging Face name owner/model."
        )
    if not hub_name and not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"tokenizer: cannot read one from {str(name)!r}: it holds no tokenizer.json. `lnlit import {name} OUT` "
            "makes one from a GGUF file or a tokenizer.model."
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it looks at config.json as well and warns of architectures it does not know
    try:
        if hub_name:
            tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others for one cause
        why = f"{type(error).__name__}: {_first_line(error)}."
        if hub_name:
            raise UserError(
                f"tokenizer: there is no folder {str(name)!r} here, and none of that name could be had from the hub. "
                f"`lnlit import SRC {name}` makes the folder. ({why})"
            ) from error
        raise UserError(
            f"tokenizer: cannot read one from {str(name)!r}: {why} The folder needs tokenizer.json and "
            "tokenizer_config.json."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    _check_fast(tokenizer, str(name))
    return tokenizer


def check_tokenizer(tokenizer: Any, name: str = "tokenizer") -> None:
    """Raises `UserError` unless the tokenizer has a chat template and a fast (Rust) backend."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"tokenizer: {name!r} has no chat template, so its model was not made for chat. Add a "
            "chat_template.jinja to the folder, e.g. the one of the model's instruct variant."
        )
    _check_fast(tokenizer, name)


def _check_fast(tokenizer: Any, name: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer: {name!r} has no tokenizer.json; convert it to a fast tokenizer first.")


def pad_id(tokenizer: Any) -> int:
    """The token id of padding. It is never attended to and never predicted, so any valid id will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")

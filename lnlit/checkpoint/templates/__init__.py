"""Chat templates that keep all that is said, for models whose own template strips thoughts or has no tools."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from lnlit.checkpoint.tokenizer import folder_tokenizer
from lnlit.errors import UserError, did_you_mean
from lnlit.files import read_json, write_json

TEMPLATE_FILE = "chat_template.jinja"

#: What each is for.
TEMPLATES = {
    "chatml": "ChatML with <|im_start|> and <|im_end|>, as Qwen and SmolLM",
    "nemotron": "the headers of Llama 3, as Llama-Nemotron",
    "deepseek_r1": "DeepSeek-R1 and its distilled models",
}

_CONTROL = re.compile(r"<\|\w+\|>|<\uff5c[^\uff5c]+\uff5c>")  # the second with DeepSeek's wide bars


def check_template(name: str) -> None:
    """Raises `UserError` for the name of a template that lnlit does not have."""
    if name not in TEMPLATES:
        raise UserError(
            f"template {name!r} is unknown.{did_you_mean(name, TEMPLATES)} Allowed: {', '.join(TEMPLATES)}."
        )


def put_template(name: str, folder: Path) -> None:
    """Makes `name` the chat template of a folder. Raises `UserError` if the folder has no tokenizer, or if a control
    token of the template is missing in the tokenizer: it would be spelled out, and nothing would end a turn."""
    check_template(name)
    tokenizer: Any = folder_tokenizer(folder)
    if tokenizer is None:
        raise UserError(f"template {name}: the model has no tokenizer.json, and a template needs one.")
    text = resources.files("lnlit.checkpoint.templates").joinpath(f"{name}.jinja").read_text(encoding="utf-8")
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    unknown = [token for token in dict.fromkeys(_CONTROL.findall(text)) if token not in known]
    if unknown:
        raise UserError(
            f"template {name}: the tokenizer has no token {' '.join(unknown)}, so the model cannot write it. Take the "
            f"template of the model's own family: {', '.join(f'{key} ({use})' for key, use in TEMPLATES.items())}."
        )
    (folder / TEMPLATE_FILE).write_text(text, encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if config.is_file() and "chat_template" in (written := read_json(config)):
        write_json(config, {key: value for key, value in written.items() if key != "chat_template"})

"""Which tokens end an assistant's turn, for training, chat, sampling and every exported folder.

A turn ends with a control token. The tokens that a model may end its turn with are found by rendering a conversation
with its chat template, and in the files of its folder: the tokenizer's end of sequence and `generation_config.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.thinking import TAGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_CONFIG = "generation_config.json"

#: Tags that an assistant writes itself, either as special tokens or as text.
OWN_TAGS = (*TAGS, "<tool_call>", "</tool_call>")

_BRACKETED = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
_ASKED, _SAID, _GOES_ON = "First question", "The answer", "Second question"
_CALL = {"name": "look_up", "arguments": {"word": "answers"}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "The word."}}},
    },
}


def control_texts(tokenizer: Any) -> tuple[str, ...]:
    """The texts of all control tokens, longest first, so that a regular expression of them prefers the longest match.

    These are the special tokens, and tokens that the chat template writes in brackets, because some tokenizers
    (DeepSeek's) mark the tokens that begin a turn as ordinary ones. The tags of thinking and tool calls are not
    included.
    """
    added = tokenizer.added_tokens_decoder.values()
    template = str(tokenizer.chat_template)
    written = {token.content for token in added if _BRACKETED.fullmatch(token.content) and token.content in template}
    texts = {token.content for token in added if token.special} | (written - {*OWN_TAGS})
    return tuple(sorted(texts | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text)))


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of tokens that end generation: those that end a turn in the chat template, the tokenizer's end of
    sequence, and those named in the tokenizer's folder. Raises `UserError` if the template ends a turn without a
    control token."""
    template = tokenizer.convert_tokens_to_ids(list(template_ends(tokenizer)))
    own = [tokenizer.eos_token_id]
    return sorted({token for token in (*template, *own, *_named_beside(tokenizer)) if isinstance(token, int)})  # type: ignore[misc]


def template_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The control tokens that the chat template writes after an assistant's answer or tool call.

    Raises `UserError` if there is none before the next turn, because a model could not learn to stop.
    """
    special = re.compile("|".join(map(re.escape, control_texts(tokenizer))) or r"(?!)")
    asked, said = {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}
    alone = _rendered(tokenizer, [asked, said])
    found = [_first(special, _after(alone, [_SAID]))]
    try:
        going_on = _rendered(tokenizer, [asked, said, {"role": "user", "content": _GOES_ON}])
    except UserError:  # such as a template for one turn only
        going_on = ""
    if _SAID in going_on:
        found.append(_first(special, _after(going_on, [_SAID]).partition(_GOES_ON)[0]))
    if None in found:
        raise UserError(
            "the chat template ends an assistant turn without a special token, so the model would never learn to stop. "
            "Add the end-of-turn token to the template, or take one of ours: `lnlit import MODEL OUT --template NAME`."
        )
    return tuple(dict.fromkeys([text for text in found if text] + _ends_of_call(tokenizer, special, found)))


def _ends_of_call(tokenizer: PreTrainedTokenizerBase, special: re.Pattern[str], known: Iterable[Any]) -> list[str]:
    """The control tokens after a tool call, if they differ from those after an answer."""
    call = {"id": "abcdefghi", "type": "function", "function": _CALL}
    messages = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    try:
        text = _rendered(tokenizer, messages, [_TOOL])
    except UserError:
        return []
    said = ["look_up", "answers"]
    after = _after(text, said)
    ends = special.findall(after)
    if not all(part in text.rpartition(_ASKED)[2] for part in said) or set(ends) & set(known):
        return []  # the template says nothing of the call, or ends it like every other turn
    return ends[-1:]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Any], tools: list[Any] | None = None) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tools, tokenize=False))
    except Exception as error:  # a template may raise anything, e.g. jinja's TemplateError
        raise UserError(f"the chat template refuses a conversation of a question and an answer: {error}") from error


def _after(text: str, said: list[str]) -> str:
    """The text that follows the last occurrence of the assistant's message."""
    return text[max(text.rfind(part) + len(part) for part in said) :]


def _first(special: re.Pattern[str], text: str) -> str | None:
    found = special.search(text)
    return found and found[0]


def _named_beside(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end tokens that `generation_config.json`, or else `config.json`, names in the tokenizer's folder."""
    name = tokenizer.name_or_path
    if not name:
        return []
    for file in (GENERATION_CONFIG, "config.json"):
        path = _in_folder(name, file)
        ends = named_ids(path, "eos_token_id") if path is not None else []
        if ends:
            return ends
    return []


def _in_folder(name: str, file: str) -> Path | None:
    """The path of a file in a model folder or in a Hugging Face repository; None if it does not exist."""
    folder = Path(name)
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except (OSError, ValueError):  # no such file, no network
        return None


def named_ids(file: Path, key: str) -> list[int]:
    """The token ids at a key of a JSON file: none, one or several. Raises `UserError` for any other value."""
    given = read_json(file).get(key)
    ids = [] if given is None else given if isinstance(given, list) else [given]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            raise UserError(f"{file}: {key}: expected a token id or a list of ids, got {given!r}. Correct the file.")
    return list(ids)

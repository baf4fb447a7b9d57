"""Reads rows as people write them into one form: a conversation.

Every reader of chat rows (training, preferences, prompts, splits) uses `conversation` or `asked`. A row has a prompt
and may have an answer, each under one of several names. Everything else that changes what a model is shown or learns is
read too, or the row is refused. The remaining keys are annotations and are listed in `unread`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lnlit.data.messages import Message, Turn, check_text, hh_messages, one_of, read_messages, read_tools
from lnlit.errors import UserError, shown
from lnlit.thinking import Thinking, mode, on_or_off, toggle

#: Keys of the prompt and of the answer. The first one that a row has is read.
DIALOGUES = ("messages", "conversations")
PROMPTS = (*DIALOGUES, "instruction", "prompt", "input")
#: Keys of the text that an instruction is about, in Alpaca and dolly.
_MATTER = ("input", "context")
_HISTORY = "history"
ANSWERS = ("completion", "response", "output")
_SYSTEM = ("system", "system_prompt")
_TOGGLES = ("thinking", "reasoning")
_TOOLS = ("tools", "functions")
_ARGUMENTS = "chat_template_kwargs"
_ENABLE = "enable_thinking"
_THOUGHTS = "reasoning_content"
_PAIR = ("chosen", "rejected")
#: Common names of questions and answers, to suggest columns.
_QUESTIONS = ("question", "query", "problem", "task", "text", "user")
_REPLIES = ("solution", "answer", "answers", "generation", "reply", "target", "assistant")
#: Keys that lnlit does not support, and what to do instead.
_REFUSED = {
    **dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), "lnlit learns text"),
    "documents": "put their text into a message",
    "chat_template": "a run has one template, its tokenizer's",
    "continue_final_message": "write the turn as a whole",
}
#: Keys of whether the answer is good, in TRL's and LLaMA-Factory's rows for KTO.
_LABELS = ("label", "kto_tag")
#: Keys beside the prompt that change what the model is shown, and so belong to a preference row as well.
CONTEXT = (*_SYSTEM, *_TOGGLES, *_TOOLS, _ARGUMENTS, _ENABLE, *_REFUSED, "mask", "weight")
#: The arguments of `apply_chat_template` that lnlit sets.
_TAKEN = ("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize")

EXPECTED = (
    "expected the key messages or conversations, or a prompt (instruction, prompt or input) with its answer "
    "(completion, response or output)"
)


@dataclass(frozen=True)
class Conversation:
    """The content of a row, in the form that every template is given.

    Args:
        messages: Messages with a `role` and `content`, beginning with the system prompt.
        learned: True for each message that is learned: the assistant's, unless the row says otherwise.
        tools: Definitions that the template shows the model, as JSON schemas.
        template_arguments: Further variables of the template (Hugging Face's `chat_template_kwargs`).
        unread: Keys of the row that are not part of the conversation.
    """

    messages: list[Message]
    learned: tuple[bool, ...]
    tools: list[Any] | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def without_answer(self) -> Conversation:
        """The conversation up to what the assistant must answer."""
        stop = len(self.messages)
        while stop and self.messages[stop - 1]["role"] == "assistant":
            stop -= 1
        return replace(self, messages=self.messages[:stop], learned=self.learned[:stop])


def conversation(row: Mapping[str, Any], thinking: Thinking | None = None) -> Conversation:
    """A row's conversation, beginning with its system prompt. docs/guide/rows.md has the forms.

    The toggle is taken from the row's system prompt, or from its key `thinking` or `reasoning`, and is put before a
    system prompt that does not mention thinking. Otherwise it is the argument, unless the row has a key `system` or
    `system_prompt`, which is then the whole system prompt.

    Raises `UserError` for a row of no known form, a row that contradicts itself, and one with keys that lnlit cannot
    honour.
    """
    given = {key: value for key, value in row.items() if value is not None}
    _refuse(given)
    turns, read = prompt_turns(given)
    if turns is None:
        keys = ", ".join(map(str, row)) or "none"
        raise UserError(f"{EXPECTED}; got keys: {keys}. {_advice(given)}")
    answer, name = _answer(given)
    if not (read & set(DIALOGUES) and turns[-1].message["role"] == "assistant"):  # else it can but repeat that turn
        turns, read = [*turns, *answer], read | {name}
    messages = [turn.message for turn in turns]
    check_said(given, read, messages)
    read |= {*_SYSTEM, *_TOGGLES, *_TOOLS, _ARGUMENTS, _ENABLE, _THOUGHTS, "mask", "weight"}
    read |= {key for key in _LABELS if isinstance(given.get(key), bool)}
    system = _with_system(messages, _system_prompt(given), _toggle(given), thinking)
    learned = tuple(turn.learned for turn in turns)
    unread = [key for key, value in given.items() if key not in read and value not in ("", [], {})]
    return Conversation(
        system,
        (False,) * (len(system) - len(messages)) + learned,
        read_tools(one_of(given, _TOOLS)),
        _template_arguments(given),
        tuple(dict.fromkeys([*unread, *(key for turn in turns for key in turn.unread)])),
    )


def asked(row: Mapping[str, Any], thinking: Thinking | None = None) -> Conversation:
    """A row's conversation up to what the assistant must answer. Keys for the answer may hold anything, because only
    rewards read them."""
    answers = {*ANSWERS, *_PAIR, *_LABELS, _THOUGHTS}
    return conversation({key: row[key] for key in row if key not in answers}, thinking).without_answer()


def beside(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row holds beside its conversation: tools, variables of the template, and keys that only annotate."""
    spoken = {*PROMPTS, *_MATTER, _HISTORY, *_SYSTEM, *_TOGGLES, *ANSWERS, *_PAIR, *_LABELS, _THOUGHTS}
    return {key: value for key, value in row.items() if key not in spoken}


def answers(row: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a row that are its answer or say how good it is. The turns that `asked` leaves out of a dialogue are
    under `messages`."""
    named = {*ANSWERS, *_PAIR, *_LABELS, _THOUGHTS}
    said = conversation({key: value for key, value in row.items() if key not in named})
    turns = said.messages[len(said.without_answer().messages) :]
    given = {key: value for key, value in row.items() if key in named and value is not None}
    return {**given, **({"messages": turns} if turns else {})}


def prompt_turns(row: Mapping[str, Any]) -> tuple[list[Turn] | None, set[str]]:
    """(a row's turns without a separate answer and without its system prompt, the keys that hold them), or None if it
    has no prompt."""
    name = next((key for key in PROMPTS if row.get(key) is not None), None)
    if name is None:
        return None, set()
    value, read = row[name], {name}
    if name in DIALOGUES:
        return read_messages(value, name), read
    if not isinstance(value, str):
        return _dialogue(value, name), read
    if name == "instruction":
        matter = [(key, row[key]) for key in _MATTER if row.get(key) not in (None, "")]
        for key, text in matter:
            if not isinstance(text, str):
                raise UserError(f"{key}: expected text beside an instruction, got {shown(text)}")
        value = "\n".join(text for text in [value, *(text for _, text in matter)] if text)
        read |= set(_MATTER)
    if name == "prompt" and (dialogue := hh_messages(value)) is not None:
        return _hh_prompt(dialogue, value), read
    history = list(_history(row.get(_HISTORY)))
    return [*history, *read_messages([{"role": "user", "content": value}], name)], read | {_HISTORY}


def _hh_prompt(messages: list[Message], text: str) -> list[Turn]:
    """A prompt that is a dialogue as in Anthropic's HH data, with or without an empty assistant turn at its end."""
    if messages[-1] == {"role": "assistant", "content": ""}:
        del messages[-1]
    if not messages or messages[-1]["role"] != "user":
        raise UserError(f"prompt: a dialogue that does not end with what the assistant has to answer: {shown(text)}")
    return read_messages(messages, "prompt")


def _history(value: Any) -> Iterator[Turn]:
    """Earlier rounds as pairs of question and answer (LLaMA-Factory's form, which learns these answers too)."""
    for pair in value if isinstance(value, list) else [value] if value else ():
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"history: expected pairs of a question and its answer, got {shown(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            yield from read_messages([{"role": role, "content": text}], _HISTORY)


def _answer(row: Mapping[str, Any]) -> tuple[list[Turn], str]:
    name = next((key for key in ANSWERS if row.get(key) is not None), "")
    value, thoughts = row.get(name), row.get(_THOUGHTS)
    if value is None or value == []:
        if thoughts:
            raise UserError(f"{_THOUGHTS}: thoughts of no answer; the row has none of the keys {', '.join(ANSWERS)}")
        return [], name
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    if thoughts:
        if not isinstance(value, Mapping):
            raise UserError(f"{_THOUGHTS}: say the thoughts in the messages of {name}, got {shown(value)}")
        value = {**value, _THOUGHTS: thoughts}
    return _dialogue(value, name), name


def _dialogue(value: Any, name: str) -> list[Turn]:
    tree = isinstance(value, Mapping) and "replies" in value  # OpenAssistant's
    if isinstance(value, list) or (_is_turn(value) and not tree):
        return read_messages(value, name)
    hint = ". A tree of replies is no conversation: write a row for each path through it" if tree else ""
    raise UserError(f"{name}: expected prompt and completion as text or lists of messages, got {shown(value)}{hint}.")


def check_said(row: Mapping[str, Any], read: set[str], messages: Sequence[Message]) -> None:
    """Raises `UserError` for a key that may be prompt or answer, is not in `read`, and holds different content."""
    for key in (*PROMPTS, *ANSWERS, *_MATTER, _HISTORY, *_PAIR):
        if key not in row or key in read:
            continue
        said = [m for m in messages if m["role"] == "assistant"] if key in ANSWERS else messages
        if not _says(said, row[key]):
            instead = ""
            if key in _PAIR:
                instead = "; rows with chosen and rejected are for PreferenceData"
            elif key in _MATTER and "prompt" in row:
                instead = f", or {{prompt: instruction}} to read {key} too"
            raise UserError(
                f"{' and '.join(sorted(read & {*PROMPTS, *ANSWERS}))} are read, and {key} says something else: "
                f"{shown(row[key])}. Write columns: {{{key}: null}} for the source to leave it out{instead}."
            )


def _refuse(row: Mapping[str, Any]) -> None:
    for key, why in _REFUSED.items():
        if row.get(key):
            raise UserError(f"{key}: {why}. Leave such rows out, or the key: columns: {{{key}: null}} of the source.")
    if (weight := row.get("weight", 1)) != 1:
        raise UserError(f"weight: every row counts once, got {shown(weight)}. Give sources a weight in a blend.")
    if row.get("mask") not in (None, "", "User", "user"):  # NeMo's key of the roles that are not learned
        raise UserError(f"mask: only the assistant's turns can be learned, got {shown(row['mask'])}")
    for key in _LABELS:
        if row.get(key) is False:
            ignored = f"columns: {{{key}: null}} of the source"
            raise UserError(
                f"{key}: the row says that its answer is a bad one. Leave such rows out, or the key: {ignored}."
            )


def _advice(row: Mapping[str, Any]) -> str:
    if set(row) == {"text"}:
        return "Rows of text are for TextData."
    if set(_PAIR) <= set(row):
        return "Rows with chosen and rejected are for PreferenceData."
    dialogue = next(
        (key for key, value in row.items() if isinstance(value, list) and value and _is_turn(value[0])), None
    )
    if dialogue is not None:
        return f"Say what is what in the source's columns, as in columns: {{{dialogue}: messages}}."
    question = next((key for key in _QUESTIONS if key in row), "QUESTION")
    reply = next((key for key in _REPLIES if key in row), "ANSWER")
    answered = any(key in row for key in (*ANSWERS, "completions"))
    columns = f"{question}: prompt" if answered else f"{question}: prompt, {reply}: completion"
    return f"Say what is what in the source's columns, as in columns: {{{columns}}}."


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"role", "from"} & set(value))


def _template_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    given = row.get(_ARGUMENTS) or {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise UserError(f"{_ARGUMENTS}: not valid JSON: {error.msg}: {shown(given)}") from error
    if not isinstance(given, Mapping):
        raise UserError(f"{_ARGUMENTS}: expected a mapping of a template's variables, got {shown(given)}")
    if taken := [name for name in given if name in _TAKEN]:
        raise UserError(f"{_ARGUMENTS}: {taken[0]} is none of a template's variables that a row may set")
    check_text(given)
    enabled = {_ENABLE: row[_ENABLE]} if _ENABLE in row else {}
    for value in (value for said in (enabled, given) if (value := said.get(_ENABLE)) is not None):
        if not isinstance(value, bool):  # a template asks whether it is false: "false" is true to it, and 0 is neither
            raise UserError(f"{_ENABLE}: expected true or false, got {shown(value)}")
    if {**enabled, **given} != {**given, **enabled}:
        raise UserError(f"{_ENABLE} and {_ARGUMENTS} say different things; keep one of them")
    return {**enabled, **given}


def _system_prompt(row: Mapping[str, Any]) -> str | None:
    system = one_of(row, _SYSTEM) or None
    if system is not None and not isinstance(system, str):
        raise UserError(f"system: expected text, got {shown(system)}")
    check_text(system)
    return system


def _toggle(row: Mapping[str, Any]) -> Thinking | None:
    """The thinking mode that the row asks for outside its messages."""
    found = set()
    for key in _TOGGLES:
        value = row.get(key)
        if value is None or value == "":
            continue
        if not isinstance(value, bool) and value not in ("on", "off"):
            raise UserError(
                f"{key}: expected on or off, got {shown(value)}. If these are the answer's thoughts, say so in the "
                f"source's columns: {{{key}: {_THOUGHTS}}}."
            )
        found.add(on_or_off(value))
    if len(found) > 1:
        raise UserError("thinking and reasoning say different things; keep one of them")
    return found.pop() if found else None


def _with_system(
    messages: list[Message], system: str | None, own: Thinking | None, default: Thinking | None
) -> list[Message]:
    """The messages with the row's system prompt and the toggle before the text of their own system message."""
    said = [str(message["content"]) for message in messages if message["role"] == "system"]
    if system is not None and not (said and said[0].startswith(system)):
        said.insert(0, system)
    in_prompt = mode([{"role": "system", "content": "\n\n".join(said)}])
    other = toggle("off" if in_prompt == "on" else "on")
    if in_prompt and (any(other in text for text in said) or own not in (None, in_prompt)):
        raise UserError(f"the row asks for {toggle(in_prompt)!r} and for {other!r}, and these must agree")
    wanted = own or (default if system is None else None)
    front = [toggle(wanted)] if wanted and not in_prompt else []
    if messages and messages[0]["role"] == "system":
        first = messages[0]["content"]
        front += [system] if system is not None and not first.startswith(system) else []
        return [{**messages[0], "content": "\n\n".join(text for text in [*front, first] if text)}, *messages[1:]]
    front += [system] if system is not None else []
    return [{"role": "system", "content": "\n\n".join(front)}, *messages] if front else list(messages)


def _says(messages: Sequence[Message], value: Any) -> bool:
    """True if everything in `value` occurs in the messages."""
    spoken = [text for message in messages for text in _texts(message)]
    return all(any(text in said for said in spoken) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("role", "from", "type"):
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif value is not None:
        yield json.dumps(value, default=str)

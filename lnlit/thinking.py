"""Reasoning on demand: the toggle in the system prompt, whether an answer obeys it (Llama-Nemotron section 3), and how
to separate a text into thinking and answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lnlit.errors import UserError

Thinking = Literal["on", "off"]

OPEN, CLOSE = TAGS = ("<think>", "</think>")

#: The beginning of the toggle's system prompt.
TOGGLE = "detailed thinking"
_TOGGLE = re.compile(rf"{TOGGLE} (on|off)\b")
_BOX_OR_BRACE = re.compile(r"(\\boxed\s*)?\{|\}|\\\\(?=[{}])|\\[{}]")
_THOUGHT_THEN_ANSWER = re.compile(r"\s*<think>((?!</?think>).)*</think>\s*\S", re.DOTALL)
_OPENED = re.compile(r"<think>\s*\Z")


def on_or_off(thinking: Any) -> Thinking:
    """Converts a boolean to `on` or `off`, because YAML reads the bare words on and off as true and false."""
    value = ("on" if thinking else "off") if isinstance(thinking, bool) else thinking
    if value not in get_args(Thinking):
        raise UserError(f"thinking: expected on or off, got {thinking!r}")
    return value


def toggle(thinking: Any) -> str:
    """The system prompt that switches thinking on or off."""
    return f"{TOGGLE} {on_or_off(thinking)}"


def mode(messages: Sequence[Mapping[str, Any]]) -> Thinking | None:
    """The thinking mode that a conversation's system prompt asks for, or None if it asks for none."""
    for message in messages:
        if message["role"] == "system" and (found := _TOGGLE.search(str(message["content"]))):
            return on_or_off(found[1])
    return None


def obeys(text: str, thinking: str) -> bool:
    """True if a completion obeys the toggle. On: exactly one `<think>...</think>` with an answer after it. Off: no
    thinking tag."""
    if thinking == "off":
        return "<think>" not in text and "</think>" not in text
    return text.count("<think>") == text.count("</think>") == 1 and bool(_THOUGHT_THEN_ANSWER.match(text))


def opened(prompt: str) -> str:
    """The opening thinking tag at the end of a prompt, with the white space after it, or an empty string. With it,
    thinking begins in the prompt and ends in the completion."""
    found = _OPENED.search(prompt)
    return found[0] if found else ""


def thought_and_answer(text: str) -> tuple[str | None, str]:
    """(thinking, answer): the text between the first thinking tags and the text after them. Without an opening tag, the
    thinking begins with the text. Without a closing tag, the thinking is None and the answer is the whole text."""
    before, closed, answer = text.partition(CLOSE)
    return (before.rpartition(OPEN)[2], answer) if closed else (None, text)


def answer_of(text: str) -> str:
    """The text after the thinking, or all of the text if there is none. Thinking that was cut off gives an empty
    answer."""
    return text.rpartition(CLOSE)[2].partition(OPEN)[0]


def ends_in_thought(text: str) -> bool:
    """True if a text ends inside its thinking."""
    return OPEN in text.rpartition(CLOSE)[2]


def last_boxed(text: str) -> tuple[int, str] | None:
    """The index and the content of the last `\\boxed{...}` in a text. Empty and unclosed boxes are ignored."""
    open_braces: list[re.Match[str]] = []
    last = None
    for found in _BOX_OR_BRACE.finditer(text):
        if found[0] == "{" or found[1]:
            open_braces.append(found)
        elif found[0] == "}" and open_braces:
            opened = open_braces.pop()
            if opened[1] and (last is None or opened.start() > last[0]):
                inside = text[opened.end() : found.start()]
                last = (opened.start(), inside) if inside.strip() else last
    return last

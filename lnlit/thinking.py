"""Reasoning on demand: the toggle in the system prompt, what it asks of an answer (Llama-Nemotron section 3), and where
a text has its thoughts and its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lnlit.errors import UserError

Thinking = Literal["on", "off"]

OPEN, CLOSE = TAGS = ("<think>", "</think>")

#: What the toggle's system prompt begins with.
TOGGLE = "detailed thinking"
_TOGGLE = re.compile(rf"{TOGGLE} (on|off)\b")
_BOX_OR_BRACE = re.compile(r"(\\boxed\s*)?\{|\}|\\\\(?=[{}])|\\[{}]")
_THOUGHT_THEN_ANSWER = re.compile(r"\s*<think>((?!</?think>).)*</think>\s*\S", re.DOTALL)
_OPENED = re.compile(r"<think>\s*\Z")


def on_or_off(thinking: Any) -> Thinking:
    """`on` or `off`, also from a boolean: YAML reads the bare words on and off as true and false."""
    value = ("on" if thinking else "off") if isinstance(thinking, bool) else thinking
    if value not in get_args(Thinking):
        raise UserError(f"thinking: expected on or off, got {thinking!r}")
    return value


def toggle(thinking: Any) -> str:
    """The system prompt that switches thinking on or off."""
    return f"{TOGGLE} {on_or_off(thinking)}"


def mode(messages: Sequence[Mapping[str, Any]]) -> Thinking | None:
    """What a conversation's system prompt asks for; None where it says nothing of thinking."""
    for message in messages:
        if message["role"] == "system" and (found := _TOGGLE.search(str(message["content"]))):
            return on_or_off(found[1])
    return None


def obeys(text: str, thinking: str) -> bool:
    """On: exactly one `<think>...</think>` with an answer after it. Off: no thinking tag at all."""
    if thinking == "off":
        return "<think>" not in text and "</think>" not in text
    return text.count("<think>") == text.count("</think>") == 1 and bool(_THOUGHT_THEN_ANSWER.match(text))


def opened(prompt: str) -> str:
    """The opening tag that a prompt ends with, and the space after it: the thinking then begins in the prompt and ends
    in the completion."""
    found = _OPENED.search(prompt)
    return found[0] if found else ""


def thought_and_answer(text: str) -> tuple[str | None, str]:
    """What stands between the first thinking tags, and what follows them. A closing tag alone ends a thought that the
    text begins with; None and all of the text where there is no closing tag."""
    before, closed, answer = text.partition(CLOSE)
    return (before.rpartition(OPEN)[2], answer) if closed else (None, text)


def answer_of(text: str) -> str:
    """What follows the thinking, all of the text where there is none. Thinking that was cut off is no answer."""
    return text.rpartition(CLOSE)[2].partition(OPEN)[0]


def last_boxed(text: str) -> tuple[int, str] | None:
    """Where the last `\\boxed{...}` begins and what is in it; one that is empty or never closed does not count."""
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

"""Reasoning on demand: the toggle in the system prompt, and what it asks of an answer (Llama-Nemotron section 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lnlit.errors import UserError

Thinking = Literal["on", "off"]

_TOGGLE = re.compile(r"detailed thinking (on|off)\b")
_THOUGHT_THEN_ANSWER = re.compile(r"\s*<think>((?!</?think>).)*</think>\s*\S", re.DOTALL)


def on_or_off(thinking: Any) -> Thinking:
    """`on` or `off`, also from a boolean: YAML reads the bare words on and off as true and false."""
    value = ("on" if thinking else "off") if isinstance(thinking, bool) else thinking
    if value not in get_args(Thinking):
        raise UserError(f"thinking: expected on or off, got {thinking!r}")
    return value


def toggle(thinking: Any) -> str:
    """The system prompt that switches thinking on or off."""
    return f"detailed thinking {on_or_off(thinking)}"


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


def answer_of(text: str) -> str:
    """What follows the thinking, all of the text where there is none."""
    return text.rpartition("</think>")[2]

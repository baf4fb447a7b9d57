"""Preference rows as people write them: pairs, full dialogues, HH strings, lists of completions with rewards."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lnlit.data.sources import where
from lnlit.errors import UserError
from lnlit.interfaces import Source

Message = dict[str, Any]

_PROMPTS = ("messages", "prompt", "input", "conversations")
_PAIR = ("chosen", "rejected")
_SCORES = ("score_chosen", "score_rejected")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"human": "user", "Human": "user", "gpt": "assistant", "Assistant": "assistant"}


class PreferenceRows(Source):
    """Another source's rows as `messages` (the prompt), `completions` (texts) and `rewards` (numbers or None).

    A row holds either `chosen` and `rejected`, or `completions` and `rewards`. Each completion is a text, a message, or
    a whole conversation that ends with it; the prompt before texts is `messages`, `prompt`, `input` or `conversations`,
    as messages or as the user's words. Without any of these, a text is a dialogue as in Anthropic's HH data
    ("\\n\\nHuman: ...\\n\\nAssistant: ..."). A pair's rewards are `rewards`, or `score_chosen` and `score_rejected`, or
    else 1 and 0. Other keys stay. A row whose completions answer different prompts, or are not the assistant's, comes
    without completions.

    Args:
        source: the rows as they are.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __str__(self) -> str:
        return str(self.source)

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.source.rows(start), start):
            try:
                yield preference_row(row)
            except UserError as error:
                raise UserError(f"{self.where(number)}: {error}") from error

    def where(self, index: int) -> str:
        return where(self.source, index)


def preference_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row in the form that `PreferenceRows` describes. Raises `UserError` for one that has none of the forms."""
    given = _prompt(row)
    if all(key in row for key in _PAIR):
        answers, rewards = [row[key] for key in _PAIR], _pair_rewards(row)
    elif "completions" in row:
        answers = row["completions"]
        if not isinstance(answers, list):
            raise UserError(f"completions: expected a list, got {type(answers).__name__}")
        rewards = _numbers(row.get("rewards") or [None] * len(answers), len(answers))
    else:
        keys = ", ".join(map(str, row)) or "none"
        raise UserError(f"expected the keys chosen and rejected, or completions and rewards; got keys: {keys}")
    dialogues = [_dialogue(answer, given) for answer in answers]
    prompt = dialogues[0][:-1] if dialogues else given or []
    comparable = all(d[:-1] == prompt and d[-1]["role"] == "assistant" for d in dialogues)
    rest = {key: value for key, value in row.items() if key not in (*_PROMPTS, *_PAIR, *_SCORES)}
    texts = [dialogue[-1]["content"] for dialogue in dialogues] if comparable else []
    return {**rest, "messages": prompt, "completions": texts, "rewards": rewards if comparable else []}


def _prompt(row: Mapping[str, Any]) -> list[Message] | None:
    for key in _PROMPTS:
        if key in row:
            value = row[key]
            return [{"role": "user", "content": value}] if isinstance(value, str) else _messages(value, key)
    return None


def _dialogue(answer: Any, prompt: list[Message] | None) -> list[Message]:
    """Prompt and completion as messages."""
    if isinstance(answer, str):
        if prompt is not None:
            return [*prompt, {"role": "assistant", "content": answer}]
        return _hh_dialogue(answer)
    messages = _messages([answer] if isinstance(answer, dict) else answer, "a completion")
    if len(messages) > 1:  # it brings its prompt along
        return messages
    if prompt is None:
        raise UserError(f"a completion needs a prompt: one of the keys {', '.join(_PROMPTS)}, or messages before it")
    return [*prompt, *messages]


def _messages(value: Any, name: str) -> list[Message]:
    """Messages, also with the keys `from` and `value` in place of `role` and `content`."""
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise UserError(f"{name}: expected text or a list of messages, got {str(value)[:80]!r}")
    found = []
    for message in value:
        if "from" in message and "value" in message:
            message = {"role": message["from"], "content": message["value"]}
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise UserError(f"{name}: a message must have role and content, got {str(message)[:80]!r}")
        found.append({**message, "role": _ROLES.get(message["role"], message["role"])})
    return found


def _hh_dialogue(text: str) -> list[Message]:
    """Turns in a row of the same speaker are joined: templates refuse them."""
    before, *turns = _HH_TURN.split(text)
    if before.strip() or not turns:
        raise UserError(
            "a completion without a prompt must be a dialogue '\\n\\nHuman: ...\\n\\nAssistant: ...', got "
            f"{text[:80]!r}"
        )
    messages: list[Message] = []
    for speaker, words in zip(turns[::2], turns[1::2], strict=True):
        if messages and messages[-1]["role"] == _ROLES[speaker]:
            messages[-1]["content"] += f"\n\n{words.strip()}"
        else:
            messages.append({"role": _ROLES[speaker], "content": words.strip()})
    return messages


def _pair_rewards(row: Mapping[str, Any]) -> list[float | None]:
    rewards = _numbers(row.get("rewards") or [row.get(key) for key in _SCORES], 2)
    return [1.0, 0.0] if rewards == [None, None] else rewards


def _numbers(values: Any, count: int) -> list[float | None]:
    """What is no finite number is None."""
    if not isinstance(values, list) or len(values) != count:
        raise UserError(f"rewards: expected a list of {count} numbers, one per completion, got {values!r}")
    if wrong := [value for value in values if not isinstance(value, int | float | None)]:
        raise UserError(f"rewards: expected numbers or null, got {wrong[0]!r}")
    return [None if value is None or not math.isfinite(value) else float(value) for value in values]

"""Preference rows as people write them: pairs, full dialogues, HH strings, lists of completions with rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lnlit.data.messages import Message, hh_messages, read_messages
from lnlit.data.rows import ANSWERS, CONTEXT, DIALOGUES, PROMPTS, check_said, conversation, prompt_turns
from lnlit.data.sources import naming_row, rows_of, where
from lnlit.errors import UserError, shown
from lnlit.interfaces import Source

_PAIR = ("chosen", "rejected")
#: OpenAI's names, whose `input` is a mapping of `messages` and `tools`.
_OPENAI_PAIR: tuple[str, ...] = ("preferred_output", "non_preferred_output")
_SCORES = ("score_chosen", "score_rejected")


class PreferenceRows(Source):
    """Another source's rows as `messages` (the prompt), `completions` and `rewards` (numbers or None).

    A row holds either `chosen` and `rejected`, or `completions` and `rewards`. Each completion is a text, a message, or
    a whole conversation that ends with it; the prompt before texts has any form that a chat row's has. Without any, a
    text is a dialogue as in Anthropic's HH data ("\\n\\nHuman: ...\\n\\nAssistant: ..."). A pair's rewards are
    `rewards`, or `score_chosen` and `score_rejected`, or else 1 and 0. Other keys stay. `completions` are texts, or
    messages where they say more than text. A row whose completions answer different prompts, or are not the
    assistant's, comes without completions.

    Args:
        source: The source of rows in any of these forms.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __str__(self) -> str:
        return str(self.source)

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows_of(self.source, start), start):
            with naming_row(self.source, number):
                read = preference_row(row)
            yield read

    def where(self, index: int) -> str:
        return where(self.source, index)


def preference_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row in the form that `PreferenceRows` describes. Raises `UserError` for one that has none of the forms."""
    row = _with_our_names(row)
    given = {key: value for key, value in row.items() if value is not None}
    asked, read = _asked(given)
    if all(key in given for key in _PAIR):
        answers, rewards = [given[key] for key in _PAIR], _pair_rewards(given)
    elif "completions" in given:
        answers = given["completions"]
        if not isinstance(answers, list):
            raise UserError(f"completions: expected a list, got {type(answers).__name__}")
        if "labels" in given:
            raise UserError("completions and labels are steps of one answer; expected whole answers and rewards")
        rewards = _numbers(given.get("rewards") or [None] * len(answers), len(answers))
    else:
        keys = ", ".join(map(str, row)) or "none"
        raise UserError(f"expected the keys chosen and rejected, or completions and rewards; got keys: {keys}")
    dialogues = [_dialogue(answer, asked) for answer in answers]
    prompt = dialogues[0][:-1] if dialogues else asked or []
    comparable = all(d[:-1] == prompt and d[-1]["role"] == "assistant" for d in dialogues)
    if comparable:
        told = read if prompt == asked else set()
        check_said(given, {*ANSWERS, *_PAIR, *told}, [*prompt, *(dialogue[-1] for dialogue in dialogues)])
    gone = {*read, *PROMPTS, *_PAIR, *_SCORES}
    rest = {key: value for key, value in row.items() if key not in gone}
    said = [_completion(dialogue[-1]) for dialogue in dialogues] if comparable else []
    return {**rest, "messages": prompt, "completions": said, "rewards": rewards if comparable else []}


def chats(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of `PreferenceRows` as one chat row for each completion."""
    context = {key: row[key] for key in CONTEXT if key in row}
    return [
        {**context, "messages": [*row["messages"], *([text] if isinstance(text, Mapping) else [_said(text)])]}
        for text in row["completions"]
    ]


def unread(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a row of `PreferenceRows` that are not part of prompt and completions."""
    found = [chat.unread for chat in map(conversation, chats(row))]
    read = {"messages", "completions", "rewards", *CONTEXT}
    rest = [key for key, value in row.items() if key not in read and value not in (None, "", [], {})]
    return tuple(dict.fromkeys([*rest, *(key for keys in found for key in keys)]))


def _with_our_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's preference rows with lnlit's keys; other rows unchanged."""
    if any(key not in row or row[key] is None for key in _OPENAI_PAIR):
        return dict(row)
    asked = row.get("input")
    if not isinstance(asked, Mapping):
        raise UserError(f"input: expected a mapping with messages beside {_OPENAI_PAIR[0]}, got {shown(asked)}")
    names = dict(zip(_OPENAI_PAIR, _PAIR, strict=True))
    renamed = {names.get(key, key): value for key, value in row.items() if key != "input"}
    if twice := set(renamed) & set(asked):
        raise UserError(f"{', '.join(sorted(twice))}: both in the row and in its input; keep one of them")
    return {**asked, **renamed}


def _asked(row: Mapping[str, Any]) -> tuple[list[Message] | None, set[str]]:
    """(prompt, its keys). Some rows have the whole dialogue, with the better answer beside it."""
    turns, read = prompt_turns(row)
    if turns and turns[-1].message["role"] == "assistant":
        without = {key: value for key, value in row.items() if key not in DIALOGUES}
        turns, read = prompt_turns(without)
    return None if turns is None else [turn.message for turn in turns], read


def _dialogue(answer: Any, prompt: list[Message] | None) -> list[Message]:
    """Prompt and completion as messages."""
    if isinstance(answer, str):
        return _hh_dialogue(answer) if prompt is None else [*prompt, _said(answer)]
    messages = [turn.message for turn in read_messages(answer, "a completion")]
    brings_prompt = messages[0]["role"] != "assistant"
    if len(messages) > 1 and (brings_prompt or prompt is None):
        return messages
    if prompt is None:
        raise UserError(f"a completion needs a prompt: one of the keys {', '.join(PROMPTS)}, or messages before it")
    if len(messages) > 1:
        raise UserError(
            f"a completion of {len(messages)} messages: a reward is for one answer. Put what comes before the last one "
            "into the prompt."
        )
    return [*prompt, *messages]


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _completion(message: Message) -> str | Message:
    return message["content"] if set(message) == {"role", "content"} else message


def _hh_dialogue(text: str) -> list[Message]:
    messages = hh_messages(text)
    if messages is None:
        raise UserError(
            "a completion without a prompt must be a dialogue '\\n\\nHuman: ...\\n\\nAssistant: ...', got "
            f"{shown(text)}. Name the prompt's key in the source's columns, as in columns: {{question: prompt}}."
        )
    return messages


def _pair_rewards(row: Mapping[str, Any]) -> list[float | None]:
    rewards = _numbers(row.get("rewards") or [row.get(key) for key in _SCORES], 2)
    return [1.0, 0.0] if rewards == [None, None] else rewards


def _numbers(values: Any, count: int) -> list[float | None]:
    """The values, with None for everything that is not a finite number."""
    if not isinstance(values, list) or len(values) != count:
        raise UserError(f"rewards: expected a list of {count} numbers, one per completion, got {shown(values)}")
    if wrong := [value for value in values if not isinstance(value, int | float | None)]:
        raise UserError(f"rewards: expected numbers or null, got {shown(wrong[0])}")
    return [None if value is None or not math.isfinite(value) else float(value) for value in values]

"""Prompts for a model: conversations that are read from rows and rendered as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lnlit.data.sources import readable_rows, rows_of, where
from lnlit.errors import UserError
from lnlit.interfaces import Reward, Source
from lnlit.rewards.pool import why_not


class PromptEncoder(Protocol):
    """Renders prompts."""

    def prompt(self, row: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], Sequence[int]]:
        """(conversation up to what the assistant must answer, its tokens) of a row. The conversation is empty if only
        the assistant speaks, and the tokens if the engine renders conversations itself."""
        ...

    def end_ids(self) -> list[int]:
        """The ids of tokens that end generation."""
        ...


@runtime_checkable
class TokenEncoder(PromptEncoder, Protocol):
    """Renders prompts as tokens and reads completions of tokens, as `ChatEncoder` does."""

    def completion(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The assistant's text in answer to a prompt."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A conversation to answer, and the row that it came from."""

    messages: Sequence[Mapping[str, Any]]
    token_ids: tuple[int, ...]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Prompts:
    """The prompts of a source with their row numbers, and the reasons why other rows were left out, by row number."""

    source: Source
    found: list[Prompt]
    rows: list[int]
    left_out: dict[int, str]

    def unjudged(self, rewards: Sequence[Reward]) -> dict[int, str]:
        """The reasons why a row's completions could not be judged, by row number, as far as the rewards can tell
        without a completion."""
        reasons = (why_not(rewards, prompt.row) for prompt in self.found)
        return {row: why for row, why in zip(self.rows, reasons, strict=True) if why}

    def named(self, reasons: Mapping[int, str], most: int = 3) -> str:
        """The reasons of the first of these rows, each with its place in the source."""
        return "; ".join(f"{where(self.source, row)}: {why}" for row, why in list(reasons.items())[:most])


def read_prompts(source: Source, encoder: PromptEncoder, room: int | None, strict: bool = True) -> Prompts:
    """Reads all rows of a source that have something to answer and leave room for a completion in the context.

    Args:
        room: The maximum length of a prompt in tokens, or None if any will do.
        strict: Raise `UserError` naming the first row that cannot be read or is no conversation. False leaves such rows
            out.
    """
    read = Prompts(source, [], [], {})
    for number, row in enumerate(rows_of(source)) if strict else readable_rows(source):
        try:
            if isinstance(row, UserError):
                raise row
            messages, token_ids = encoder.prompt(row)
        except UserError as error:
            if strict:
                raise UserError(f"{where(source, number)}: {error}") from error
            # Finding a row's place may mean to read the file up to it, and only few rows cannot be read.
            place = f"{where(source, number)}: " if error is row else ""
            read.left_out[number] = str(error).removeprefix(place)
            continue
        if not messages:
            read.left_out[number] = "there is nothing to answer: no turn but the assistant's"
        elif room is not None and len(token_ids) > room:
            read.left_out[number] = (
                f"a prompt of {len(token_ids)} tokens; the model's context has room for {max(room, 0)} in front of "
                "max_new_tokens"
            )
        else:
            read.found.append(Prompt(messages, tuple(token_ids), row))
            read.rows.append(number)
    return read


def digest(prompts: Sequence[Prompt]) -> str:
    """A digest of conversations and of all that rewards may read, in order. Values without a JSON form, such as dates,
    count as their printed form."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(json.dumps([list(prompt.messages), prompt.row], sort_keys=True, default=str).encode())
    return found.hexdigest()

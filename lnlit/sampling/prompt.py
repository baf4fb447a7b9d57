"""What is asked of a model: conversations, read from rows of data and rendered as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lnlit.data.chat import ChatEncoder
from lnlit.data.sources import rows_of, where
from lnlit.errors import UserError
from lnlit.interfaces import Reward, Source
from lnlit.rewards.pool import why_not


@dataclass(frozen=True)
class Prompt:
    """A conversation to answer, and the row of data it came from."""

    messages: Sequence[Mapping[str, Any]]
    token_ids: tuple[int, ...]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Prompts:
    """The prompts of a source, the numbers of their rows, and by number why other rows cannot be asked."""

    source: Source
    found: list[Prompt]
    rows: list[int]
    left_out: dict[int, str]

    def unjudged(self, rewards: Sequence[Reward]) -> dict[int, str]:
        """By row, why no completion of its prompt could be judged, as far as the rewards can tell without one."""
        reasons = (why_not(rewards, prompt.row) for prompt in self.found)
        return {row: why for row, why in zip(self.rows, reasons, strict=True) if why}

    def named(self, reasons: Mapping[int, str], most: int = 3) -> str:
        """The first of some rows' reasons, each with its place in the source."""
        return "; ".join(f"{where(self.source, row)}: {why}" for row, why in list(reasons.items())[:most])


def read_prompts(source: Source, encoder: ChatEncoder, room: int) -> Prompts:
    """Every row of a source that has something to answer and leaves the context room for a completion.

    Args:
        room: The tokens that a prompt may have.

    Raises `UserError`, which names the row, for one that is no conversation.
    """
    read = Prompts(source, [], [], {})
    for number, row in enumerate(rows_of(source)):
        try:
            messages, token_ids = encoder.prompt(row)
        except UserError as error:
            raise UserError(f"{where(source, number)}: {error}") from error
        if not token_ids:
            read.left_out[number] = "there is nothing to answer: no turn but the assistant's"
        elif len(token_ids) > room:
            read.left_out[number] = (
                f"a prompt of {len(token_ids)} tokens; the model's context has room for {max(room, 0)} in front of "
                "max_new_tokens"
            )
        else:
            read.found.append(Prompt(messages, tuple(token_ids), row))
            read.rows.append(number)
    return read


def digest(prompts: Sequence[Prompt]) -> str:
    """A fingerprint of conversations and of what the rewards may read, in their order. What JSON has no form for, such
    as a date, counts as it is printed."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(json.dumps([list(prompt.messages), prompt.row], sort_keys=True, default=str).encode())
    return found.hexdigest()

"""A model that steps ask, and its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lnlit.curation.settings import stated
from lnlit.curation.step import Dropped
from lnlit.interfaces import RolloutEngine
from lnlit.sampling.settings import Sampling
from lnlit.thinking import Thinking, answer_of, on_or_off


@dataclass(frozen=True)
class Model:
    """A model that a step asks. In YAML an anchor names one that several steps ask: `model: &small {folder: ...}`, then
    `model: *small`. A process loads it once.

    Args:
        folder: Model folder with a tokenizer and a chat template. Null for an engine with a model of its own.
        engine: Generates the answers; lnlit's own decoder when not given.
        sampling: How answers are sampled. Steps that want one answer of each row take the first.
        thinking: The toggle of its conversations, on or off. Null writes none.
    """

    folder: str | None = None
    engine: RolloutEngine | None = None
    sampling: Sampling = Sampling(samples_per_prompt=1)
    thinking: Thinking | bool | None = None

    def stated(self) -> dict[str, Any]:
        """All that its answers depend on."""
        from lnlit.checkpoint.fingerprint import fingerprint

        weights = None if self.folder is None else fingerprint(self.folder)
        parts = {"engine": stated(self.engine), "sampling": stated(self.sampling), "thinking": self.mode}
        return {"folder": self.folder, "weights": weights, **parts}

    @property
    def mode(self) -> Thinking | None:
        return None if self.thinking is None else on_or_off(self.thinking)


@dataclass(frozen=True)
class Answer:
    """A model's answer. `finish` is "stop", "length" or "error", and `error` then says why there is none."""

    text: str
    finish: str
    tokens: int
    seed: int
    error: str | None = None

    @property
    def said(self) -> str:
        """The text after the thinking."""
        return answer_of(self.text).strip()

    def missing(self) -> Dropped | None:
        """Why a row without this answer goes no further, or None if it is whole."""
        if self.error is not None:
            return Dropped(f"unanswered_{reason_of(self.error)}")
        return Dropped("cut_off") if self.finish == "length" else None


#: What a step asks of one row: a key that is the row's own, and a conversation.
Question = tuple[str, Sequence[Mapping[str, Any]]]


def reason_of(error: str) -> str:
    """The kind of an error, which is in front of a colon, as one word to count it by."""
    return re.sub(r"\W+", "_", error.partition(":")[0].strip().lower())[:40].strip("_") or "error"

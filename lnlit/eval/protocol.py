"""How benchmarks are asked: the paper's sampling, and what rows of data have to say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import TaskSampling
from lnlit.thinking import Thinking


@dataclass(frozen=True)
class SamplingProtocol:
    """How a benchmark's answers are sampled, by default as in the paper (Llama-Nemotron section 7.1): several samples
    with thinking on, and one greedy answer otherwise.

    Args:
        samples: Answers per prompt with thinking on. The mean over them is pass@1.
        max_new_tokens: Length limit of an answer; less if the model's context is shorter.
        temperature: Sampling temperature with thinking on.
        top_p: The share of probability that tokens are sampled from with thinking on.
    """

    samples: int = 4
    max_new_tokens: int = 32768
    temperature: float = 0.6
    top_p: float = 0.95

    def of(self, thinking: Thinking | None) -> TaskSampling:
        """The sampling in one thinking mode. None is a model without the toggle, which is sampled as with it off."""
        if thinking == "on":
            return TaskSampling(self.samples, self.max_new_tokens, self.temperature, self.top_p)
        return TaskSampling(1, self.max_new_tokens, 0.0)


def key_of(*texts: str) -> str:
    """A short name for a question that depends on nothing but its texts."""
    return hashlib.blake2b("\0".join(texts).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The text under a key of a row. Raises `UserError` if there is none."""
    if key not in row:
        raise UserError(
            f"no key {key!r}; it has: {', '.join(map(str, row)) or 'nothing'}. Rename the source's columns."
        )
    if not isinstance(row[key], str) or not row[key].strip():
        raise UserError(f"{key}: got {row[key]!r:.80}; expected a text that is not empty.")
    return row[key]

"""Socket `meter`: times a whole model of a given architecture on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lnlit.schema import NotNegative, Whole
from lnlit.specs import ModelSpec


@dataclass(frozen=True)
class Workload:
    """A batch of equal requests: `batch_size` prompts of `prompt_tokens`, each answered with `new_tokens` tokens."""

    batch_size: Whole
    prompt_tokens: Whole
    new_tokens: Whole


@dataclass(frozen=True)
class Latency:
    """Samples of one workload, in seconds, the same number of each.

    `prefill_s`: the whole batch's prompts up to its first new token. `decode_s`: the other `new_tokens - 1` tokens of
    every request, together.
    """

    prefill_s: tuple[NotNegative, ...]
    decode_s: tuple[NotNegative, ...]


class Meter(ABC):
    """An engine with a clock. `dtypes` are those of weights and KV cache that it runs."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    @abstractmethod
    def measure(
        self, spec: ModelSpec, folder: Path, workloads: Sequence[Workload], *, dtype: str, samples: int
    ) -> list[Latency]:
        """One `Latency` of `samples` samples per workload, after warming up.

        The architecture comes twice, as `spec` and as a model folder (config.json without weights; empty when
        transformers' format cannot hold the spec): an engine takes the one that suits it and fills in weights of its
        own, which change no timing. `UserError` for what the engine cannot run, a dtype that is not one of its
        `dtypes` included.
        """

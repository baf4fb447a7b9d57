"""Interface `meter`: measures the latency of a whole model on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lnlit.schema import NotNegative, Whole
from lnlit.specs import ModelSpec


@dataclass(frozen=True)
class Workload:
    """A batch of `batch_size` equal requests, each with `prompt_tokens` prompt tokens and `new_tokens` generated
    tokens."""

    batch_size: Whole
    prompt_tokens: Whole
    new_tokens: Whole

    def __str__(self) -> str:
        """Requests x prompt + new tokens, as "64x512+128"."""
        return f"{self.batch_size}x{self.prompt_tokens}+{self.new_tokens}"


@dataclass(frozen=True)
class Latency:
    """Measurements of one workload in seconds, with the same number of samples in both tuples.

    `prefill_s` is the time from the start to the first new token of the whole batch. `decode_s` is the time of the
    other `new_tokens - 1` tokens of the whole batch.
    """

    prefill_s: tuple[NotNegative, ...]
    decode_s: tuple[NotNegative, ...]


class Meter(ABC):
    """An inference engine with a clock. `dtypes` lists the types of weights and KV cache that it supports."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    @abstractmethod
    def measure(
        self, spec: ModelSpec, folder: Path, workloads: Sequence[Workload], *, dtype: str, samples: int
    ) -> list[Latency]:
        """One `Latency` with `samples` samples per workload, measured after a warm-up.

        The architecture is given twice, as `spec` and as `folder`, which holds a config.json without weights (it is
        empty if transformers has no format for the spec). An engine uses whichever suits it and makes up weights of its
        own, since their values do not change the timing. Raises `UserError` for anything that the engine cannot run,
        such as a dtype that is not in `dtypes`.
        """

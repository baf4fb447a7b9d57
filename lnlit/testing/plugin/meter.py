"""A meter: measures the latency of whole models on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lnlit.errors import UserError
from lnlit.interfaces import Latency, Meter, Workload
from lnlit.specs import ModelSpec


class Example(Meter):
    """Computes latencies from a fixed speed. Replace this by measurements of your engine.

    Args:
        layers_per_s: The number of layers computed per second for one token.
    """

    dtypes = ("float32", "bfloat16")

    def __init__(self, layers_per_s: float = 1e5) -> None:
        self.layers_per_s = layers_per_s

    def measure(
        self, spec: ModelSpec, folder: Path, workloads: Sequence[Workload], *, dtype: str, samples: int
    ) -> list[Latency]:
        if dtype not in self.dtypes:
            raise UserError(f"dtype: got {dtype!r}; allowed: {', '.join(self.dtypes)}")
        token_s = (len(spec.layers) + 1) / self.layers_per_s
        return [
            Latency(
                (token_s * work.batch_size * work.prompt_tokens,) * samples,
                (token_s * work.batch_size * (work.new_tokens - 1),) * samples,
            )
            for work in workloads
        ]

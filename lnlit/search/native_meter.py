"""Measures lnlit's own decoding loop."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lnlit.errors import UserError, did_you_mean
from lnlit.interfaces import Latency, Meter, Workload
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.device import torch_device
from lnlit.models.generate import Sampling, generate
from lnlit.specs import ModelSpec

WARM_UP_TOKENS = 4


class NativeMeter(Meter):
    """`lnlit.models.generate` with random weights on the CPU.

    It refuses a GPU, where this loop waits for each kernel's launch by Python. The times of a narrow and a wide FFN
    would be equal, and a search with such costs would choose wrongly.
    """

    def measure(
        self, spec: ModelSpec, folder: Path, workloads: Sequence[Workload], *, dtype: str, samples: int
    ) -> list[Latency]:
        if dtype not in self.dtypes:
            hint = did_you_mean(dtype, self.dtypes)
            raise UserError(f"dtype {dtype!r}.{hint} The native meter runs {' and '.join(self.dtypes)}.")
        if torch_device() != "cpu":
            raise UserError(
                "the native meter cannot measure a GPU: its times would be those of launching kernels, which are the "
                "same for narrow and wide layers. Measure with engine: vllm (the plugin lnlit-vllm), or the CPU, with "
                "CUDA_VISIBLE_DEVICES= in the environment."
            )
        decoder = random_decoder(spec, "cpu", getattr(torch, dtype))
        gc.collect()
        latencies = []
        for workload in workloads:
            _run(
                decoder, Workload(workload.batch_size, workload.prompt_tokens, min(WARM_UP_TOKENS, workload.new_tokens))
            )
            times = [_run(decoder, workload) for _ in range(samples)]
            latencies.append(Latency(tuple(t[0] for t in times), tuple(t[1] for t in times)))
        return latencies


def random_decoder(spec: ModelSpec, device: str, dtype: torch.dtype) -> Decoder:
    """A decoder whose weights are small random numbers made on the device itself, so that a big one is ready soon."""
    decoder = build_decoder(spec, device, dtype).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.uniform_(-0.02, 0.02)
    return decoder


def _run(decoder: Decoder, workload: Workload) -> tuple[float, float]:
    """(prefill, decode) seconds of one batch, with the garbage collector off.

    `generate` reads every new token back from the device before its callback, so no clock is read too early.
    """
    vocabulary = decoder.spec.vocab_size
    prompts = [
        [(7 * row + 3 * token) % vocabulary for token in range(workload.prompt_tokens)]
        for row in range(workload.batch_size)
    ]
    ticks: list[float] = []
    gc.disable()
    try:
        start_s = time.perf_counter()
        generate(
            decoder, prompts, Sampling(workload.new_tokens), (), lambda row, token: ticks.append(time.perf_counter())
        )
    finally:
        gc.enable()
    return ticks[0] - start_s, ticks[-1] - ticks[0]

"""Speed and memory of a run: tokens per second, model FLOPs utilisation, peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops

from lnlit.interfaces import PolicyBatch, PreferenceBatch, TokenBatch
from lnlit.models.decoder import Decoder
from lnlit.models.device import has_cuda

_GIB = 2**30


class Throughput(L.Callback):
    """Logs `perf/tokens_per_s` (all ranks), `perf/mfu` where the chip's peak is known, and `memory/peak_gib`.

    Padding counts as tokens processed; `perf/loss_tokens_share` says how many of them carry loss. Time spent in
    validation, checkpointing and waiting for data is left out.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batch = batch.tokens if isinstance(batch, PolicyBatch | PreferenceBatch) else batch
        if not isinstance(batch, TokenBatch):
            return
        if batch.tokens.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._start
        tokens = batch.tokens.numel()
        per_s = tokens / seconds
        metrics = {"perf/tokens_per_s": per_s * pl_module.data_parallel_size(), "memory/peak_gib": peak_memory_gib()}  # type: ignore
        metrics["perf/loss_tokens_share"] = float((batch.labels >= 0).float().mean())
        peak = _peak_flops(pl_module.device)
        if peak is not None and hasattr(pl_module, "decoder"):  # blockwise distillation trains no whole model
            metrics["perf/mfu"] = per_s * flops_per_token(pl_module.decoder, batch.lengths, tokens) / peak  # type: ignore[arg-type]
        pl_module.log_dict(metrics)
        pl_module.log("tok/s", metrics["perf/tokens_per_s"], prog_bar=True, logger=False)


def flops_per_token(decoder: Decoder, lengths: Sequence[int], tokens: int) -> float:
    """Training FLOPs per token, forward and backward: 6 per matrix weight plus causal attention within documents.

    Attention counts 12 x heads x head_dim x (attended length), and a document of n tokens attends (n + 1) / 2 on
    average (PaLM, Chowdhery et al. 2022, appendix B). Documents of `lengths` may share some of the `tokens`.
    """
    weights = sum(p.numel() for p in decoder.parameters() if p.dim() == 2)
    if decoder.lm_head is not None:  # a tied embedding is used once as the head; an untied one is a lookup
        weights -= decoder.embed_tokens.weight.numel()
    attended = sum(n * (n + 1) / 2 for n in lengths) / tokens
    width = sum(p.args["num_heads"] * p.args["head_dim"] for _, _, p in decoder.spec.parts() if "num_heads" in p.args)
    return 6.0 * weights + 12.0 * width * attended


def peak_memory_gib() -> float:
    """Peak GPU memory allocated, or this process's peak resident memory on a CPU, in GiB."""
    if has_cuda():
        return torch.cuda.max_memory_allocated() / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def _peak_flops(device: torch.device) -> int | None:
    return get_available_flops(device, torch.bfloat16) if device.type == "cuda" else None

"""Logs the speed and memory of a run: tokens per second, model FLOPs utilisation, peak memory."""

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
from lnlit.models.parts import layer_class
from lnlit.planning.gpus import of_torch

_GIB = 2**30


class Throughput(L.Callback):
    """Logs `perf/tokens_per_s` over all ranks, `perf/mfu` if the chip's peak FLOP/s are known, and `memory/peak_gib`.

    Padding counts as tokens; `perf/loss_tokens_share` is the fraction of tokens that carry loss. Time spent on
    validation, on checkpoints and on waiting for data is not counted.
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
            model_flops = flops_per_token(pl_module.decoder, batch.lengths, tokens)  # type: ignore[arg-type]
            metrics["perf/mfu"] = metrics["perf/tokens_per_s"] * model_flops / (peak * trainer.world_size)
        pl_module.log_dict(metrics)
        pl_module.log("tok/s", metrics["perf/tokens_per_s"], prog_bar=True, logger=False)


def flops_per_token(decoder: Decoder, lengths: Sequence[int], tokens: int) -> float:
    """Training FLOPs per token: three times those of the forward pass, which are the head's plus what each part
    declares (`Layer.flops`).

    A token of a document of n tokens attends to (n + 1) / 2 tokens on average. Documents of `lengths` may share some of
    the `tokens`.
    """
    attended = sum(n * (n + 1) / 2 for n in lengths) / tokens
    forward = 2.0 * decoder.head_weight.numel()
    for block, parts in zip(decoder.layers, decoder.spec.layers, strict=True):
        for slot, name, part in (("attention", "self_attn", parts.attention), ("ffn", "mlp", parts.ffn)):
            own = block.named_parameters()
            weights = sum(p.numel() for path, p in own if path.startswith(f"{name}.") and p.dim() == 2)
            forward += layer_class(slot, part).flops(part.args, weights, attended)
    return 3.0 * forward


def peak_memory_gib() -> float:
    """The peak of allocated GPU memory or, on a CPU, of this process's resident memory, in GiB."""
    if has_cuda():
        return torch.cuda.max_memory_allocated() / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def _peak_flops(device: torch.device) -> float | None:
    """Dense BF16 FLOP/s of the device; Lightning knows some that `lnlit plan` does not."""
    if device.type != "cuda":
        return None
    known = of_torch(torch.cuda.get_device_name(device))
    return known.bf16_flops if known else get_available_flops(device, torch.bfloat16)

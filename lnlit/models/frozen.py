"""A decoder that computes and never learns: a teacher, a reference, a judge."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.distributed.device_mesh import DeviceMesh

from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.lora import LoRA, add_lora
from lnlit.models.parallelize import parallelize
from lnlit.models.shards import own_part
from lnlit.models.weights import reshard
from lnlit.specs import ModelSpec


def empty_frozen(
    spec: ModelSpec,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    mesh: DeviceMesh | None = None,
    attention_kernel: str = "auto",
    lora: LoRA | None = None,
) -> Decoder:
    """A decoder without gradients, in evaluation mode, whose weights have storage and no values yet.

    Args:
        spec: The architecture.
        device: The device to compute on.
        dtype: The dtype of its weights; torch's default if not given.
        mesh: The mesh of ranks to shard it over, with the dims "data_parallel" and "tensor_parallel". Without it, each
            rank holds the whole model.
        attention_kernel: A registered kernel.
        lora: The adapters that it has too. They drop nothing.
    """
    with torch.device("meta"):  # a strategy may have set another default device
        decoder = build_decoder(spec, "meta", dtype, attention_kernel)
    if lora is not None:
        add_lora(decoder, replace(lora, dropout=0.0, base_dtype=None, adapter=None))
    decoder.requires_grad_(False).eval()
    if mesh is not None:
        parallelize(decoder, mesh, compute_dtype=None)
    return decoder.to_empty(device=device)


@torch.no_grad()
def take_weights(frozen: Decoder, model: Decoder) -> None:
    """Copies all weights of `model`, those of adapters too, into a frozen decoder that is built and sharded like it, in
    the frozen one's dtype. Each rank copies its own shards, without communication."""
    reshard(frozen)
    reshard(model)
    theirs = dict(model.named_parameters())
    for name, parameter in frozen.named_parameters():
        own_part(parameter)[0].copy_(own_part(theirs.pop(name))[0])
    assert not theirs, f"the copy lacks {', '.join(theirs)}"

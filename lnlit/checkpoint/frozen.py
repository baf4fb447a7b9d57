"""One frozen decoder: a teacher, a reference, a parent, a judge."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.parallelize import parallelize
from lnlit.models.parts import stored


def frozen_decoder(
    path: str | Path,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    mesh: DeviceMesh | None = None,
    attention_kernel: str = "auto",
) -> Decoder:
    """The model of a checkpoint, in evaluation mode and without gradients.

    Args:
        path: Any checkpoint that lnlit reads.
        device: Where it computes.
        dtype: Of its weights; torch's default when not given.
        mesh: The ranks that divide it among themselves, by the names "data_parallel" and "tensor_parallel"; each holds
            all of it when not given.
        attention_kernel: Registered kernel.
    """
    spec = read_spec(path)
    if mesh is not None and mesh["tensor_parallel"].size() > 1:  # of one matrix ranks could not have parts of each
        spec = stored(spec)
    with torch.device("meta"):  # a strategy may have set another default device
        decoder = build_decoder(spec, "meta", dtype, attention_kernel)
    decoder.requires_grad_(False).eval()
    if mesh is not None:
        parallelize(decoder, mesh, compute_dtype=None)
    decoder.to_empty(device=device)
    load_weights(decoder, path)
    return decoder

"""Weights from any recognised checkpoint: into a decoder, as a frozen one, or layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lnlit.checkpoint.formats import open_checkpoint, read_spec, resolve
from lnlit.checkpoint.safetensors_folder import EMBEDDING
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.layout import expected_shapes
from lnlit.models.parallelize import parallelize
from lnlit.models.parts import stored
from lnlit.models.weights import fill
from lnlit.specs import ModelSpec


def load_weights(decoder: Decoder, path: str | Path) -> None:
    """Fill a materialised decoder from a checkpoint, one tensor at a time: see `fill`.

    Under FSDP2 or tensor parallelism every rank reads the file and keeps its own part.
    """
    source = resolve(path)
    fill(decoder, open_checkpoint(source).weights(source), str(source))


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
        device: The device to compute on.
        dtype: The dtype of its weights; torch's default if not given.
        mesh: The mesh of ranks to shard it over, with the dims "data_parallel" and "tensor_parallel". Without it, each
            rank holds the whole model.
        attention_kernel: A registered kernel.
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


def by_layer(spec: ModelSpec, weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """First the embedding, then each layer, then final norm and head: always `len(spec.layers) + 2` groups.

    A layer's weights are named below its block (`mlp.up_proj.weight`), the others canonically. Weights may come in any
    order; those that come early wait in memory. Raises `UserError` when some never come.
    """
    expected = list(expected_shapes(spec))
    prefixes = [f"model.layers.{index}." for index in range(len(spec.layers))]
    groups = [[EMBEDDING], *([name for name in expected if name.startswith(prefix)] for prefix in prefixes)]
    groups.append([name for name in expected if not name.startswith("model.layers.") and name != EMBEDDING])
    waiting: dict[str, Tensor] = {}
    stream = iter(weights)
    for names, prefix in zip(groups, ["", *prefixes, ""], strict=True):
        while missing := [name for name in names if name not in waiting]:
            name, tensor = next(stream, ("", None))
            if tensor is None:
                raise UserError(f"the checkpoint lacks tensor {missing[0]}.")
            waiting[name] = tensor
        yield {name.removeprefix(prefix): waiting.pop(name) for name in names}

"""Weights from any recognised checkpoint: into a decoder, as a frozen one, or layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lnlit.checkpoint.formats import open_checkpoint, read_spec, resolve
from lnlit.checkpoint.safetensors_folder import EMBEDDING
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.frozen import empty_frozen
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.models.layout import expected_shapes
from lnlit.models.ranks import my_place
from lnlit.models.weights import fill
from lnlit.specs import ModelSpec


def load_weights(decoder: Decoder, path: str | Path) -> None:
    """Fill a materialised decoder from a checkpoint, one tensor at a time: see `fill`.

    Under FSDP2 or tensor parallelism every rank reads its own part only, if the format can (`slices`).
    """
    source = resolve(path)
    fill(decoder, open_checkpoint(source).slices(source), str(source))


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
    decoder = empty_frozen(read_spec(path), device, dtype, mesh=mesh, attention_kernel=attention_kernel)
    load_weights(decoder, path)
    return decoder


def layerwise_decoder(
    path: str | Path, device: torch.device | str, dtype: torch.dtype | None = None
) -> LayerwiseDecoder:
    """The model of a checkpoint as `frozen_decoder` gives it, whose layers are read when they are used for the first
    time, or each time if memory does not hold all of them. Several ranks divide them: see `LayerwiseDecoder`."""
    _, ranks = my_place()
    stored = StoredLayers(path, every=ranks)
    decoder = build_decoder(stored.spec, "meta", dtype).requires_grad_(False).eval()
    dtype = decoder.embed_tokens.weight.dtype
    outer = {name.removeprefix("model."): weight.to(device, dtype) for name, weight in stored.outer().items()}
    decoder.load_state_dict(outer, strict=False, assign=True)
    return LayerwiseDecoder(decoder, stored)


def by_layer(spec: ModelSpec, weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """First the embedding, then each layer, then final norm and head: always `len(spec.layers) + 2` groups.

    A layer's weights are named below its block (`mlp.up_proj.weight`), the others canonically. Weights may come in any
    order; those that come early wait in memory. Raises `UserError` when some never come.
    """
    layers, outer = _names(spec)
    rest = [name for name in outer if name != EMBEDDING]
    return _grouped([("", [EMBEDDING]), *layers, ("", rest)], weights)


class StoredLayers:
    """The weights of a checkpoint, layer by layer and each read when it is asked for. If each is the next one,
    or `every` so many layers behind the last, they are read in one pass over the files."""

    def __init__(self, path: str | Path, every: int = 1) -> None:
        self._path, self._every = resolve(path), every
        self._format = open_checkpoint(self._path)
        self.spec = self._format.read_spec(self._path)
        self._layers, self._outer = _names(self.spec)
        self._next, self._groups = -1, iter(())

    def outer(self) -> dict[str, Tensor]:
        """The embedding, the final norm and the head by their canonical names."""
        return next(_grouped([("", self._outer)], self._read(set(self._outer))))

    def __call__(self, layer: int) -> dict[str, Tensor]:
        """A layer's weights by their names below its block, on the CPU and in the checkpoint's dtype."""
        if layer != self._next:
            rest = self._layers[layer :: self._every]
            self._groups = _grouped(rest, self._read({name for _, names in rest for name in names}))
        self._next = layer + self._every
        return next(self._groups)

    def _read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._format.slices(self._path):  # what is not indexed is not read
            if name in names:
                yield name, tensor[(slice(None),) * len(tensor.shape)]


def _names(spec: ModelSpec) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """(the prefix and the names of each layer's weights, the names of all others)."""
    expected = list(expected_shapes(spec))
    layers: list[tuple[str, list[str]]] = [(f"model.layers.{index}.", []) for index in range(len(spec.layers))]
    outer = []
    for name in expected:
        if name.startswith("model.layers."):
            layers[int(name.split(".")[2])][1].append(name)
        else:
            outer.append(name)
    return layers, outer


def _grouped(
    groups: Sequence[tuple[str, Sequence[str]]], weights: Iterable[tuple[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """The weights of each (prefix, names), without the prefix."""
    waiting: dict[str, Tensor] = {}
    stream = iter(weights)
    for prefix, names in groups:
        while missing := [name for name in names if name not in waiting]:
            name, tensor = next(stream, ("", None))
            if tensor is None:
                raise UserError(f"the checkpoint lacks tensor {missing[0]}.")
            waiting[name] = tensor
        yield {name.removeprefix(prefix): waiting.pop(name) for name in names}

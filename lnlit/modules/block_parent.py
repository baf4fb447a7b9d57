"""The parent model in blockwise distillation: as a running model, and as initial weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lnlit.checkpoint.formats import open_checkpoint, read_spec, resolve
from lnlit.checkpoint.load import by_layer, frozen_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.ranks import is_distributed
from lnlit.search.choice import At


def load_parent(
    model: str, device: torch.device, dtype: torch.dtype, attention_kernel: str, mesh: DeviceMesh | None
) -> Decoder:
    """Loads the frozen parent on `device`, sharded over `mesh`, or over all ranks if there are several and no mesh
    (`parent_steps` gathers a layer at a time)."""
    if mesh is None and is_distributed():
        names = ("data_parallel", "tensor_parallel")
        mesh = init_device_mesh(device.type, (distributed.get_world_size(), 1), mesh_dim_names=names)
    return frozen_decoder(model, device, dtype, mesh=mesh, attention_kernel=attention_kernel)


def parent_weights(model: str, candidates: Sequence[At]) -> Iterator[tuple[At, Mapping[str, Tensor]]]:
    """Each of the sorted candidates with the parent's weights of its layer, one layer in memory at a time.

    In the checkpoint's dtype: the parent that runs may be rounded. Nothing is read, and weights are {}, unless a block
    is among them: other candidates do not start from the parent.
    """
    if not any(at.slot == "block" for at in candidates):
        yield from ((at, {}) for at in candidates)
        return
    source = resolve(model)
    groups = by_layer(read_spec(model), open_checkpoint(source).weights(source))
    next(groups)  # the embedding
    for layer, weights in zip(range(candidates[-1].layer + 1), groups, strict=False):
        yield from ((at, weights) for at in candidates if at.layer == layer)

"""This rank's part of a sharded parameter."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def own_part(parameter: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """(the values that this rank has, their shape, where they begin in the whole parameter).

    They are a contiguous range of each dim, even if tensor parallelism and FSDP2 split the same dim. The range comes
    from the function that torch's own distributed checkpoints use.
    """
    if not isinstance(parameter, DTensor):
        return parameter, tuple(parameter.shape), (0,) * parameter.dim()
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local(), tuple(shape), tuple(offset)

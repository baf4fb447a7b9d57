"""Embedding and output head whose rows, one for each token, tensor-parallel ranks may divide among them.

Shape suffixes: B rows, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor


def divide(layer: nn.Embedding | nn.Linear, mesh: DeviceMesh) -> None:
    """Divides the rows of an embedding's or a head's weight over the ranks of a mesh of one dim."""
    weight = distribute_tensor(layer.weight.detach(), mesh, [Shard(0)])
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)


def embedded(tokens_BT: Tensor, layer: nn.Embedding) -> Tensor:
    """The tokens' rows of the layer's weight, [B, T, D], on every rank."""
    weight_VD = layer.weight
    if not isinstance(weight_VD, DTensor):
        return layer(tokens_BT)
    own_VD, mesh = weight_VD.to_local(grad_placements=weight_VD.placements), weight_VD.device_mesh
    place_BT = tokens_BT - mesh.get_local_rank() * len(own_VD)
    is_here_BT = (place_BT >= 0) & (place_BT < len(own_VD))
    own_BTD = nn.functional.embedding(place_BT.where(is_here_BT, 0), own_VD)
    return _Summed.apply(own_BTD.masked_fill(~is_here_BT[..., None], 0.0), mesh.get_group())  # type: ignore


def logits(hidden: Tensor, weight_VD: Tensor) -> Tensor:
    """`hidden @ weight.T` of all tokens, [..., V], on every rank."""
    if isinstance(weight_VD, DTensor):
        whole = DTensor.from_local(hidden, weight_VD.device_mesh, [Replicate()], run_check=False)
        product = nn.functional.linear(whole, weight_VD)
        assert isinstance(product, DTensor)
        return product.full_tensor()
    return nn.functional.linear(hidden, weight_VD)


class _Summed(Function):
    """The sum over ranks. Each rank has the gradient of the sum, which is that of its own term."""

    @staticmethod
    def forward(ctx: Any, term: Tensor, group: Any) -> Tensor:
        total = term.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient, None

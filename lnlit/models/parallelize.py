"""Scale-out: FSDP2 and tensor parallelism with a plan derived from the model's own parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder

_STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


def parallelize(decoder: Decoder, mesh: DeviceMesh, compute_dtype: torch.dtype | None) -> None:
    """Shard in place over Lightning's (`data_parallel`, `tensor_parallel`) mesh.

    Each block is one FSDP2 unit; embedding, head and final norm form the root's. Under mixed precision the shards stay
    fp32 and products run in `compute_dtype`. A rank alone is sharded too, over itself: it can then go on from the
    checkpoints of several.
    """
    if mesh["tensor_parallel"].size() > 1:
        _tensor_parallel(decoder, mesh["tensor_parallel"])
    if mesh["data_parallel"].size() > 1 or mesh["tensor_parallel"].size() == 1:
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32 if compute_dtype else None)
        for block in decoder.layers:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh["data_parallel"], mp_policy=policy)
        fully_shard(decoder, mesh=mesh["data_parallel"], mp_policy=policy)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Gathers the parameters of one FSDP2 unit, for uses other than calling it, which would do so. Every rank must come
    here; a module that is not sharded is whole already.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def _tensor_parallel(decoder: Decoder, mesh: DeviceMesh) -> None:
    size = mesh.size()
    for index, block in enumerate(decoder.layers):
        part = decoder.spec.layers[index].attention
        if part.args.get("num_kv_heads", size) % size:
            raise UserError(
                f"tensor_parallel_size {size} does not divide layers[{index}]'s {part.args['num_kv_heads']} KV heads"
            )
        for slot in ("self_attn", "mlp"):
            module = getattr(block, slot)
            plan = {name: _STYLES[style]() for name, style in getattr(module, "tensor_parallel", {}).items()}
            if any(hasattr(child, "lora_a") for child in module.children()) if module is not None else False:
                raise UserError("lora: adapters do not split over tensor-parallel ranks; set tensor_parallel_size: 1")
            if plan:
                parallelize_module(module, mesh, plan)  # type: ignore[arg-type]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Global L2 norm of all gradients, fp32 scalar, equal on every rank.

    Gradients are grouped by device mesh first: torch refuses to stack norms of tensors on different meshes, which is
    what FSDP2 with tensor parallelism produces.
    """
    groups: dict[object, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            groups[getattr(parameter.grad, "device_mesh", None)].append(parameter.grad)
    norms = []
    for gradients in groups.values():
        norm = torch.nn.utils.get_total_norm(gradients)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.stack([norm.float() for norm in norms]).norm() if norms else torch.zeros(())


def clip_gradients(parameters: Sequence[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scale all gradients by `max_norm / norm` when the norm exceeds it, in place."""
    factor = float(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    if factor < 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

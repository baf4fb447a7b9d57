"""Sharding by FSDP2 and tensor parallelism, with a plan derived from what the model's parts declare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder
from lnlit.models.lora import is_adapted
from lnlit.models.parts import layer_class
from lnlit.models.split_adapter import SplitAdapter
from lnlit.models.vocabulary import divide
from lnlit.specs import PartSpec

_STYLES = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "gathered": partial(ColwiseParallel, output_layouts=Replicate()),
    "per_head": partial(SequenceParallel, sequence_dim=2, use_local_output=True),  # heads are dim 2; sums gradients
}


def mesh_of(mesh: DeviceMesh | None, replicas: int, key: str) -> DeviceMesh | None:
    """The mesh that models are sharded over: Lightning's, or the `hybrid_mesh` of several replicas. `key` is where a
    user sets these. Raises `UserError` for replicas without a mesh."""
    if replicas == 1:
        return mesh
    if mesh is None:
        raise UserError(f"{key}: only sharded models have some; set trainer.strategy to ModelParallelStrategy.")
    return hybrid_mesh(mesh, replicas, key)


def hybrid_mesh(mesh: DeviceMesh, replicas: int, key: str) -> DeviceMesh:
    """Lightning's mesh with its data-parallel ranks in `replicas` groups of neighbours, each of which holds the whole
    model: (`replicas`, `shards`, `tensor_parallel`). Collective."""
    ranks = mesh["data_parallel"].size()
    if ranks % replicas:
        raise UserError(f"{key}: {ranks} data-parallel ranks cannot hold {replicas} equal replicas.")
    sizes = (replicas, ranks // replicas, mesh["tensor_parallel"].size())
    return init_device_mesh(mesh.device_type, sizes, mesh_dim_names=("replicas", "shards", "tensor_parallel"))


def parallelize(decoder: Decoder, mesh: DeviceMesh, compute_dtype: torch.dtype | None) -> str | None:
    """Shards the decoder in place over Lightning's (`data_parallel`, `tensor_parallel`) mesh, or a `hybrid_mesh`.

    Each block is one FSDP2 unit; the embedding, the head and the final norm belong to the root unit. Under mixed
    precision the shards stay in fp32 and products are computed in `compute_dtype`. A single rank is sharded too, so
    that it can resume from the checkpoints of several.

    Returns a description of the parameters that tensor parallelism does not split, or None without tensor parallelism.
    Raises `UserError` for parts that cannot be split evenly.
    """
    if mesh["tensor_parallel"].size() > 1:
        _tensor_parallel(decoder, mesh["tensor_parallel"])
        left = _left_whole(decoder, mesh["tensor_parallel"].size())
    else:
        left = None
    for block in decoder.layers:
        if any(True for _ in block.parameters()):
            shard(block, mesh, compute_dtype)
    shard(decoder, mesh, compute_dtype)
    return left


def shard(module: nn.Module, mesh: DeviceMesh, compute_dtype: torch.dtype | None = None) -> None:
    """Makes a module one FSDP2 unit over the data-parallel ranks, unless tensor parallelism alone divides the model."""
    names = mesh.mesh_dim_names or ()
    data = mesh["replicas", "shards"] if "replicas" in names else mesh["data_parallel"]
    if data.size() > 1 or mesh["tensor_parallel"].size() == 1:
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32 if compute_dtype else None)
        fully_shard(module, mesh=data, mp_policy=policy)


def is_split(module: nn.Module) -> bool:
    """True if tensor parallelism divides some parameters of a module."""
    meshes = (p.device_mesh for p in module.parameters() if isinstance(p, DTensor))
    return any("tensor_parallel" in (mesh.mesh_dim_names or ()) for mesh in meshes)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Gathers the parameters of one FSDP2 unit for uses other than calling it. Every rank must enter this context. It
    does nothing for a module that is not sharded."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def _tensor_parallel(decoder: Decoder, mesh: DeviceMesh) -> None:
    if decoder.spec.vocab_size % mesh.size() == 0:
        for layer in (decoder.embed_tokens, decoder.lm_head):
            if layer is not None:
                divide(layer, mesh)
    for index, block in enumerate(decoder.layers):
        for slot, kind in (("self_attn", "attention"), ("mlp", "ffn")):
            if (module := getattr(block, slot)) is None:
                continue
            part = getattr(decoder.spec.layers[index], kind)
            _check_split(module, kind, part, f"layers[{index}].{kind}", mesh.size())
            plan = {
                name: SplitAdapter(style) if is_adapted(module.get_submodule(name)) else _STYLES[style]()
                for name, style in module.tensor_parallel.items()
                if _has_weights(module, name)
            }
            if plan:
                trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
                parallelize_module(module, mesh, plan)  # type: ignore[arg-type]
                for name, parameter in module.named_parameters():  # torch's style for norms unfreezes them
                    parameter.requires_grad_(trained[name])


def _has_weights(module: nn.Module, name: str) -> bool:
    return next(module.get_submodule(name).parameters(), None) is not None


def _check_split(module: nn.Module, slot: str, part: PartSpec, where: str, size: int) -> None:
    """Raises `UserError` unless the part can be split evenly: every rank gets whole heads and the same number of
    columns."""
    if any(is_adapted(child) and not isinstance(child.dropout, nn.Identity) for child in module.children()):
        raise UserError("lora.dropout: tensor-parallel ranks would each drop other numbers; set it to 0.")
    for what, count in layer_class(slot, part).whole_units(part.args).items():
        if count % size:
            raise UserError(f"tensor_parallel_size {size} does not divide {where}'s {count} {what}; choose a divisor.")
    layer: Any = module  # an nn.Module, and a Layer
    for name, style in layer.tensor_parallel.items():
        if style == "per_head":
            continue
        if name in layer.packed_weights and layer.packed_runs % size:  # or ranks would have parts of different weights
            raise UserError(
                f"{where}.{name} stacks {', '.join(layer.packed_weights[name])} in {layer.packed_runs} runs of "
                f"rows, which tensor_parallel_size {size} does not divide; choose a divisor, or a part that does not "
                "pack its weights (runtime.fuse_gate_up: false)."
            )
        width = layer.get_submodule(name).weight.shape[style == "rowwise"]
        if width % size:
            side = "inputs" if style == "rowwise" else "outputs"
            raise UserError(f"tensor_parallel_size {size} does not divide {where}.{name}'s {width} {side}.")


def _left_whole(decoder: Decoder, size: int) -> str:
    """A text such as "tensor_parallel_size 2: each rank holds 9 of 14 parameters. Whole on each: embedding 3, norms
    1"."""
    names = {"embed_tokens": "embedding", "lm_head": "head", "norm": "norms"}
    whole: dict[str, int] = defaultdict(int)
    total = split = 0
    for name, parameter in decoder.named_parameters():
        total += parameter.numel()
        if isinstance(parameter, DTensor) and any(placement.is_shard() for placement in parameter.placements):
            split += parameter.numel()
            continue
        top, *rest = name.split(".")
        if top != "layers":
            whole[names[top]] += parameter.numel()
        elif "norm" in rest[1]:
            whole["norms"] += parameter.numel()
        elif not isinstance(parameter, DTensor):  # one is a bias that belongs to a split linear
            kind = "attention" if rest[1] == "self_attn" else "ffn"
            part = getattr(decoder.spec.layers[int(rest[0])], kind)
            whole[f"{kind} {part.type}"] += parameter.numel()
    held = total - split + split // size
    listed = ", ".join(f"{name} {count:,}" for name, count in whole.items())
    return f"tensor_parallel_size {size}: each rank holds {held:,} of {total:,} parameters. Whole on each: {listed}"


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The global L2 norm of all gradients as an fp32 scalar, equal on every rank.

    Gradients are grouped by device mesh first, because torch refuses to stack norms of tensors on different meshes,
    which FSDP2 with tensor parallelism produces.
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

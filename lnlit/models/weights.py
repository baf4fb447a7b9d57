"""Loads named tensors into decoders and reads them out, one at a time, for plain and sharded (DTensor) parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.layout import Slot, layout
from lnlit.models.lora import merged


@torch.no_grad()
def fill(decoder: Decoder, weights: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Fills a materialised decoder from (canonical name, full tensor) pairs, converting each to its parameter's dtype.
    `where` names their origin in error messages. Each rank of a sharded decoder copies its own part without
    communication.

    Raises `UserError` unless every tensor of the decoder is given exactly once.
    """
    _reshard(decoder)
    parameters = dict(decoder.named_parameters())
    waiting = layout(decoder)
    loaded = set()
    for name, tensor in weights:
        if name in loaded:
            raise UserError(f"{where}: tensor {name} comes twice.")
        slot = waiting.pop(name, None)
        if slot is None:
            raise UserError(f"{where}: tensor {name} has no place in the model being built; its spec differs.")
        if tuple(tensor.shape) != slot.shape:
            raise UserError(
                f"{where}: tensor {name} has shape {list(tensor.shape)}, the model being built expects "
                f"{list(slot.shape)}."
            )
        _write(parameters[slot.parameter], slot, tensor)
        loaded.add(name)
    if waiting:
        first = next(iter(waiting))
        raise UserError(f"{where}: {len(waiting)} tensors that the model needs are missing, the first is {first}.")


def _write(parameter: Tensor, slot: Slot, tensor: Tensor) -> None:
    """Copies the part of `tensor` that this process holds into its rows of `parameter`.

    A rank's part is a contiguous range of each dim, even if tensor parallelism and FSDP2 split the same dim. The range
    comes from the function that torch's own distributed checkpoints use.
    """
    local, shape, offset = parameter, tuple(parameter.shape), (0,) * parameter.dim()
    if isinstance(parameter, DTensor):
        local = parameter.to_local()
        shape, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
    first, last = max(offset[0], slot.start), min(offset[0] + shape[0], slot.start + slot.shape[0])
    if first >= last:
        return
    source = tensor[first - slot.start : last - slot.start]
    for dim in range(1, tensor.dim()):
        source = source.narrow(dim, offset[dim], shape[dim])
    local[first - offset[0] : last - offset[0]].copy_(source)


def canonical_weights(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yields every weight as (canonical name, full CPU tensor) with adapters merged in: the inverse of `fill`.

    Sharded parameters are gathered one at a time, so every rank must run this to the end. On the CPU the tensors are
    views of the parameters.
    """
    _reshard(decoder)

    def whole(own_name: str) -> Tensor:
        value = decoder.get_parameter(own_name).detach()
        return value.full_tensor() if isinstance(value, DTensor) else value

    yield from named_weights(decoder, whole)


def named_weights(decoder: Decoder, whole: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Like `canonical_weights`, for a decoder whose values are elsewhere: `whole(name)` returns the value of one
    parameter, including those of adapters. It is called for one parameter at a time, so only one needs to be in memory.
    """
    slots = layout(decoder)
    by_parameter: dict[str, list[tuple[str, Slot]]] = {}
    for name, slot in slots.items():
        by_parameter.setdefault(slot.parameter, []).append((name, slot))
    for own_name, places in by_parameter.items():
        full = merged(decoder, own_name, whole).cpu()
        for name, slot in places:
            yield name, full.narrow(0, slot.start, slot.shape[0])


def _reshard(decoder: Decoder) -> None:
    """Reshards all FSDP2 units. A forward pass without a backward pass leaves the root unit gathered, so that its
    parameters are copies in the compute dtype instead of the shards."""
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def inference_copy(decoder: Decoder, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    """A half-precision copy for generation with adapters merged in. It is twice as fast as autocast on a CPU.

    A sharded decoder is returned as it is: a full copy may not fit, so its ranks generate together.
    """
    if any(isinstance(parameter, DTensor) for parameter in decoder.parameters()):
        return decoder
    device = decoder.embed_tokens.weight.device
    copy = build_decoder(decoder.spec, device, dtype, decoder.attention_kernel)
    fill(copy, canonical_weights(decoder), "inference copy")
    return copy.eval()

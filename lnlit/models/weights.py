"""Loads named tensors into decoders and reads them out, one at a time, for plain and sharded (DTensor) parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lnlit.errors import UserError
from lnlit.interfaces.checkpoint import Sliced
from lnlit.models.block import Block
from lnlit.models.build import build_block, build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.layout import Slot, layout
from lnlit.models.lora import is_adapted, merged
from lnlit.models.shards import own_part


@torch.no_grad()
def fill(decoder: Decoder, weights: Iterable[tuple[str, Tensor | Sliced]], where: str) -> None:
    """Fills a materialised decoder from (canonical name, full tensor) pairs, converting each to its parameter's dtype.
    `where` names their origin in error messages. Each rank of a sharded decoder asks for its own part and copies it,
    without communication.

    Raises `UserError` unless every tensor of the decoder is given exactly once.
    """
    reshard(decoder)
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


def _write(parameter: Tensor, slot: Slot, tensor: Tensor | Sliced) -> None:
    """Copies the part of `tensor` that this process holds into its rows of `parameter`."""
    local, shape, offset = own_part(parameter)
    # (rows of `tensor`, the rows of `local` for them) of each run; a contiguous range of both, in their order
    pieces: list[tuple[slice, slice]] = []
    for index, start in enumerate(slot.starts):
        first, last = max(offset[0], start), min(offset[0] + shape[0], start + slot.run)
        if first < last:
            before = index * slot.run - start
            pieces.append((slice(first + before, last + before), slice(first - offset[0], last - offset[0])))
    if not pieces:
        return
    begin = pieces[0][0].start
    others = (slice(start, start + size) for start, size in zip(offset[1:], shape[1:], strict=True))
    source = tensor[(slice(begin, pieces[-1][0].stop), *others)]  # one reading, as formats may decode more than asked
    for rows, place in pieces:
        local[place].copy_(source[rows.start - begin : rows.stop - begin])


def canonical_weights(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yields every weight as (canonical name, full CPU tensor) with adapters merged in: the inverse of `fill`.

    Sharded parameters are gathered one at a time, so every rank must run this to the end. On the CPU the tensors are
    views of the parameters, unless these pack several in runs.
    """
    reshard(decoder)
    yield from named_weights(decoder, lambda own_name: gathered(decoder.get_parameter(own_name)))


def canonical_adapters(decoder: Decoder) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields (canonical name, A, B) for each weight that has an adapter. Collective as `canonical_weights` is."""
    reshard(decoder)
    yield from named_adapters(decoder, lambda own_name: gathered(decoder.get_parameter(own_name)))


def gathered(parameter: Tensor) -> Tensor:
    """The whole value of a parameter. Collective if it is sharded."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_block(decoder: Decoder, index: int) -> Block:
    """A frozen copy of a block of a sharded decoder that this rank has for itself. Collective."""
    block = decoder.layers[index]
    copy = build_block(decoder.spec, index, decoder.spec.layers[index])
    copy.load_state_dict({name: gathered(own) for name, own in block.named_parameters()}, assign=True)
    return copy.requires_grad_(False).eval()


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
            yield name, slot.of(full)


def named_adapters(decoder: Decoder, whole: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields (canonical name, A, B) for each weight that has an adapter; what is packed in one parameter shares an A.
    `whole` as in `named_weights`."""
    for name, slot in layout(decoder).items():
        module, _, leaf = slot.parameter.rpartition(".")
        if leaf == "weight" and is_adapted(decoder.get_submodule(module)):
            a, b = (whole(f"{module}.{part}.weight").cpu() for part in ("lora_a", "lora_b"))
            yield name, a, slot.of(b)


def reshard(module: nn.Module) -> None:
    """Reshards all FSDP2 units. A forward pass without a backward pass leaves the root unit gathered, so that its
    parameters are copies in the compute dtype instead of the shards."""
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


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

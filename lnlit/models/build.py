"""Builds modules from specs: checks every part's arguments, builds on the meta device and initialises weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lnlit import registry
from lnlit.errors import UserError, unknown_key
from lnlit.models.block import Block, Packed, make_block
from lnlit.models.decoder import Decoder
from lnlit.models.rope import check_rope
from lnlit.specs import BlockSpec, ModelSpec, PartSpec

_SCALARS = {"int": int, "float": (int, float), "str": str, "bool": bool}


def check_spec(spec: ModelSpec) -> None:
    """Raises `UserError` for an unknown part name or a wrong argument anywhere, before anything is built."""
    check_rope(spec.rope)
    for path, kind, part in spec.parts():
        check_part(f"spec.{path}", kind, part)


def check_part(path: str, kind: str, part: PartSpec) -> None:
    """Raises `UserError`, which begins with `path`, for an unknown part name or a wrong argument."""
    try:
        cls = registry.get(kind, part.type)
    except UserError as error:
        raise UserError(f"{path}.type: {error}") from error
    parameters = dict(list(inspect.signature(cls).parameters.items())[1:])  # without the context
    for key, value in part.args.items():
        if key not in parameters:
            raise unknown_key(f"{path}.args", key, parameters)
        annotation, _, none = str(parameters[key].annotation).partition(" | None")
        expected = None if none and value is None else _SCALARS.get(annotation)
        if expected and (not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)):
            raise UserError(f"{path}.args.{key}: expected {parameters[key].annotation}, got {value!r}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in part.args:
            raise UserError(f"{path}.args: {part.type!r} needs {key!r}. It takes: {', '.join(parameters)}.")


def build_decoder(
    spec: ModelSpec,
    device: torch.device | str = "meta",
    dtype: torch.dtype | None = None,
    attention_kernel: str = "auto",
    activation_checkpointing: bool | Literal["offload"] = False,
) -> Decoder:
    """A decoder with uninitialised weights on `device`. Load a checkpoint into it, or call `init_weights`."""
    check_spec(spec)
    try:
        with torch.device("meta"):
            decoder = Decoder(spec, attention_kernel, activation_checkpointing)
    except (RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"spec: a tensor of these sizes cannot exist ({reason}). Correct the model's sizes.") from error
    if dtype is not None:
        decoder = decoder.to(dtype)
    return decoder if torch.device(device).type == "meta" else decoder.to_empty(device=device)


def build_block(spec: ModelSpec, index: int, block: BlockSpec) -> Block:
    """Builds `block` on the meta device as layer `index` of a model with this spec. It need not equal
    `spec.layers[index]`.

    `load_block` gives it weights. A block with `NOOP` in one slot computes only the other slot.
    """
    for slot in ("attention", "ffn"):
        check_part(f"layers[{index}].{slot}", slot, getattr(block, slot))
    with torch.device("meta"):
        return make_block(spec, index, block)


def load_block(block: Block, weights: Mapping[str, Tensor]) -> Block:
    """Gives a block its weights, by their checkpoint names relative to the block (`mlp.gate_proj.weight`, even if the
    part stores gate and up as one matrix). The tensors are used directly, not copied, except for packed parameters.
    Raises `KeyError` or `RuntimeError` unless `weights` are exactly the block's weights."""
    state = dict(weights)
    for name, packed in block.packed_weights().items():
        state[name] = packed.join([state.pop(part) for part in packed.parts])
    block.load_state_dict(state, assign=True)
    return block


def block_weights(block: Block) -> dict[str, Tensor]:
    """A block's weights by their checkpoint names relative to the block: the inverse of `load_block`. Only packed ones
    are copies."""
    packed = block.packed_weights()
    weights = {}
    for name, parameter in block.named_parameters():
        stack = packed.get(name, Packed((name,)))
        weights.update(zip(stack.parts, stack.split(parameter.detach()), strict=True))
    return weights


def init_weights(decoder: Decoder, seed: int = 0) -> Decoder:
    """Random weights for tests and from-scratch runs: normal(0, 0.02), residual outputs scaled by 1/sqrt(2 layers)."""
    generator = torch.Generator().manual_seed(seed)
    residual_std = 0.02 / math.sqrt(2 * max(len(decoder.spec.layers), 1))
    for name, parameter in decoder.named_parameters():
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
    return decoder


def parameter_count(module: nn.Module) -> int:
    """The number of distinct parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())

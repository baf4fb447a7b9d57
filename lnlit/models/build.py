"""From a spec to a module: check every part's arguments, build on the meta device, initialise."""

from __future__ import annotations

import inspect
import math

import torch
from torch import nn

from lnlit import registry
from lnlit.errors import UserError, unknown_key
from lnlit.models.decoder import Decoder
from lnlit.models.rope import check_rope
from lnlit.specs import ModelSpec, PartSpec

_SCALARS = {"int": int, "float": (int, float), "str": str, "bool": bool}


def check_spec(spec: ModelSpec) -> None:
    """Raises `UserError` for an unknown part name or a wrong argument anywhere, before anything is built."""
    check_rope(spec.rope)
    for path, kind, part in spec.parts():
        _check_part(f"spec.{path}", kind, part)


def _check_part(path: str, kind: str, part: PartSpec) -> None:
    try:
        cls = registry.get(kind, part.type)
    except UserError as error:
        raise UserError(f"{path}.type: {error}") from error
    parameters = dict(list(inspect.signature(cls).parameters.items())[1:])  # without the context
    for key, value in part.args.items():
        if key not in parameters:
            raise unknown_key(f"{path}.args", key, parameters)
        expected = _SCALARS.get(str(parameters[key].annotation))
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
    activation_checkpointing: bool = False,
) -> Decoder:
    """A decoder with uninitialised weights on `device`. Load a checkpoint into it, or call `init_weights`."""
    check_spec(spec)
    with torch.device("meta"):
        decoder = Decoder(spec, attention_kernel, activation_checkpointing)
    if dtype is not None:
        decoder = decoder.to(dtype)
    return decoder if torch.device(device).type == "meta" else decoder.to_empty(device=device)


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
    """Distinct parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())

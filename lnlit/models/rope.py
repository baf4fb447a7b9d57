"""Rotary position embedding in Hugging Face's half-split layout, with Llama 3's frequency scaling.

Shape suffixes: B batch rows, T tokens, H heads (query or key), d head size, f = d / 2 frequencies.
Source: Su et al. 2021 (RoFormer), eq. 34; scaling: Llama 3.1 release, `rope_type: llama3`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lnlit.errors import UserError, unknown_key
from lnlit.schema import is_finite
from lnlit.specs import RopeSpec

_SCALING_ARGS = {
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "linear": {"factor"},
}


def check_rope(rope: RopeSpec, path: str = "spec.rope") -> None:
    """Raises `UserError` for an unknown scaling rule or for wrong arguments."""
    if rope.scaling is None:
        return
    allowed = _SCALING_ARGS.get(rope.scaling.type)
    if allowed is None:
        raise UserError(f"{path}.scaling: unknown rule {rope.scaling.type!r}. Allowed: {', '.join(_SCALING_ARGS)}.")
    for key in rope.scaling.args:
        if key not in allowed:
            raise unknown_key(f"{path}.scaling.args", key, allowed)
    if missing := allowed - rope.scaling.args.keys():
        raise UserError(f"{path}.scaling.args: missing {', '.join(sorted(missing))}.")
    for key, value in rope.scaling.args.items():
        if not is_finite(value) or value <= 0:
            raise UserError(f"{path}.scaling.args.{key}: expected a positive number, got {value!r}.")


def inverse_frequencies(rope: RopeSpec, head_dim: int, device: torch.device | None = None) -> Tensor:
    """The angle per position of each frequency, in radians, fp32 [f]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inverse_f = 1.0 / (rope.theta**exponents)
    if rope.scaling is not None:
        inverse_f = (_scale_llama3 if rope.scaling.type == "llama3" else _scale_linear)(inverse_f, **rope.scaling.args)
    return inverse_f.to(device)


def rope_tables(inverse_f: Tensor, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos_BTd, sin_BTd) in `dtype`. Angles are computed in fp32."""
    with torch.autocast(positions_BT.device.type, enabled=False):
        angles_BTf = positions_BT.float()[..., None] * inverse_f
        angles_BTd = torch.cat((angles_BTf, angles_BTf), dim=-1)
        return angles_BTd.cos().to(dtype), angles_BTd.sin().to(dtype)


def apply_rope(x_BTHd: Tensor, cos_BTd: Tensor, sin_BTd: Tensor) -> Tensor:
    """Rotates each pair (x[i], x[i + d/2]) by its angle."""
    first, second = x_BTHd.chunk(2, dim=-1)
    rotated_BTHd = torch.cat((-second, first), dim=-1)
    return x_BTHd * cos_BTd[:, :, None] + rotated_BTHd * sin_BTd[:, :, None]


def _scale_linear(inverse_f: Tensor, factor: float) -> Tensor:
    return inverse_f / factor


def _scale_llama3(inverse_f: Tensor, **args: Any) -> Tensor:
    """Divides the frequency of long wavelengths by `factor`, keeps that of short ones, and interpolates in between."""
    original, low, high = (
        args["original_max_position_embeddings"],
        args["low_freq_factor"],
        args["high_freq_factor"],
    )
    wavelength_f = 2 * math.pi / inverse_f
    stretched_f = inverse_f / args["factor"]
    blend_f = (original / wavelength_f - low) / (high - low)
    between_f = (1 - blend_f) * stretched_f + blend_f * inverse_f
    scaled_f = torch.where(wavelength_f > original / low, stretched_f, inverse_f)
    is_between = (wavelength_f <= original / low) & (wavelength_f >= original / high)
    return torch.where(is_between, between_f, scaled_f)

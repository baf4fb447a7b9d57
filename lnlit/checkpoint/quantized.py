"""Weights in eight bits, in the format of compressed-tensors, which vLLM and transformers read.

A matrix that layers multiply by is stored as integers or float8 numbers beside a scale per row (`weight_scale`, [rows,
1], in the dtype of the weights). Activations are quantised by whoever computes, per token. The rule is that of
compressed-tensors (`calculate_qparams`), computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lnlit.checkpoint.formats import Written, written
from lnlit.checkpoint.names import Rules, Shapes, stored_names
from lnlit.checkpoint.safetensors_folder import EMBEDDING, HEAD, SCALE
from lnlit.errors import UserError, did_you_mean
from lnlit.models.build import build_decoder
from lnlit.models.layout import canonical_name
from lnlit.models.parts import stored
from lnlit.specs import ModelSpec

_COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float16)
#: Elements that are quantised at once, since float32 copies of a large matrix would be four times its size.
_AT_ONCE = 2**24
#: The relative error of a rounded scale from which on it no longer fits its rows: it is close to zero in its dtype.
_SCALE_ERROR = 0.01


@dataclass(frozen=True)
class Scheme:
    """A way to store matrices.

    Attributes:
        name: What users call it.
        dtype: The dtype of the stored numbers.
        code: What safetensors calls this dtype.
        type: What compressed-tensors calls this dtype.
        lowest: The least stored number; `highest` is the greatest.
        runs_on: Where vLLM computes with it.
    """

    name: str
    dtype: torch.dtype
    code: str
    type: str
    lowest: float
    highest: float
    runs_on: str

    def numbers(self) -> dict[str, Any]:
        """What weights and activations have in common in a config.json."""
        return {"num_bits": 8, "type": self.type, "symmetric": True}


_FP8 = torch.float8_e4m3fn
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp8", _FP8, "F8_E4M3", "float", -448.0, 448.0, "CPUs and GPUs from compute capability 8.9 on"),
        Scheme("int8", torch.int8, "I8", "int", -128.0, 127.0, "CPUs and GPUs of compute capability 7.5 to 9.0"),
    )
}


def scheme_of(name: str | None) -> Scheme | None:
    """The scheme called `name`; None for None."""
    if name is not None and name not in SCHEMES:
        allowed = ", ".join(SCHEMES)
        raise UserError(f"quantize: scheme {name!r} is unknown.{did_you_mean(name, SCHEMES)} Allowed: {allowed}.")
    return SCHEMES[name] if name else None


def quantized(name: str, weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """(a matrix in the scheme's dtype, the scales of its rows in the matrix' own). Raises `UserError` with the tensor's
    `name` for a dtype that is not computed in, and one that cannot hold the scales."""
    if weight.dtype not in _COMPUTED_IN:
        raise UserError(
            f"tensor {name} is {_said(weight.dtype)}; {scheme.name} is made of weights in "
            f"{', '.join(map(_said, _COMPUTED_IN))}. Add --dtype bfloat16."
        )
    whole = torch.empty(weight.shape, dtype=scheme.dtype)
    scales = torch.empty(len(weight), 1, dtype=weight.dtype)
    for rows in torch.arange(len(weight)).split(max(_AT_ONCE // weight.shape[1], 1)):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        w = weight[part].float()
        exact = w.abs().amax(1, keepdim=True) / ((scheme.highest - scheme.lowest) / 2)
        scale = exact.to(weight.dtype)
        if bool(((scale.float() - exact).abs() > _SCALE_ERROR * exact).any()):
            raise UserError(
                f"tensor {name} has a row whose numbers are so small that {_said(weight.dtype)} cannot hold its scale "
                f"({float(exact[exact > 0].min()):.3g}). Add --dtype bfloat16."
            )
        scale[scale == 0] = torch.finfo(weight.dtype).eps  # a row of zeros
        ratio = (w / scale.float()).clamp(scheme.lowest, scheme.highest)
        whole[part] = (ratio if scheme.dtype.is_floating_point else ratio.round()).to(scheme.dtype)
        scales[part] = scale
    return whole, scales


def recorded_scheme(record: Mapping[str, Any], where: Path) -> Scheme | None:
    """The scheme that a folder's lnlit.json names, or None if its weights are not quantised. Raises `UserError` for one
    that is unknown here."""
    if (found := record.get("quantization")) is None:
        return None
    name = found.get("scheme") if isinstance(found, Mapping) else found
    if not isinstance(name, str) or name not in SCHEMES:
        raise UserError(f"{where}: quantization {name!r}; this lnlit reads {' and '.join(SCHEMES)}. Update lnlit.")
    return SCHEMES[name]


@dataclass
class _Kind:
    """What became of the tensors of one kind."""

    tensors: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    largest_relative_error: float | None = None
    kept: str | None = None


@dataclass
class Quantization:
    """Quantises the tensors of one folder while they are written, and records what became of them.

    Raises `UserError` if nobody can compute the model so, naming the first layer, and if it has no linear layer.
    """

    scheme: Scheme
    spec: ModelSpec
    chosen: Written
    kinds: dict[str, _Kind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check()
        self.matrices = _matrices(self.spec, self.chosen.export.names)
        if not self.matrices:
            raise UserError(f"quantize: this model has no layer with a matrix to store in {self.scheme.name}.")

    def stored(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a folder by the names there, each matrix of a layer followed by its scales. Raises `UserError`
        for a tensor with numbers that are not finite."""
        for name, tensor in weights:
            if bad := tensor.numel() - int(tensor.isfinite().sum()):
                raise UserError(f"tensor {name} holds {bad} numbers that are not finite, so it is not quantised.")
            kind = self.kinds.setdefault(_kind_of(name), _Kind())
            kind.tensors += 1
            kind.bytes_before += tensor.nbytes
            if name not in self.matrices:
                kind.bytes_after += tensor.nbytes
                kind.kept = self._why_kept(name, tensor)
                yield name, tensor
                continue
            numbers, scales = quantized(name, tensor, self.scheme)
            kind.bytes_after += numbers.nbytes + scales.nbytes
            error = _relative_error(tensor, numbers, scales)
            kind.largest_relative_error = max(kind.largest_relative_error or 0.0, error)
            yield name, numbers
            yield name + SCALE, scales

    def shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that `stored` gives, from those of the tensors it is given."""
        scales = {name + SCALE: (shape[0], 1) for name, shape in shapes.items() if name in self.matrices}
        return {**shapes, **scales}

    def config(self) -> dict[str, Any]:
        """`quantization_config` of config.json."""
        weights = {**self.scheme.numbers(), "strategy": "channel", "dynamic": False}
        activations = {**self.scheme.numbers(), "strategy": "token", "dynamic": True}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
        return {
            "quant_method": "compressed-tensors",
            "format": f"{self.scheme.type}-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [HEAD.removesuffix(".weight")],
        }

    def record(self) -> dict[str, Any]:
        """What lnlit.json says: the scheme, and per kind of tensor its bytes and the largest relative error (Frobenius
        norms) of one matrix, or why it was kept."""
        kinds = {
            name: {key: value for key, value in vars(kind).items() if value is not None}
            for name, kind in self.kinds.items()
        }
        return {"scheme": self.scheme.name, "kinds": kinds}

    def _why_kept(self, name: str, tensor: Tensor) -> str:
        if name == EMBEDDING:
            return "it is looked up, and is the head as well" if self.spec.tie_embeddings else "it is looked up"
        if name == HEAD:
            return "its error would be one of the logits"
        return "a vector" if tensor.dim() < 2 else "no linear layer"

    def _check(self) -> None:
        if "spec" not in self.chosen.export.config:
            return
        refusals = written(self.spec).refusals
        reason = refusals.get("nemotron-nas", next(iter(refusals.values()), ""))
        raise UserError(
            f"quantize: only lnlit's own modules compute this model, and they take no quantised weights. {reason} "
            "Export it without --quantize."
        )


def lines(record: Mapping[str, Any]) -> list[str]:
    """A folder's `Quantization.record` as text."""
    scheme, kinds = SCHEMES[record["scheme"]], record["kinds"]
    yields = [
        f"{scheme.name}: a scale per row of a matrix, activations per token; vLLM runs it on {scheme.runs_on}, "
        "transformers with the package compressed-tensors"
    ]
    width = max(map(len, kinds))
    for name, kind in kinds.items():
        became = f"{kind['tensors']:5d}  {_megabytes(kind['bytes_before'])}"
        if "kept" in kind:
            yields.append(f"  {name:{width}} {became}  kept: {kind['kept']}")
        else:
            error = f"largest relative error {kind['largest_relative_error']:.2%}"
            yields.append(f"  {name:{width}} {became} -> {_megabytes(kind['bytes_after'])}  {error}")
    before, after = (sum(kind[key] for kind in kinds.values()) for key in ("bytes_before", "bytes_after"))
    yields.append(f"  {'all':{width}}        {_megabytes(before)} -> {_megabytes(after)}")
    return yields


def _matrices(spec: ModelSpec, rules: Rules) -> frozenset[str]:
    """The names in the folder of what linear layers of the blocks multiply by."""
    decoder = build_decoder(stored(spec))
    linears = {
        canonical_name(f"{name}.weight")
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("layers.")
    }
    names = [canonical_name(name) for name, _ in decoder.named_parameters()]
    return frozenset(whole for whole, parts in stored_names(names, rules).items() if linears.issuperset(parts))


def _relative_error(weight: Tensor, numbers: Tensor, scales: Tensor) -> float:
    """The Frobenius norm of what was lost, as a fraction of the matrix' own."""
    lost = size = 0.0
    rows = max(_AT_ONCE // weight.shape[1], 1)
    for w, q, scale in zip(weight.split(rows), numbers.split(rows), scales.split(rows), strict=True):
        size += float(w.float().square().sum(dtype=torch.float64))
        lost += float((w.float() - q.float() * scale.float()).square().sum(dtype=torch.float64))
    return math.sqrt(lost / size) if size else 0.0


def _kind_of(name: str) -> str:
    """`q_proj` for the matrix of that layer, `q_proj.bias` for its bias, `norm` for the last norm."""
    module, _, leaf = name.rpartition(".")
    module = module.rpartition(".")[2]
    return module if leaf == "weight" else f"{module}.{leaf}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:10.3f} MB"


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

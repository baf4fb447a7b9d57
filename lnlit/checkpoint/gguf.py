"""llama.cpp's GGUF files of Llama models, dequantised to fp32 tensor by tensor.

They differ from Hugging Face's layout in the names of tensors and in the order of rows of the query and key
projections, which llama.cpp stores for interleaved instead of half-split rotary embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, GGUFValueType, dequantize, get_tensor_name_map

from lnlit.errors import UserError
from lnlit.files import listed
from lnlit.interfaces import CheckpointFormat
from lnlit.models.layout import check_shapes, expected_shapes
from lnlit.models.rope import inverse_frequencies
from lnlit.specs import BlockSpec, ModelSpec, PartSpec, RopeSpec

if TYPE_CHECKING:
    from torch import Tensor

_ROPE_FACTORS = "rope_freqs.weight"


class GGUFCheckpoint(CheckpointFormat):
    """A .gguf file, or a folder that holds exactly one, with `general.architecture: llama`."""

    def recognises(self, path: Path) -> bool:
        file = gguf_file(path)
        if file is None:
            return False
        try:
            with file.open("rb") as stream:
                return stream.read(4) == b"GGUF"
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}.") from error

    def read_spec(self, path: Path) -> ModelSpec:
        return _read_spec(open_gguf(path))

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        file = open_gguf(path)
        spec = _read_spec(file)
        names = get_tensor_name_map(MODEL_ARCH.LLAMA, len(spec.layers))
        expected = expected_shapes(spec)
        gguf_names = {}
        for name in expected:
            stem, _, suffix = name.rpartition(".")
            gguf_names[name] = f"{names.get_name(stem)}.{suffix}"
        found = {gguf_name: shape for gguf_name, shape in file.shapes.items() if gguf_name != _ROPE_FACTORS}
        check_shapes(str(file.path), found, {gguf_names[name]: shape for name, shape in expected.items()})
        attention = spec.layers[0].attention.args
        for name, gguf_name in gguf_names.items():
            tensor = file.read(gguf_name)
            if ".q_proj." in name:
                tensor = _half_split_rows(tensor, attention["num_heads"])
            elif ".k_proj." in name:
                tensor = _half_split_rows(tensor, attention["num_kv_heads"])
            yield name, tensor


def gguf_file(path: Path) -> Path | None:
    """The path itself if it is a file, or the only .gguf file of a folder without a config.json."""
    if path.is_file():
        return path
    files = listed(path, "*.gguf") if not (path / "config.json").exists() else []
    return files[0] if len(files) == 1 else None


def eos_token_ids(path: Path) -> list[int]:
    """Every token id that ends an answer: end of sequence and, where the file names one, end of turn."""
    file = open_gguf(path)
    ids = (file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return sorted({token_id for token_id in ids if token_id is not None})


def _half_split_rows(tensor: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's row order: within each head, (pair, half) becomes (half, pair)."""
    rows = tensor.unflatten(0, (heads, -1, 2))
    return rows.transpose(1, 2).reshape(tensor.shape)


class GGUFFile:
    """Metadata and tensors of one GGUF file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = GGUFReader(path)
        except Exception as error:  # the reader trusts the file: a damaged one fails anywhere in numpy
            raise UserError(f"{path}: not a complete GGUF file ({error}). Copy or download it again.") from error
        self._lists: dict[str, list[Any]] = {}
        for key, field in list(self._reader.fields.items()):
            if field.types[:1] == [GGUFValueType.ARRAY]:  # as numpy objects, 49k tokens take 150 MB
                self._lists[key] = self._reader.fields.pop(key).contents()
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}

    def list(self, key: str) -> list[Any]:
        """An array of the metadata; empty if it does not exist."""
        return self._lists.get(key, [])

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata, which may be an array."""
        if key in self._lists:
            return self._lists[key]
        field = self._reader.get_field(key)
        if field is None:
            return default
        value = field.contents()
        # fp32 metadata: the shortest decimal, so that 1e-5 is not 9.999999747378752e-06
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.path}: {key}: expected one positive integer for all layers, got {value!r}.")
        return value

    def read(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise UserError(f"{self.path}: tensor {name} is quantised as {kind}, which cannot be read.") from error
        if not values.flags.writeable:  # fp32 tensors come as a view of the read-only file
            values = values.copy()
        return torch.from_numpy(values).reshape(self.shapes[name])


def open_gguf(path: Path) -> GGUFFile:
    file = gguf_file(path)
    if file is None:
        raise UserError(f"{path}: expected a .gguf file, or a folder that holds exactly one.")
    return _open_version(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _open_version(path: Path, _modified_ns: int) -> GGUFFile:
    """Opens a GGUF file. Files are cached by path and modification time (ns), since parsing the vocabulary takes
    seconds and an import asks for spec, weights and end tokens."""
    return GGUFFile(path)


def _read_spec(file: GGUFFile) -> ModelSpec:
    if (parts := file.get("split.count", 1)) > 1:
        raise UserError(
            f"{file.path}: is part {file.get('split.no', 0) + 1} of a split GGUF in {parts} parts. Join them first: "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf."
        )
    if (kind := file.get("general.type", "model")) != "model":
        raise UserError(f"{file.path}: is of the type {kind!r} (general.type) and holds no whole model.")
    architecture = file.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"{file.path}: general.architecture {architecture!r} is not supported. Supported: llama.")
    if file.get("llama.expert_count"):
        raise UserError(f"{file.path}: mixture-of-experts models are not supported; it has llama.expert_count set.")
    for key in ("token_embd.weight", "blk.0.ffn_gate.weight"):
        if key not in file.shapes:
            raise UserError(f"{file.path}: tensor {key} is missing; the file holds no complete Llama model.")
    rows, tokens = file.shapes["token_embd.weight"][0], len(file.list("tokenizer.ggml.tokens"))
    if tokens > rows:
        raise UserError(f"{file.path}: the vocabulary has {tokens} tokens, the embedding {rows} rows only.")
    heads = file.integer("llama.attention.head_count")
    hidden = file.integer("llama.embedding_length")
    head_dim = file.integer("llama.attention.key_length", hidden // heads)
    if (rotary := file.integer("llama.rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{file.path}: llama.rope.dimension_count {rotary} must equal the head size, {head_dim}.")
    attention = {
        "num_heads": heads,
        "num_kv_heads": file.integer("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
    }
    block = BlockSpec(
        PartSpec("gqa", attention | _bias(file, "blk.0.attn_q.bias")),
        PartSpec(
            "swiglu",
            {"intermediate_size": file.integer("llama.feed_forward_length")} | _bias(file, "blk.0.ffn_gate.bias"),
        ),
    )
    return ModelSpec(
        vocab_size=rows,
        hidden_size=hidden,
        layers=(block,) * file.integer("llama.block_count"),
        context_length=file.integer("llama.context_length"),
        rope=_rope(file, head_dim),
        norm_eps=file.get("llama.attention.layer_norm_rms_epsilon", 1e-5),
        tie_embeddings="output.weight" not in file.shapes,
    )


def _bias(file: GGUFFile, tensor: str) -> dict[str, bool]:
    return {"bias": True} if tensor in file.shapes else {}


def _rope(file: GGUFFile, head_dim: int) -> RopeSpec:
    theta = file.get("llama.rope.freq_base", 10_000.0)
    rule = file.get("llama.rope.scaling.type", "none")
    if rule not in ("none", "linear"):
        raise UserError(f"{file.path}: llama.rope.scaling.type {rule!r} is not supported. Supported: none, linear.")
    factor = file.get("llama.rope.scaling.factor", 1.0)
    if rule == "linear" and factor != 1.0:
        return RopeSpec(theta, PartSpec("linear", {"factor": factor}))
    return RopeSpec(theta, _llama3_scaling(file, theta, head_dim) if _ROPE_FACTORS in file.shapes else None)


def _llama3_scaling(file: GGUFFile, theta: float, head_dim: int) -> PartSpec:
    """Llama 3's scaling rule, recovered from the divisor of each frequency, which llama.cpp stores instead of the
    rule's arguments."""
    divisors = file.read(_ROPE_FACTORS)
    args = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rule = PartSpec("llama3", {"factor": round(float(divisors.max()), 4), **args})
    unscaled = inverse_frequencies(RopeSpec(theta), head_dim)
    expected = unscaled / inverse_frequencies(RopeSpec(theta, rule), head_dim)
    if divisors.shape != expected.shape or not torch.allclose(divisors, expected, rtol=1e-4):
        raise UserError(
            f"{file.path}: {_ROPE_FACTORS} is not Llama 3's rule with low 1, high 4 and an original context of 8192. "
            "Import the Hugging Face checkpoint instead."
        )
    return rule

"""The weights of a Hugging Face style folder: one safetensors file, or shards with an index.

Headers are checked before any weight is read; then tensors are read one at a time and, where they are wanted whole, not
memory-mapped, so that the resident memory is that of the largest tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lnlit.checkpoint.foreign import PICKLES, is_safetensors, what_file
from lnlit.checkpoint.names import Rules, stored_names, stored_shapes
from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.models.layout import Shape, check_shapes, expected_shapes
from lnlit.specs import ModelSpec

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
#: What follows the name of a quantised matrix in that of its scales.
SCALE = "_scale"
_AGAIN = "Copy or download it again."
_FLOATS = {"F64", "F32", "F16", "BF16"}


class SafetensorsFolder:
    """The tensors of a folder by their names there. Opening reads headers only.

    `only` is the one file to read instead of a model's weights. `quantized` is the dtype, in safetensors' words, of
    matrices with a scale per row beside them; "" for none.
    """

    def __init__(self, folder: Path, only: Path | None = None, quantized: str = "") -> None:
        self.folder, self.quantized = folder, quantized
        self.shapes: dict[str, Shape] = {}
        #: The names of quantised matrices, and those of their scales.
        self.scales: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        for file, promised in (_weight_files(folder) if only is None else {only: set[str]()}).items():
            self._read_header(file, promised)

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """One tensor, or a part of it; on the CPU, in the file's dtype."""
        file, spans = self._files[name], [(0, size, 1) for size in self.shapes[name]]
        try:
            if index is None or [part.indices(span[1]) for part, span in zip(index, spans, strict=True)] == spans:
                with safe_open(file, framework="pt", backend="pread") as tensors:
                    return tensors.get_tensor(name)
            # pread would read all of the tensor; of a mapped file, pages that nobody asks for stay on the disk.
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_slice(name)[index]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: tensor {name} cannot be read: {error}") from error

    def same(self, first: str, second: str, rows: int = 4096) -> bool:
        """True if two tensors hold equal values, compared a few rows at a time."""
        if self.shapes[first] != self.shapes[second]:
            return False
        files = [safe_open(self._files[name], framework="pt", backend="pread") for name in (first, second)]
        slices = [file.get_slice(name) for file, name in zip(files, (first, second), strict=True)]
        count = self.shapes[first][0]
        spans = [(start, min(start + rows, count)) for start in range(0, count, rows)]
        return all(slices[0][start:end].equal(slices[1][start:end]) for start, end in spans)

    def _read_header(self, file: Path, promised: set[str]) -> None:
        try:
            with safe_open(file, framework="pt", backend="pread") as tensors:
                for name in tensors.keys():  # noqa: SIM118  safe_open is no mapping
                    view = tensors.get_slice(name)
                    if view.get_dtype() == self.quantized:
                        self.scales[name] = name + SCALE
                    elif view.get_dtype() not in _FLOATS:
                        found = f"tensor {name} has dtype {view.get_dtype()}"
                        raise UserError(f"{file}: {found}; quantised weights are not read. Use the unquantised ones.")
                    self.shapes[name], self._files[name] = tuple(view.get_shape()), file
        except (SafetensorError, OSError) as error:
            advice = "" if is_safetensors(file) else what_file(file)
            raise UserError(f"{file}: not a complete safetensors file ({error}). {advice or _AGAIN}") from error
        if absent := sorted(promised - self.shapes.keys()):
            raise UserError(f"{file}: the index promises tensor {absent[0]} in this file, which does not hold it.")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a folder, or some rows of one, which is read when it is indexed: as much as that asks for.

    Attributes:
        stored_as: The name in the folder. A quantised matrix is read in the dtype of its scales, as compressed-tensors
            reads it.
        first: The first of the rows.
        shape: The shape, with as many rows as there are.
    """

    tensors: SafetensorsFolder
    stored_as: str
    first: int
    shape: Shape

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        (start, stop, _), *others = (each.indices(size) for each, size in zip(index, self.shape, strict=True))
        rows = slice(self.first + start, self.first + stop)
        numbers = self.tensors.read(self.stored_as, (rows, *(slice(start, stop) for start, stop, _ in others)))
        if (scale := self.tensors.scales.get(self.stored_as)) is None:
            return numbers
        scales = self.tensors.read(scale, (rows, slice(None)))
        return numbers.to(scales.dtype) * scales


def folder_weights(
    folder: Path, spec: ModelSpec, rules: Rules | None = None, quantized: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Yields every weight of `spec` once, after checking all names and shapes against the headers. `rules` map to the
    names in the folder (see `names`); `quantized` as in `SafetensorsFolder`."""
    slices = folder_slices(folder, spec, rules, quantized)
    return ((name, stored[(slice(None),) * len(stored.shape)]) for name, stored in slices)


def folder_slices(
    folder: Path, spec: ModelSpec, rules: Rules | None = None, quantized: str = ""
) -> Iterator[tuple[str, StoredTensor]]:
    """Like `folder_weights`, but reads no tensor before it is indexed."""
    tensors = SafetensorsFolder(folder, quantized=quantized)
    _check_scales(tensors)
    aside = (".rotary_emb.inv_freq", *tensors.scales.values())
    stored_as = {name: name for name in tensors.shapes if not name.endswith(aside)}
    if spec.tie_embeddings and HEAD in stored_as:  # a tied pair stored twice, or under the head's name alone
        if EMBEDDING in stored_as and not tensors.same(EMBEDDING, HEAD):
            said = "the folder's description says that they are one matrix"
            raise UserError(f"{folder}: {HEAD} and {EMBEDDING} differ, and {said}. Import the weights' own folder.")
        head = stored_as.pop(HEAD)
        stored_as.setdefault(EMBEDDING, head)
    expected = expected_shapes(spec)
    found = {name: tensors.shapes[stored] for name, stored in stored_as.items()}
    check_shapes(str(folder), found, stored_shapes(expected, rules or {}))
    for stored, parts in stored_names(expected, rules or {}).items():
        first = 0
        for name in parts:
            yield name, StoredTensor(tensors, stored_as[stored], first, expected[name])
            first += expected[name][0]


def _check_scales(tensors: SafetensorsFolder) -> None:
    """Raises `UserError` for the first quantised matrix without one scale per row."""
    for name, scale in tensors.scales.items():
        rows, found = tensors.shapes[name][0], tensors.shapes.get(scale)
        if found != (rows, 1) or scale in tensors.scales:
            got = "no such tensor" if found is None else f"shape {list(found)}"
            raise UserError(
                f"{tensors.folder}: tensor {name} is quantised and needs scales in {scale}, of shape [{rows}, 1] and "
                f"not quantised themselves; there is {got}. {_AGAIN}"
            )


def is_tied(folder: Path, configured: bool) -> bool:
    """True if head and embedding are one matrix. As in transformers, a folder that is configured as tied but stores two
    different matrices is untied."""
    if not configured or not has_weights(folder):
        return configured
    tensors = SafetensorsFolder(folder)
    stored = {EMBEDDING, HEAD} <= tensors.shapes.keys()
    return not stored or tensors.same(EMBEDDING, HEAD)


def has_weights(folder: Path) -> bool:
    """True if a folder holds the weights of a model, in one file or in several."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """Weight file -> the tensors that the index promises in it (none are promised without an index)."""
    if (folder / "adapter_config.json").is_file() and has_weights(folder):
        raise UserError(
            f"{folder}: holds the weights of a model and adapter_config.json of a LoRA adapter; lnlit would leave the "
            "adapter out. Put its files into a folder of their own, from which `lnlit import` merges it."
        )
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: set()}
    if not (folder / INDEX).is_file():
        raise UserError(_no_weights(folder))
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX}: expected a non-empty 'weight_map', got {weight_map!r}.")
    files: dict[Path, set[str]] = {}
    for name, file in sorted(weight_map.items()):
        if not isinstance(file, str) or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise UserError(f"{folder / INDEX}: shard {file!r} of tensor {name} must be a file below the same folder.")
        files.setdefault(folder / file, set()).add(name)
    if absent := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{folder}: missing shard {absent[0]} ({len(absent)} of {len(files)} are missing). Copy it too."
        )
    return files


def _no_weights(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir())
    if pickles := [name for name in names if name.endswith((".bin", ".pt", ".pth"))]:
        return f"{folder}: the weights are pickles ({pickles[0]}); {PICKLES}"
    if "adapter_config.json" in names:
        return f"{folder}: holds a LoRA adapter only. `lnlit import {folder} OUT` merges it into its base."
    weights = [name for name in names if name.endswith((".safetensors", ".h5", ".msgpack", ".gguf"))]
    found = f" It holds {', '.join(weights[:3])}." if weights else ""
    return f"{folder}: no weights; looked for {SINGLE} and {INDEX}.{found}"

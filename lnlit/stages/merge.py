"""`lnlit merge`: one model from several of the same architecture (Llama-Nemotron section 7.3)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lnlit.checkpoint.convert import DTYPES, reward_head_of, rounded, tokenizer_source, with_progress
from lnlit.checkpoint.descent import descent
from lnlit.checkpoint.fingerprint import fingerprint, model_source
from lnlit.checkpoint.folder import check_target, knows_thinking, save_folder, tell_readers
from lnlit.checkpoint.formats import open_checkpoint, resolve, spec_as_stored
from lnlit.checkpoint.lightning import checkpoint_folder, list_checkpoints
from lnlit.checkpoint.vocabulary import differing, token_ids
from lnlit.errors import UserError
from lnlit.files import expanded, read_json
from lnlit.models.build import check_spec
from lnlit.models.merging import slerp, weighted_mean, weighted_sum
from lnlit.models.reward_head import RewardHead, save_head
from lnlit.progress import say
from lnlit.specs import ModelSpec

Method = Literal["linear", "slerp", "task_vectors"]
#: Weights whose sum is smaller cannot be divided by it.
_LEAST_SUM = 1e-6
#: One tensor of each model -> the tensor of the result.
Mix = Callable[[Sequence[Tensor]], Tensor]


def merge(
    models: Sequence[str],
    out: str,
    method: Method = "linear",
    weights: Sequence[float] | None = None,
    base: str | None = None,
    last: int | None = None,
    tokenizer: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model whose weights are made of those of several models of one architecture, tensor by tensor.

    At any time one tensor of each model and one shard of the result are in memory. lnlit.json keeps what was merged:
    each model with its fingerprint, its weight and its own provenance. The result is computed in fp32.

    Args:
        models: Model folders, GGUF files or training checkpoints; with `last`, folders of runs.
        out: The model folder to write.
        method: "linear" is the mean by `weights`. "slerp" goes along the arc from the first of two models to the
            second. "task_vectors" adds to `base` what each model has learned since, times its weight (task arithmetic,
            arXiv 2212.04089).
        weights: A number for each model. Linear and slerp divide them by their sum, and take equal ones by default.
            Task vectors are taken as they are: 1 adds all that a model has learned.
        base: The model from which all others were trained, for task vectors.
        last: Merge the newest so many checkpoints of each run instead of models.
        tokenizer: The model whose tokenizer and chat template the result gets; the first one's by default.
        dtype: The dtype of the result; by default each tensor's own in the first model.
        overwrite: Replace a model folder that is there already.
    """
    sources = [*_sources(models, last)]
    shares = _weights(method, sources, weights)
    found = alike([*sources, *_base(method, base)], tokenizer)
    folder = write_merged(found, shares, expanded(out), method, dtype, overwrite)
    tell_readers(folder)
    return folder


@dataclass(frozen=True)
class Alike:
    """Models of one architecture and vocabulary, by name, with the heads of reward models. `tokenizer_from` is what a
    result takes its tokenizer from."""

    names: Sequence[str]
    paths: Sequence[Path]
    spec: ModelSpec
    tokenizer_from: Path | None
    heads: Sequence[RewardHead]


def alike(names: Sequence[str], tokenizer: str | None = None) -> Alike:
    """The models that `merge` is asked for. Raises `UserError` for any that differs in more than its weights."""
    paths = [resolve(name) for name in names]
    places = [path.resolve() for path in paths]
    if twice := next((name for name, place in zip(names, places, strict=True) if places.count(place) > 1), None):
        raise UserError(f"merge: {twice} is there twice, so it would be merged with itself.")
    spec = _same_spec(names, paths)
    tokenizer_from = resolve(tokenizer) if tokenizer is not None else tokenizer_source(paths[0])
    _check_tokenizers(names, paths, tokenizer_from)
    return Alike(names, paths, spec, tokenizer_from, _heads(names, paths, spec.hidden_size))


def write_merged(
    models: Alike, shares: Sequence[float], out: Path, method: Method, dtype: str | None, overwrite: bool
) -> Path:
    """Writes a merged model and returns its folder. A model behind those that have shares is the base."""
    target, sources, base = out.resolve(), models.names[: len(shares)], models.names[len(shares) :]
    check_target(target, overwrite, [*models.paths, *filter(None, [models.tokenizer_from])])
    mix = _mix(method, shares)
    named = ", ".join(f"{share:g} x {source}" for share, source in zip(shares, sources, strict=True))
    say(f"merge: {method}: {named}{''.join(f', on {each}' for each in base)}")
    head = None if not models.heads else mix([each.weight for each in models.heads])
    return save_folder(
        target,
        models.spec,
        _merged(models, mix, dtype, target.name),
        tokenizer_from=models.tokenizer_from,
        provenance=_provenance(method, sources, shares, base),
        overwrite=overwrite,
        add_files=None if head is None else partial(_add_head, head),
    )


# what is asked for


def _sources(models: Sequence[str], last: int | None) -> Iterator[str]:
    """The models by name, or the newest `last` checkpoints of each run."""
    if last is None:
        yield from models
        return
    if last < 1:
        raise UserError(f"merge.last: expected 1 or more, got {last}.")
    for model in models:
        run = expanded(model)
        found = list_checkpoints(checkpoint_folder(run)) or list_checkpoints(run)
        if len(found) < last:
            names = ", ".join(path.name for path in found) or "none"
            raise UserError(
                f"merge.last: {last} checkpoints are asked for, and {model} has {names}. The callback Checkpoint keeps "
                "as many as its `keep` says."
            )
        yield from map(str, found[-last:])


def _weights(method: Method, sources: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    """The weights of the models, which add up to 1 for slerp."""
    least = 1 if method == "task_vectors" else 2
    if len(sources) < least or (method == "slerp" and len(sources) > 2):
        wanted = {"linear": "2 models or more", "slerp": "exactly 2 models", "task_vectors": "a model"}[method]
        raise UserError(f"merge.models: {method} takes {wanted}, got {len(sources)}.")
    if weights is None:
        if method == "task_vectors":
            raise UserError("merge.weights: task vectors need a factor for each model; 1 adds all that it has learned.")
        weights = [1.0] * len(sources)
    if len(weights) != len(sources):
        raise UserError(f"merge.weights: expected one for each of {len(sources)} models, got {len(weights)}.")
    if not all(math.isfinite(weight) for weight in weights):
        raise UserError(f"merge.weights: expected finite numbers, got {list(weights)}.")
    if method == "task_vectors":
        return list(weights)
    if method == "slerp" and min(weights) < 0:
        raise UserError(f"merge.weights: the arc ends at the two models, so 0 or more for slerp; got {list(weights)}.")
    if abs(sum(weights)) < _LEAST_SUM:
        raise UserError(f"merge.weights: their sum is {sum(weights):g}, and they are divided by it.")
    return [weight / sum(weights) for weight in weights] if method == "slerp" else list(weights)


def _base(method: Method, base: str | None) -> list[str]:
    """The base of task vectors, or nothing for other methods."""
    if base is None and method == "task_vectors":
        raise UserError("merge.base: task vectors are what a model has learned since base, so they need one.")
    if base is not None and method != "task_vectors":
        raise UserError(f"merge.base: belongs to method: task_vectors, not to {method}. Leave it out.")
    return [] if base is None else [base]


def _mix(method: Method, shares: Sequence[float]) -> Mix:
    match method:
        case "linear":
            return partial(weighted_mean, weights=shares)
        case "slerp":
            return lambda tensors: slerp(*tensors, t=shares[1])
        case "task_vectors":  # base + sum of w (model - base)
            return partial(weighted_sum, factors=[*shares, 1 - math.fsum(shares)])


# what must be the same


def _same_spec(names: Sequence[str], paths: Sequence[Path]) -> ModelSpec:
    """The spec of all models. Raises `UserError` for another one, by the first slot that differs."""
    specs = [open_checkpoint(path).read_spec(path) for path in paths]
    for name, spec in zip(names[1:], specs[1:], strict=True):
        if difference := _first_difference(spec_as_stored(specs[0]), spec_as_stored(spec)):
            raise UserError(
                f"merge: {name} is another architecture than {names[0]}: {difference}. Only weights of one "
                "architecture can be merged."
            )
    check_spec(specs[0])
    return specs[0]


def _first_difference(ours: ModelSpec, theirs: ModelSpec) -> str:
    slots = zip(ours.parts(), theirs.parts(), strict=False)
    slot = next((f"{place} is {part}, not {mine}" for (place, _, mine), (_, _, part) in slots if mine != part), "")
    if not slot and len(ours.layers) != len(theirs.layers):
        return f"it has {len(theirs.layers)} layers, not {len(ours.layers)}"
    return slot or next(iter(ours.diff(theirs)), "")


def _check_tokenizers(names: Sequence[str], paths: Sequence[Path], chosen: Path | None) -> None:
    """Raises `UserError` if a model has a token at another id than the chosen tokenizer, and says so where chat
    templates differ."""
    if chosen is None:
        return
    ids, template, others = token_ids(chosen), _template(chosen), []
    for name, path in zip(names, paths, strict=True):
        if (theirs := token_ids(path)) and ids and (what := differing(theirs, ids)):
            raise UserError(
                f"merge: the tokenizers of {name} and {chosen} differ: {what.replace(' in it', ' in the other')}. "
                "A mean of rows of different tokens means nothing."
            )
        source = tokenizer_source(path)
        if source is not None and _template(source) != template:
            others.append(name)
    if others:
        say(f"merge: the chat template is that of {chosen}; {', '.join(others)} has another")


def _template(source: Path) -> str | None:
    """The chat template of a model folder as text, or None for other sources and where there is none."""
    if (file := source / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    if not (file := source / "tokenizer_config.json").is_file():
        return None
    template = read_json(file).get("chat_template")
    return None if template is None else json.dumps(template) if not isinstance(template, str) else template


def _heads(names: Sequence[str], paths: Sequence[Path], hidden_size: int) -> list[RewardHead]:
    """The heads of reward models, or none. Raises `UserError` where only some have one."""
    heads = {name: reward_head_of(path, hidden_size) for name, path in zip(names, paths, strict=True)}
    found = [head for head in heads.values() if head is not None]
    if found and len(found) < len(heads):
        without = next(name for name, head in heads.items() if head is None)
        raise UserError(f"merge: {without} is no reward model, and others here are, so there is no head to merge with.")
    return found


def _add_head(weight: Tensor, folder: Path) -> None:
    head = RewardHead(weight.shape[1])
    head.load_state_dict({"weight": weight})
    save_head(head, folder)


# tensor by tensor


def _merged(models: Alike, mix: Mix, dtype: str | None, label: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of the result, in the first model's order. Models in other formats may have another; then
    tensors wait in memory."""
    names = models.names
    first, *others = (open_checkpoint(path).weights(path) for path in models.paths)
    waiting: list[dict[str, Tensor]] = [{} for _ in others]
    for name, tensor in with_progress(first, models.spec, f"merge {label}"):
        beside = [_taken(name, stream, held, of) for stream, held, of in zip(others, waiting, names[1:], strict=True)]
        parts = [tensor, *beside]
        merged = _rounded(name, mix(parts), parts, names, dtype)
        del tensor, beside, parts  # before the next ones are read
        yield name, merged


def _taken(name: str, stream: Iterable[tuple[str, Tensor]], held: dict[str, Tensor], model: str) -> Tensor:
    if name in held:
        return held.pop(name)
    for found, tensor in stream:
        if found == name:
            return tensor
        held[found] = tensor
    raise UserError(f"merge: {model} lacks the tensor {name}.")


def _rounded(name: str, merged: Tensor, parts: Sequence[Tensor], models: Sequence[str], dtype: str | None) -> Tensor:
    """The merged tensor in its dtype. Raises `UserError` for one with NaN or an infinity, naming where it is from."""
    if not bool(merged.isfinite().all()):
        bad = next((model for model, part in zip(models, parts, strict=True) if not bool(part.isfinite().all())), None)
        why = f"as in {bad}, whose weights are damaged" if bad else "as the weights are too large for fp32"
        raise UserError(f"merge: the tensor {name} has a value that is no finite number, {why}.")
    return rounded(name, merged, parts[0].dtype if dtype is None else DTYPES[dtype])


def _provenance(method: Method, sources: Sequence[str], shares: Sequence[float], base: Sequence[str]) -> dict[str, Any]:
    merged = [
        {**descent(source), "fingerprint": fingerprint(source), "weight": share}
        for source, share in zip(sources, shares, strict=True)
    ]
    for each in merged:
        each["model"] = each.pop("parent")
    every = [*base, *sources]
    record = {"stage": "merge", "method": method, "thinking": any(map(knows_thinking, every)), "merged": merged}
    for each in base:
        record |= {"base": model_source(each), "base_fingerprint": fingerprint(each)}
    return {**record, **descent(every[0])}

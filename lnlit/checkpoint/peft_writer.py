"""Writes the adapters of a LoRA run as a PEFT folder, which PEFT and vLLM put on their own class of the base."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.formats import resolve
from lnlit.checkpoint.hf import CONFIG
from lnlit.checkpoint.peft import ADAPTER_WEIGHTS, BASE, base_linears, base_type, is_adapter, leaves, tensor_name
from lnlit.checkpoint.peft_config import ADAPTER_CONFIG, PeftConfig, adapter_config
from lnlit.checkpoint.readers import obstacles
from lnlit.checkpoint.tokenizer import TOKENIZER_FILES, save_tokenizer
from lnlit.end_of_turn import GENERATION_CONFIG
from lnlit.errors import UserError
from lnlit.files import check_output, expanded, replaced_folder, write_json
from lnlit.models.layout import expected_shapes
from lnlit.models.lora import LoRA
from lnlit.specs import ModelSpec

_REPLACED = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin", *TOKENIZER_FILES}
#: (canonical name, A, B) of an adapted weight.
Factors = tuple[str, Tensor, Tensor]


def save_adapter(
    out: str | Path,
    spec: ModelSpec,
    lora: LoRA,
    factors: Iterable[Factors],
    *,
    base: str,
    tokenizer_from: str | Path | None,
    overwrite: bool = False,
) -> Path:
    """Write a PEFT folder, with the tokenizer beside, and return its path. PEFT computes with it what lnlit computes.

    Where transformers' class of the base keeps several linears in one matrix, their adapters become one of a higher
    rank. Everything is written beside `out` and renamed when complete. Raises `UserError` for an `out` that is there
    and no adapter, and as `check_adapter` does.
    """
    out = expanded(out).resolve()
    check_adapter(spec, base)
    check_adapter_target(out, overwrite, [base, *([] if tokenizer_from is None else [tokenizer_from])])
    modules = _by_module(factors, spec, base)
    linears = base_linears(spec, resolve(base))[0]
    chosen = {leaf for leaf in leaves(modules) if all(name in modules for name in linears if _leaf(name) == leaf)}
    found = adapter_config(
        base=base,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=chosen | {module for module in modules if _leaf(module) not in chosen},
        ranks={_leaf(module): len(a) for module, (a, _) in modules.items() if len(a) != lora.rank},
    )
    tensors = {
        tensor_name(module, factor): tensor.clone(memory_format=torch.contiguous_format)  # several may be one tensor
        for module, both in modules.items()
        for factor, tensor in zip("AB", both, strict=True)
    }
    with replaced_folder(out, _REPLACED.__contains__) as folder:
        if tokenizer_from is not None:
            save_tokenizer(resolve(tokenizer_from), folder)
            (folder / GENERATION_CONFIG).unlink(missing_ok=True)  # the base's says how answers are sampled
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt", BASE: fingerprint(base)})
        (folder / ADAPTER_WEIGHTS).chmod(0o644)
        write_json(folder / ADAPTER_CONFIG, found)
        check_adapter_target(out, overwrite)  # another process may have finished meanwhile
    return out


def check_adapter(spec: ModelSpec, base: str) -> None:
    """Raises `UserError` if transformers, into whose modules PEFT puts adapters, has no class for the base."""
    if reasons := obstacles(spec, None, base_type(resolve(base)))["transformers"]:
        raise UserError(
            f"adapter: PEFT puts adapters into transformers' class of the base, and it has none: {'; '.join(reasons)}. "
            "Leave `adapter` out to write the merged model."
        )


def check_adapter_target(out: Path, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raises `UserError` if writing an adapter to `out` would destroy something, including the `inputs`."""
    check_output(out, folder=True, inputs=map(str, inputs))
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{out}: exists already. Choose another folder, or allow overwriting it.")
    if not is_adapter(out):
        raise UserError(f"{out}: exists and is no adapter, so it is not overwritten. Choose another folder.")


def tell_base(folder: Path) -> None:
    """Prints on stderr what an adapter that was written is put on."""
    base = str(PeftConfig.read(folder / ADAPTER_CONFIG).base)
    print(f"PeftModel.from_pretrained(BASE, {str(folder)!r}) puts it on {base}", file=sys.stderr)
    if not (resolve(base) / CONFIG).is_file():
        print(
            f"transformers does not load {base} as it is: `lnlit export {base} BASE` writes it as a folder, to be "
            f"named in {ADAPTER_CONFIG} as base_model_name_or_path",
            file=sys.stderr,
        )


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _by_module(factors: Iterable[Factors], spec: ModelSpec, base: str) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each module of transformers' class that has an adapter."""
    given = {name: (a, b) for name, a, b in factors}
    shapes, found = expected_shapes(spec), {}
    for module, names in base_linears(spec, resolve(base))[1].items():
        if not any(name in given for name in names):
            continue
        parts = [given.pop(name, None) for name in names]
        rows = [shapes[name][0] for name in names]
        found[module] = parts[0] if len(parts) == 1 else _one_of(parts, rows)
    assert not given, f"adapters of {sorted(given)} have no module"
    return found


def _one_of(parts: Sequence[tuple[Tensor, Tensor] | None], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The adapter that computes several, one below the other: each A once, and for each part its B beside zeros."""
    distinct: list[Tensor] = []
    for part in parts:
        if part is not None and not any(torch.equal(part[0], a) for a in distinct):
            distinct.append(part[0])

    def beside(part: tuple[Tensor, Tensor] | None, count: int) -> Tensor:
        zeros = (a.new_zeros(count, len(a)) for a in distinct)
        has = (part is not None and torch.equal(part[0], a) for a in distinct)
        return torch.cat([part[1] if part and own else zero for own, zero in zip(has, zeros, strict=True)], 1)

    return torch.cat(distinct), torch.cat([beside(part, count) for part, count in zip(parts, rows, strict=True)])

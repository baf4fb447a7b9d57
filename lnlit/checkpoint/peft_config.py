"""`adapter_config.json` of PEFT: read with checks, so that nothing that it computes is left out; and written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.schema import is_finite

ADAPTER_CONFIG = "adapter_config.json"
_PLAIN = "lnlit reads LoRA and DoRA of linears."
#: Keys that are read here.
_READ = {
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "use_dora", "bias",
    "init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform", "rank_pattern", "alpha_pattern",
}  # fmt: skip
#: Keys that matter before or while an adapter is trained, or for other kinds of base models.
_WITHOUT_EFFECT = {
    "inference_mode", "revision", "auto_mapping", "peft_version", "lora_dropout", "layers_pattern", "megatron_config",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "runtime_config", "ensure_weight_tying",
}  # fmt: skip
#: Beginnings that leave the base as it is. The others take from the base what they put into the adapter.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """What an adapter_config.json says of an adapter's size, scale and place. A pattern maps a regular expression of
    modules' names to the value that they have instead of the common one."""

    file: Path
    base: str | None
    rank: int
    alpha: float
    rank_stabilised: bool
    has_magnitudes: bool
    targets: str | Collection[str]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    chooses_layers: bool

    @classmethod
    def read(cls, file: Path) -> PeftConfig:
        """Raises `UserError` for any key by which PEFT would compute something else than `W + scale * B A`, or by
        DoRA (arXiv 2402.09353) with rows of given lengths."""
        values = read_json(file, "the configuration of a PEFT adapter")
        _check_kind(values, file)
        rank, alpha = values.get("r", 8), values.get("lora_alpha", 8)
        base = values.get("base_model_name_or_path")
        return cls(
            file=file,
            base=base if isinstance(base, str) and base else None,
            rank=_rank(rank, f"{file}: r"),
            alpha=_alpha(alpha, f"{file}: lora_alpha"),
            rank_stabilised=bool(values.get("use_rslora")),
            has_magnitudes=bool(values.get("use_dora")),
            targets=_targets(values.get("target_modules"), file),
            rank_pattern=_pattern(values, "rank_pattern", _rank, file),
            alpha_pattern=_pattern(values, "alpha_pattern", _alpha, file),
            chooses_layers=bool(values.get("exclude_modules")) or values.get("layers_to_transform") is not None,
        )

    def rank_of(self, module: str) -> int:
        return _value(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The number that `B A` is multiplied by before it is divided by the rank."""
        alpha = _value(self.alpha_pattern, module, self.alpha)
        return alpha * math.sqrt(self.rank_of(module)) if self.rank_stabilised else alpha

    def missing(self, modules: Iterable[str], found: Collection[str]) -> list[str]:
        """A base model's `modules` that have an adapter by the configuration, without those `found`. Nothing is known
        where it leaves some layers out."""
        if self.chooses_layers:
            return []
        return [module for module in modules if module not in found and self._targets(module)]

    def _targets(self, module: str) -> bool:
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, module) is not None
        return any(module == target or module.endswith(f".{target}") for target in self.targets)


def adapter_config(
    *, base: str, rank: int, alpha: float, dropout: float, targets: Iterable[str], ranks: Mapping[str, int]
) -> dict[str, Any]:
    """The content of an adapter_config.json. `ranks` are those of modules, by the last part of their names, that have
    another one than `rank`; their alpha is as many times as large, so that all have one scale."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _shortest(alpha),
        "lora_dropout": dropout,
        "target_modules": sorted(targets),
        "rank_pattern": dict(ranks),
        "alpha_pattern": {name: _shortest(alpha * other / rank) for name, other in ranks.items()},
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _shortest(number: float) -> float:
    """The number as an integer if it is one: that is what PEFT and vLLM expect."""
    return int(number) if number == int(number) else number


def _check_kind(values: Mapping[str, Any], file: Path) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{file}: peft_type: {kind!r} is not read. {_PLAIN}{_merged_by_peft(file)}")
    if (task := values.get("task_type")) not in (None, "CAUSAL_LM"):
        raise UserError(f"{file}: task_type: {task!r} has a head of its own. lnlit reads adapters of CAUSAL_LM.")
    if (bias := values.get("bias", "none")) != "none":
        raise UserError(f"{file}: bias: {bias!r}, so biases of the base differ too. {_PLAIN}{_merged_by_peft(file)}")
    if (beginning := values.get("init_lora_weights", True)) not in _BEGINNINGS:
        raise UserError(
            f"{file}: init_lora_weights: {beginning!r} may have changed the base too, so that the adapter fits no "
            "other. PEFT undoes that: save_pretrained(OUT, path_initial_model_for_weight_conversion=...)."
        )
    for key, value in values.items():
        if key not in _READ | _WITHOUT_EFFECT and value not in (None, False, [], {}, ""):
            raise UserError(f"{file}: {key}: {value!r:.60} is not read. {_PLAIN}{_merged_by_peft(file)}")


def _merged_by_peft(file: Path) -> str:
    return (
        f" PEFT merges others: PeftModel.from_pretrained(BASE, {str(file.parent)!r}).merge_and_unload()"
        ".save_pretrained(OUT)."
    )


def _rank(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where}: expected a positive integer, got {value!r}.")
    return value


def _alpha(value: Any, where: str) -> float:
    if not is_finite(value) or value <= 0:
        raise UserError(f"{where}: expected a positive number, got {value!r}.")
    return float(value)


def _targets(value: Any, file: Path) -> str | list[str]:
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return value
    if isinstance(value, str) and value:
        _check_expression(value, f"{file}: target_modules")
        return value
    raise UserError(f"{file}: target_modules: expected names of modules or a regular expression, got {value!r:.60}.")


def _pattern(values: Mapping[str, Any], key: str, check: Callable[[Any, str], Any], file: Path) -> dict[str, Any]:
    pattern = values.get(key) or {}
    if not isinstance(pattern, dict):
        raise UserError(f"{file}: {key}: expected a mapping from modules to numbers, got {pattern!r:.60}.")
    for name in pattern:
        _check_expression(name, f"{file}: {key}")
    return {name: check(value, f"{file}: {key}: {name}") for name, value in pattern.items()}


def _check_expression(text: str, where: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise UserError(f"{where}: {text!r:.60} is no regular expression: {error}.") from error


def _value(pattern: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """The value of the first expression that matches a module's name from a dot on, as PEFT finds it."""
    return next((value for name, value in pattern.items() if re.match(rf"(.*\.)?({name})$", module)), otherwise)

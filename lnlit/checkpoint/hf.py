"""Reads config.json of Hugging Face's decoders with checks, and writes it. What depends on layers is up to each
format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.schema import is_finite
from lnlit.specs import BlockSpec, ModelSpec, PartSpec, RopeSpec

CONFIG, SPEC_FILE = "config.json", "lnlit.json"
_ROPE_ARGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
#: The defaults of missing keys that all families share.
_DEFAULTS = {
    "hidden_act": "silu",
    "is_causal": True,
    "partial_rotary_factor": 1.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
#: The meaning of keys that are null.
_DERIVED: dict[str, Callable[[Config], int]] = {
    "num_key_value_heads": lambda config: config.integer("num_attention_heads"),
    "head_dim": lambda config: max(config.integer("hidden_size") // config.integer("num_attention_heads"), 1),
}


def model_type(path: Path) -> str | None:
    """The `model_type` of a folder that is not one of lnlit's, else None."""
    if not (path / CONFIG).is_file() or (path / SPEC_FILE).is_file():
        return None
    return read_json(path / CONFIG).get("model_type")


def named_model_type(source: Path) -> str:
    """The `model_type` in a folder's config.json, whoever wrote it; "" where there is none."""
    return str(read_json(source / CONFIG).get("model_type")) if (source / CONFIG).is_file() else ""


class Config:
    """A config.json that is read with checks. Missing keys have the `defaults` of transformers' class."""

    def __init__(self, values: Mapping[str, Any], where: Path, defaults: Mapping[str, Any]) -> None:
        self.values, self.where, self.defaults = values, where, _DEFAULTS | dict(defaults)
        self._refuse_unsupported()

    def integer(self, key: str, least: int = 1) -> int:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            allowed = "a positive integer" if least == 1 else f"an integer from {least} on"
            raise UserError(f"{self.where}: {key}: expected {allowed}, got {value!r}.")
        return value

    def number(self, key: str, positive: bool = True) -> float:
        value = self._get(key)
        if not is_finite(value) or value < 0 or (positive and value == 0):
            allowed = "a positive number" if positive else "a number from 0 on"
            raise UserError(f"{self.where}: {key}: expected {allowed}, got {value!r}.")
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {key}: expected true or false, got {value!r}.")
        return value

    def nullable(self, key: str) -> int | None:
        """A positive integer, or None if the key is null."""
        return None if self.values.get(key, self.defaults.get(key)) is None else self.integer(key)

    def per_layer(self, key: str, allowed: tuple[Any, ...]) -> list[Any] | None:
        """A list with one of `allowed` for each layer, or None if there is none. It may be longer."""
        values, count = self.values.get(key), self.integer("num_hidden_layers")
        if values is None:
            return None
        if not isinstance(values, list) or len(values) < count or any(value not in allowed for value in values):
            names = " or ".join(map(str, allowed))
            raise UserError(f"{self.where}: {key}: expected a list of {count} times {names}, got {values!r:.80}.")
        return values

    def arguments(self, rules: Mapping[str, str]) -> dict[str, Any]:
        """A part's arguments from the keys of this config; those that are false are left out."""
        switches = {key for key, value in self.defaults.items() if isinstance(value, bool)}
        read = {name: self.boolean(key) if key in switches else self.integer(key) for name, key in rules.items()}
        return {name: value for name, value in read.items() if value is not False}

    def spec(self, layers: tuple[BlockSpec, ...]) -> ModelSpec:
        """The spec of the model with these `layers`."""
        return ModelSpec(
            vocab_size=self.integer("vocab_size"),
            hidden_size=self.integer("hidden_size"),
            layers=layers,
            context_length=self.integer("max_position_embeddings"),
            rope=self._rope(),
            norm_eps=self.number("rms_norm_eps", positive=False),
            tie_embeddings=self.boolean("tie_word_embeddings"),
        )

    def rope_parameters(self) -> Mapping[str, Any]:
        """The rope settings in both spellings: `rope_theta` + `rope_scaling`, and transformers 5's
        `rope_parameters`."""
        given = self.values.get("rope_scaling") or self.values.get("rope_parameters") or {}
        if not isinstance(given, Mapping):
            raise UserError(f"{self.where}: the rope parameters must be a mapping, got {given!r}.")
        if kinds := [key for key, value in given.items() if isinstance(value, Mapping)]:
            raise UserError(f"{self.where}: rope parameters of their own for {' and '.join(kinds)} are not supported.")
        return given

    def rotary_share(self) -> float:
        """The fraction of each head that is rotated."""
        share = self.rope_parameters().get("partial_rotary_factor", self._get("partial_rotary_factor"))
        if not is_finite(share) or not 0 < share <= 1:
            raise UserError(f"{self.where}: partial_rotary_factor: expected a number above 0, up to 1, got {share!r}.")
        return share

    def rotates_all(self) -> None:
        """Raises `UserError` if only a part of each head is rotated."""
        if (share := self._get("partial_rotary_factor")) != 1.0:
            raise UserError(f"{self.where}: partial_rotary_factor {share!r} is not supported. Supported: 1.0.")

    def _get(self, key: str) -> Any:
        value = self.values.get(key, self.defaults.get(key))
        if value is None:
            return _DERIVED[key](self) if key in _DERIVED else self.defaults.get(key)
        return value

    def _rope(self) -> RopeSpec:
        given = self.rope_parameters()
        theta = Config({**self.values, **given}, self.where, self.defaults).number("rope_theta")
        rule = given.get("rope_type", given.get("type")) or "default"
        if rule == "default":
            return RopeSpec(theta)
        if not isinstance(rule, str) or rule not in _ROPE_ARGS:
            allowed = ", ".join(["default", *_ROPE_ARGS])
            raise UserError(f"{self.where}: rope type {rule!r} is not supported. Supported: {allowed}.")
        original = "original_max_position_embeddings"
        # transformers 5 believes the one beside the rope parameters first
        beside, context = self.values.get(original), self.integer("max_position_embeddings")
        given = {original: context, **given} | ({} if beside is None else {original: beside})
        args: dict[str, Any] = {key: given.get(key) for key in _ROPE_ARGS[rule]}
        for key, value in args.items():
            if not is_finite(value) or value <= 0:
                raise UserError(f"{self.where}: rope type {rule!r} needs a positive number for {key!r}, got {value!r}.")
        return RopeSpec(theta, PartSpec(rule, args))

    def _refuse_unsupported(self) -> None:
        quantisation = self.values.get("quantization_config")
        if quantisation:
            method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, Mapping) else quantisation
            raise UserError(f"{self.where}: the checkpoint is quantised ({method}). Use the unquantised checkpoint.")
        if (activation := self._get("hidden_act")) not in ("silu", "swish"):
            raise UserError(f"{self.where}: hidden_act {activation!r} is not supported. Supported: silu.")
        if not self.boolean("is_causal"):
            raise UserError(
                f"{self.where}: is_causal false, so tokens see those behind them; lnlit reads decoders only."
            )
        if self.values.get("per_layer_config"):
            raise UserError(f"{self.where}: per_layer_config, which gives layers sizes of their own, is not supported.")


def config_from_spec(spec: ModelSpec) -> dict[str, Any]:
    """The part of a config.json that does not depend on the layers, in a spelling that old and new readers share."""
    config: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": len(spec.layers),
        "hidden_act": "silu",
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.tie_embeddings,
        "use_cache": True,
    }
    if spec.rope.scaling is not None:
        config["rope_scaling"] = {"rope_type": spec.rope.scaling.type, **spec.rope.scaling.args}
    return config

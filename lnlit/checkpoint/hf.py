"""Hugging Face Llama folders (`model_type: llama`): Llama 2 and 3.x, SmolLM2 and their relatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.checkpoint.blocks import SINGLE_LINEAR, read_blocks
from lnlit.checkpoint.safetensors_folder import folder_weights, is_tied
from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.interfaces import CheckpointFormat
from lnlit.models.parts import stored
from lnlit.specs import BlockSpec, ModelSpec, PartSpec, RopeSpec, is_finite

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, SPEC_FILE = "config.json", "lnlit.json"
MODEL_TYPES = ("llama", "nemotron-nas")
_ROPE_ARGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def model_type(path: Path) -> str | None:
    """The `model_type` of a folder that is not one of our own, else None."""
    if not (path / CONFIG).is_file() or (path / SPEC_FILE).is_file():
        return None
    return read_json(path / CONFIG).get("model_type")


class LlamaCheckpoint(CheckpointFormat):
    """`config.json` plus safetensors, single or sharded, tied or untied. With `block_configs` it is a child that
    NVIDIA's Model-Optimizer made, whose layers differ.
    """

    def recognises(self, path: Path) -> bool:
        return model_type(path) == "llama"

    def read_spec(self, path: Path) -> ModelSpec:
        config = Config(read_json(path / CONFIG), path / CONFIG)
        if config.values.get("block_configs"):
            return config.spec(_model_optimizer_blocks(config))
        heads = config.integer("num_attention_heads", 32)
        attention = {
            "num_heads": heads,
            "num_kv_heads": config.integer("num_key_value_heads", heads),
            "head_dim": config.head_dim(heads),
        }
        ffn = {"intermediate_size": config.integer("intermediate_size", 11008)}
        block = BlockSpec(
            PartSpec("gqa", attention | config.bias("attention_bias")),
            PartSpec("swiglu", ffn | config.bias("mlp_bias")),
        )
        return config.spec((block,) * config.integer("num_hidden_layers", 32))

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        yield from folder_weights(path, self.read_spec(path))


def _model_optimizer_blocks(config: Config) -> tuple[BlockSpec, ...]:
    layers = read_blocks(config)
    for index, block in enumerate(layers):
        if SINGLE_LINEAR in (block.attention, block.ffn):
            raise UserError(
                f"{config.where}: block_configs[{index}]: replace_with_linear is not supported in a Llama: "
                "Model-Optimizer keeps the whole part there. A nemotron-nas folder can hold single linears."
            )
    return layers


class Config:
    """A config.json that is read with checks. Absent keys have the defaults of transformers' `LlamaConfig`."""

    def __init__(self, values: Mapping[str, Any], where: Path) -> None:
        self.values, self.where = values, where
        self._refuse_unsupported()

    def integer(self, key: str, default: int) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.where}: {key}: expected a positive integer, got {value!r}.")
        return value

    def number(self, key: str, default: float, positive: bool = True) -> float:
        value = self._get(key, default)
        if not is_finite(value) or value < 0 or (positive and value == 0):
            allowed = "a positive number" if positive else "a number from 0 on"
            raise UserError(f"{self.where}: {key}: expected {allowed}, got {value!r}.")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {key}: expected true or false, got {value!r}.")
        return value

    def head_dim(self, heads: int) -> int:
        return self.integer("head_dim", max(self.integer("hidden_size", 4096) // heads, 1))

    def bias(self, key: str) -> dict[str, bool]:
        """The `bias` argument of a part, given only when there is one."""
        return {"bias": True} if self.boolean(key, False) else {}

    def spec(self, layers: tuple[BlockSpec, ...]) -> ModelSpec:
        """The model around `layers`."""
        return ModelSpec(
            vocab_size=self.integer("vocab_size", 32000),
            hidden_size=self.integer("hidden_size", 4096),
            layers=layers,
            context_length=self.integer("max_position_embeddings", 2048),
            rope=self._rope(),
            norm_eps=self.number("rms_norm_eps", 1e-6, positive=False),
            tie_embeddings=is_tied(self.where.parent, self.boolean("tie_word_embeddings", False)),
        )

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def _rope(self) -> RopeSpec:
        """Both spellings: `rope_theta` + `rope_scaling`, and transformers 5's `rope_parameters`."""
        given = self._get("rope_scaling", None) or self._get("rope_parameters", None) or {}
        if not isinstance(given, Mapping):
            raise UserError(f"{self.where}: the rope parameters must be a mapping, got {given!r}.")
        rope = Config({**self.values, **given}, self.where)
        theta = rope.number("rope_theta", 10_000.0)
        rule = given.get("rope_type", given.get("type")) or "default"
        if rule == "default":
            return RopeSpec(theta)
        if not isinstance(rule, str) or rule not in _ROPE_ARGS:
            allowed = ", ".join(["default", *_ROPE_ARGS])
            raise UserError(f"{self.where}: rope type {rule!r} is not supported. Supported: {allowed}.")
        context = {"original_max_position_embeddings": self.integer("max_position_embeddings", 2048)}
        args = {key: given.get(key, context.get(key)) for key in _ROPE_ARGS[rule]}
        for key, value in args.items():
            if not is_finite(value) or value <= 0:
                raise UserError(f"{self.where}: rope type {rule!r} needs a positive number for {key!r}, got {value!r}.")
        return RopeSpec(theta, PartSpec(rule, args))

    def _refuse_unsupported(self) -> None:
        quantisation = self.values.get("quantization_config")
        if quantisation:
            method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, Mapping) else quantisation
            raise UserError(f"{self.where}: the checkpoint is quantised ({method}). Use the unquantised checkpoint.")
        if (activation := self._get("hidden_act", "silu")) not in ("silu", "swish"):
            raise UserError(f"{self.where}: hidden_act {activation!r} is not supported. Supported: silu.")
        if not self.boolean("is_causal", True):
            raise UserError(
                f"{self.where}: is_causal false, so tokens see those behind them; lnlit reads decoders only."
            )
        if self.values.get("per_layer_config"):
            raise UserError(f"{self.where}: per_layer_config, which gives layers sizes of their own, is not supported.")
        if (share := self._get("partial_rotary_factor", 1.0)) != 1.0:
            raise UserError(f"{self.where}: partial_rotary_factor {share!r} is not supported. Supported: 1.0.")


def config_from_spec(spec: ModelSpec) -> dict[str, Any]:
    """The part of a config.json that does not depend on the layers, in the spelling that old and new readers share."""
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


def llama_config(spec: ModelSpec) -> dict[str, Any] | None:
    """The stock `LlamaForCausalLM` config of a homogeneous spec, or None when that class cannot express it."""
    blocks = set(stored(spec).layers)
    if len(blocks) != 1:
        return None
    attention, ffn = (block := blocks.pop()).attention, block.ffn
    if attention.type != "gqa" or ffn.type != "swiglu":
        return None
    if spec.hidden_size % attention.args["num_heads"]:  # LlamaConfig refuses it, whatever head_dim says
        return None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config_from_spec(spec),
        "intermediate_size": ffn.args["intermediate_size"],
        "num_attention_heads": attention.args["num_heads"],
        "num_key_value_heads": attention.args["num_kv_heads"],
        "head_dim": attention.args["head_dim"],
        "attention_bias": attention.args.get("bias", False),
        "mlp_bias": ffn.args.get("bias", False),
    }

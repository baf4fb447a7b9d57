"""`block_configs` of heterogeneous config.json files, read in every spelling and written in NVIDIA's.

NVIDIA's releases give query heads per KV head (`n_heads_in_group`) and an FFN's width as a multiplier (`ffn_mult`),
null if a slot has neither. Model-Optimizer and earlier versions of lnlit use `num_key_value_heads` and
`intermediate_size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lnlit.errors import UserError
from lnlit.specs import NOOP, BlockSpec, PartSpec

if TYPE_CHECKING:
    from lnlit.checkpoint.hf import Config

SINGLE_LINEAR = PartSpec("single_linear")
WIDTH_MULTIPLE = 256
"""A width that is said as a multiplier is rounded up to a multiple of this by everybody who reads it."""
_MULTIPLIER_DECIMALS = 6
_HEAD_KEYS = ("n_heads_in_group", "num_key_value_heads")
_WIDTH_KEYS = ("ffn_mult", "intermediate_size")
_STUB_KEYS = ("no_op", "replace_with_linear")
#: Keys that Model-Optimizer uses only to estimate costs.
_WITHOUT_EFFECT = {"weights_precision": "bf16"}


def read_blocks(config: Config) -> tuple[BlockSpec, ...]:
    """One block per layer. Raises `UserError` naming the first setting that is not understood."""
    blocks = config.values.get("block_configs")
    count = config.integer("num_hidden_layers")
    if not isinstance(blocks, list) or len(blocks) != count:
        got = f"{len(blocks)} entries" if isinstance(blocks, list) else repr(blocks)
        raise UserError(f"{config.where}: block_configs must list {count} blocks (num_hidden_layers), got {got}.")
    return tuple(_block(config, block, index) for index, block in enumerate(blocks))


def _block(config: Config, block: Any, index: int) -> BlockSpec:
    where = f"{config.where}: block_configs[{index}]"
    if not isinstance(block, Mapping):
        raise UserError(f"{where}: expected a mapping with 'attention' and 'ffn', got {block!r}.")
    _refuse_others(where, block, ("attention", "ffn"))
    attention = _Slot(block.get("attention"), f"{where}.attention", _HEAD_KEYS)
    ffn = _Slot(block.get("ffn"), f"{where}.ffn", _WIDTH_KEYS)
    return BlockSpec(
        attention.stub or PartSpec("gqa", _attention_args(config, attention)),
        ffn.stub
        or PartSpec("swiglu", {"intermediate_size": _width(config, ffn), **config.arguments({"bias": "mlp_bias"})}),
    )


def _refuse_others(where: str, values: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for key, value in values.items():
        if key not in allowed and value not in (None, False, _WITHOUT_EFFECT.get(key)):
            raise UserError(f"{where}: {key}={value!r} is not supported; only {', '.join(allowed)} may be set.")


class _Slot:
    """One slot of a block config. `stub` is its part when it is removed or replaced, else None."""

    def __init__(self, values: Any, where: str, size_keys: tuple[str, ...]) -> None:
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: expected a mapping, got {values!r}.")
        _refuse_others(where, values, (*size_keys, *_STUB_KEYS))
        self.where = where
        self.sizes = {key: values[key] for key in size_keys if values.get(key) is not None}
        removed, linear = (bool(values.get(key)) for key in _STUB_KEYS)
        if removed and linear:
            raise UserError(f"{where}: no_op and replace_with_linear exclude each other, both are set.")
        self.stub = NOOP if removed else SINGLE_LINEAR if linear else None
        if self.stub is None and len(self.sizes) != 1:
            raise UserError(f"{where}: expected one of {', '.join(size_keys)}, got {self.sizes or 'none'}.")

    def size(self) -> tuple[str, float]:
        (key, value), *_ = self.sizes.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise UserError(f"{self.where}.{key}: expected a positive number, got {value!r}.")
        return key, value


def _attention_args(config: Config, slot: _Slot) -> dict[str, Any]:
    heads = config.integer("num_attention_heads")
    key, size = slot.size()
    if size != int(size) or heads % int(size):
        raise UserError(f"{slot.where}.{key}: {size} does not divide num_attention_heads ({heads}).")
    kv_heads = heads // int(size) if key == "n_heads_in_group" else int(size)
    shared = config.arguments({"head_dim": "head_dim", "bias": "attention_bias"})
    return {"num_heads": heads, "num_kv_heads": kv_heads, **shared}


def _width(config: Config, slot: _Slot) -> int:
    key, size = slot.size()
    hidden = config.integer("hidden_size")
    width = width_of_multiplier(size, hidden) if key == "ffn_mult" else int(size)
    if width == 0 or (key == "intermediate_size" and width != size):
        raise UserError(f"{slot.where}.{key}: {size} is no FFN width; it must be a whole number above 0.")
    return width


def width_of_multiplier(multiplier: float, hidden_size: int) -> int:
    """The FFN width of a multiplier, by the rule in NVIDIA's code: the multiplier rounded to six decimals, times two
    thirds of the hidden size, rounded down, then rounded up to a multiple of 256."""
    width = int(2 * round(multiplier, _MULTIPLIER_DECIMALS) * hidden_size / 3)
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def multiplier_of_width(width: int, hidden_size: int) -> float | None:
    """The multiplier that every reader converts to `width`. None if there is none, because it is not a multiple of
    256."""
    multiplier = round(3 * width / (2 * hidden_size), _MULTIPLIER_DECIMALS)
    return multiplier if width_of_multiplier(multiplier, hidden_size) == width else None


def block_config(block: BlockSpec, heads: int, hidden_size: int) -> dict[str, Any]:
    """One entry of `block_configs`. A width without a multiplier is written as `intermediate_size`, and `ffn_mult` is
    left out: readers that know only the latter then stop, while null would mean that there is no FFN."""
    attention, ffn = _stub_keys(block.attention), _stub_keys(block.ffn)
    group = heads // block.attention.args["num_kv_heads"] if block.attention.type == "gqa" else None
    width = block.ffn.args["intermediate_size"] if block.ffn.type == "swiglu" else None
    multiplier = None if width is None else multiplier_of_width(width, hidden_size)
    size = {"ffn_mult": multiplier} if width is None or multiplier is not None else {"intermediate_size": width}
    return {"attention": {"n_heads_in_group": group, **attention}, "ffn": {**size, **ffn}}


def _stub_keys(part: PartSpec) -> dict[str, Any]:
    return {"no_op": part == NOOP, "replace_with_linear": part == SINGLE_LINEAR}

"""`layer_types`: which layers attend to a window of tokens only, as written by Qwen, SmolLM3 and some Mistrals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.checkpoint.hf import Config
from lnlit.errors import UserError

_WHOLE, _WINDOW = "full_attention", "sliding_attention"


def read_window(config: Config, index: int, by_itself: bool, is_on: bool) -> dict[str, int]:
    """The `window` argument of one layer. `by_itself` says whether the layer has a window if there are no
    `layer_types`, and `is_on` whether the model has windows at all. Raises `UserError` if the model has none but the
    layer asks for one: transformers then fails, or computes with a window in some kernels and without in others."""
    types = config.per_layer("layer_types", (_WHOLE, _WINDOW))
    size = config.nullable("sliding_window") if is_on else None
    if size is None and types is not None and types[index] == _WINDOW:
        off = "sliding_window is null" if is_on else "use_sliding_window is false"
        raise UserError(f"{config.where}: layer_types[{index}] is {_WINDOW}, but {off}. Change one of them.")
    has_one = by_itself if types is None else types[index] == _WINDOW
    return {"window": size} if has_one and size is not None else {}


def window_keys(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The config keys for these layers' windows, which must all have the same size."""
    windows = [args.get("window") for args in layers]
    size = next((window for window in windows if window), None)
    return {
        "use_sliding_window": size is not None,
        "sliding_window": size,
        "layer_types": [_WHOLE if window is None else _WINDOW for window in windows],
    }

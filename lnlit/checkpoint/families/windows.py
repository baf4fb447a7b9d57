"""`layer_types`: which layers see a window of tokens only. Qwen and SmolLM3 say it so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.checkpoint.hf import Config

_WHOLE, _WINDOW = "full_attention", "sliding_attention"


def read_window(config: Config, index: int, by_itself: bool) -> dict[str, int]:
    """The `window` argument of one layer; `by_itself` is whether it has one where no `layer_types` are given."""
    types = config.per_layer("layer_types", (_WHOLE, _WINDOW))
    has_one = by_itself if types is None else types[index] == _WINDOW
    size = config.nullable("sliding_window") if config.boolean("use_sliding_window") else None
    return {"window": size} if has_one and size is not None else {}


def window_keys(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys of these layers' windows, of which there can be one size."""
    windows = [args.get("window") for args in layers]
    size = next((window for window in windows if window), None)
    return {
        "use_sliding_window": size is not None,
        "sliding_window": size,
        "layer_types": [_WHOLE if window is None else _WINDOW for window in windows],
    }

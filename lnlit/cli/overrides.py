"""A list that is given again replaces the list before, whole."""

from __future__ import annotations

from typing import Any

import jsonargparse._typehints as typehints

_native_adapt = typehints.adapt_typehints


def install() -> None:
    """Keep jsonargparse from completing the items of a list with the keys of another.

    It does so with an earlier list of the same length (of a file before, or of a default), item by item: a target
    `{cost: latency_s, max: 0.45}` would inherit `of_parent: true` from what it replaces. jsonargparse has no setting
    for it; the one function replaced here is called for YAML and command line alike. What changes an item by design,
    `--key+ value` and `--key.of_last value`, still does.
    """
    typehints.adapt_typehints = _adapt


def _adapt(val: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(val, list) and not kwargs.get("append"):
        kwargs["prev_val"] = None
    return _native_adapt(val, typehint, *args, **kwargs)

"""What all contracts say: a promise is kept, or an AssertionError names the part and the promise."""

from __future__ import annotations

import math
import pickle
from typing import Any


def expect(condition: bool, label: str, promise: str) -> None:
    """Raises AssertionError with the label of a part and the promise that it breaks, unless the condition holds."""
    if not condition:
        raise AssertionError(f"{label}: {promise}")


def copied(thing: Any, label: str) -> Any:
    """The thing as another process gets it: workers, ranks and readers of data are sent their parts."""
    try:
        return pickle.loads(pickle.dumps(thing))  # noqa: S301 - bytes made one call earlier
    except Exception as error:
        raise AssertionError(f"{label}: cannot be pickled, as other processes need: {error}") from error


def is_number(value: object) -> bool:
    """True for a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)

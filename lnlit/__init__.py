"""lnlit compresses and post-trains Llama-family models on PyTorch Lightning.

Importing this package imports nothing heavy. Names for notebooks are offered here and imported when first used: `from
lnlit import SFT, GRPO, ChatData, fit, trainer`. `dir(lnlit)` lists them, and `__init__.pyi`, which type checkers read
too, says where each one lives.
"""

import importlib
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    __version__ = version("lnlit")
except PackageNotFoundError:  # a source tree on PYTHONPATH that was never installed
    __version__ = "0+unknown"


@cache
def _offered() -> dict[str, tuple[str, str]]:
    """Maps each offered name to (module, name in that module)."""
    table = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    return {name: (home, there) for home, there, name in re.findall(r"^from (\S+) import (\w+) as (\w+)$", table, re.M)}


def __getattr__(name: str) -> Any:
    if name not in _offered():
        from lnlit.errors import did_you_mean

        hint = did_you_mean(name, _offered())
        raise AttributeError(f"module 'lnlit' has no attribute {name!r}.{hint} dir(lnlit) lists what it offers")
    home, there = _offered()[name]
    globals()[name] = found = getattr(importlib.import_module(home), there)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_offered()])

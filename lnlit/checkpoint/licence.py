"""The licence of a model, as far as the place that it comes from says."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import yaml

from lnlit.checkpoint.formats import PYPI, resolve

#: Files that hold the text of a licence, whose first line names it.
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
CARD = "README.md"


def licence_of(source: str) -> str | None:
    """What a model card, the package or a licence's first line says, or None if nothing does."""
    if source.startswith(PYPI):
        return _of_distribution(source.removeprefix(PYPI))
    path = resolve(source)
    folder = path if path.is_dir() else path.parent
    named = _of_card(folder / CARD)
    if named or path.is_file():  # beside a single file, other files' licences may lie
        return named
    lines = (_first_line(folder / name) for name in _FILES)
    return next((line for line in lines if line), None)


def _of_distribution(name: str) -> str | None:
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return None
    said = (about[key] for key in ("License-Expression", "License") if key in about)
    return next((licence for licence in said if licence), None)


def _of_card(file: Path) -> str | None:
    """The `license` in the YAML at the top of a model card."""
    try:
        head = file.read_text(encoding="utf-8").split("---")
        about = yaml.safe_load(head[1]) if len(head) > 2 and not head[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    named = about.get("license_name") or about.get("license") if isinstance(about, dict) else None
    return named if isinstance(named, str) else None


def _first_line(file: Path) -> str | None:
    try:
        return next((line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()), None)
    except (OSError, UnicodeDecodeError):
        return None

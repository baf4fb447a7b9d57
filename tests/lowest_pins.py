"""Prints the lowest version that pyproject.toml allows of each requirement, as constraints for pip.

python tests/lowest_pins.py [NAME=VERSION ...]      a NAME's own version instead, such as torch=2.13.0
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[\w,]+\])?\s*(?:==|>=)\s*([\w.]+)")


def lowest(extras: tuple[str, ...] = ("quickstart", "rl")) -> dict[str, str]:
    """Name -> version of every requirement of a user that states one; what tests are run with is newer."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [*project["dependencies"], *(item for extra in extras for item in project["optional-dependencies"][extra])]
    return {found[1]: found[2] for item in stated if (found := _REQUIREMENT.match(item))}


if __name__ == "__main__":
    chosen = dict(argument.split("=", 1) for argument in sys.argv[1:])
    for name, version in {**lowest(), **chosen}.items():
        print(f"{name}=={version}")

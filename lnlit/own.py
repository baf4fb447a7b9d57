"""Parts in a user's own files: `my_rewards.py:polite` names one without a package.

Such a file is imported as the module `lnlit.own.my_rewards_<its path in hexadecimal>`. Any process can import it by
that name alone, so reward workers, ranks and data workers need no further information. A file is read only when it is
named.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from lnlit.errors import UserError, did_you_mean
from lnlit.files import expanded

_FILE = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
#: Makes modules below this one possible; `_Finder` finds them.
__path__: list[str] = []
#: Path of a class -> how its user named it.
_names: dict[str, str] = {}
#: Module -> the source that it was made of.
_sources: dict[str, bytes] = {}
#: Where such files lie. They may import what lies beside them.
_folders: list[Path] = []


def split(name: object) -> tuple[Path, str] | None:
    """(file, name in it) for a text of the form `file.py:name`; None for any other text."""
    found = _FILE.fullmatch(name) if isinstance(name, str) else None
    return (expanded(found[1]), found[2]) if found else None


def whole(file: Path) -> Path:
    """The absolute path without `..`. Symbolic links are kept, because the file may import what lies beside the
    link."""
    return Path(os.path.normpath(file.absolute()))


def load(file: Path, name: str) -> Any:
    """The object called `name` in a file. A file that has changed since it was last loaded is read again.

    Raises `UserError` if the file does not exist, if importing it fails (with the line number), or if it has no such
    name.
    """
    path = whole(file)
    if not path.is_file():
        raise UserError(f"there is no file {str(file)!r}. A path is relative to the YAML file that names it.")
    module = _module(path)
    if _sources.get(module, source := path.read_bytes()) != source:
        sys.modules.pop(module, None)
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(said(error, path.name)) from error
    _sources[module] = source
    if not hasattr(found, name):
        there = [name for name, value in vars(found).items() if getattr(value, "__module__", None) == module]
        raise UserError(
            f"{file.name} has no {name!r}.{did_you_mean(name, there)} It has: {', '.join(there) or 'none'}."
        )
    return getattr(found, name)


def named(cls: type, name: str) -> str:
    """The import path of `cls`. The name that the user wrote is remembered for `restored`."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__.startswith(f"{__name__}"):
        _names[path] = name
    return path


def restored(text: str) -> str:
    """The text with import paths of classes replaced by the names that users wrote."""
    for path in sorted(_names, key=len, reverse=True):
        text = text.replace(path, _names[path])
    return text


def kept(cls: type, maker: Any) -> type:
    """Makes a class that was created from the function `maker` importable, and returns it."""
    cls.__module__ = __name__
    cls.__qualname__ = f"{maker.__name__}_{maker.__module__.encode().hex()}"
    setattr(sys.modules[__name__], cls.__qualname__, cls)
    return cls


def anchored(tree: Any, folder: Path) -> Any:
    """The configuration with every relative `file.py:name` made absolute. Paths are relative to `folder`."""
    if isinstance(tree, dict):
        return {key: anchored(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [anchored(value, folder) for value in tree]
    found = split(tree)
    return f"{whole(folder / found[0])}:{found[1]}" if found else tree


def place(error: BaseException) -> str:
    """`"my_rewards.py:7: "` if the error was raised in a user's own file or in one that it imports from the same
    folder; otherwise an empty string."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    mine = [f"{Path(file).name}:{line}: " for file, line in lines if Path(file).parent in _folders]
    return mine[-1] if mine else ""


def said(error: BaseException, otherwise: str) -> str:
    """The error as one line, prefixed by its place in a user's own file, or else by `otherwise`."""
    what = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{place(error) or f'{otherwise}: '}{type(error).__name__}: {what}".removesuffix(": ")


def files(file: Path) -> list[Path]:
    """The file and all files in its folder that it imports, directly or indirectly."""
    found: dict[Path, None] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path.is_file() and path not in found:
            found[path] = None
            waiting += [path.parent / f"{name}.py" for name in _imported(path)]
    return list(found)


def _imported(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _module(file: Path) -> str:
    readable = re.sub(r"\W", "_", file.stem)
    return f"{__name__}.{readable}_{str(file).encode().hex()}"


def _file(module: str) -> Path:
    return Path(bytes.fromhex(module.rpartition("_")[2]).decode())


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        file = _file(fullname)
        if not file.is_file():
            raise ImportError(f"there is no file {str(file)!r}")
        if file.parent not in _folders:
            _folders.append(file.parent)
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))  # last, so that it hides nothing
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(_Finder())

"""Parts in a user's own files: `my_rewards.py:polite` names one without a package.

Such a file is imported as the module `lnlit.own.my_rewards_<its path in hexadecimal>`. Any process can import it by
that name alone, so reward workers, ranks and data workers need no further information. A file is read only when it is
named.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

from lnlit.errors import UserError, did_you_mean
from lnlit.files import expanded

_FILE = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
#: Makes modules below this one possible; `_Finder` finds them.
__path__: list[str] = []
#: Maps the path of a class to the name that the user wrote.
_names: dict[str, str] = {}
#: Module -> the files that it was made of, with their content.
_sources: dict[str, dict[Path, bytes]] = {}
#: The folders of such files. They may import other files from their own folder.
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
        raise UserError(
            f"there is no file {str(file)!r}. A path is relative to the YAML file that names it, or on the command "
            "line to the current folder."
        )
    module, sources = module_of(path), {each: each.read_bytes() for each in files(path)}
    if _sources.get(module, sources) != sources:
        _forget({*_sources[module], *sources})
    _open(path.parent)
    _check_beside(path, sources)
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(said(error, path.name)) from error
    _sources[module] = sources
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


def kept(cls: type, module: str) -> type:
    """Makes `cls` importable from this module by a name of its own, and returns it. It was created at run time from
    something in `module` that has the same name, such as a function."""
    cls.__module__ = __name__
    cls.__qualname__ = f"{cls.__name__}_{module.encode().hex()}"
    setattr(sys.modules[__name__], cls.__qualname__, cls)
    return cls


def check_class(cls: type, name: str, bases: tuple[type, ...]) -> None:
    """Raises `UserError` for a class that no other process could import, or of which a method cannot be called as the
    interfaces among `bases` say that it is.
    """
    if "<locals>" in cls.__qualname__:
        raise UserError(f"{name!r} is made inside a function, where no other process finds it. Define it outside.")
    for base in bases:
        methods = vars(base) if base.__module__.startswith("lnlit.interfaces.") else {}
        for method, promised in methods.items():
            mine = inspect.getattr_static(cls, method)
            if method.startswith("_") or not inspect.isfunction(promised) or not inspect.isfunction(mine):
                continue
            try:
                _check_call(inspect.signature(mine), inspect.signature(promised).parameters.values())
            except TypeError as error:
                raise UserError(
                    f"{name!r}: {cls.__name__}.{method}{inspect.signature(mine)} cannot be called as "
                    f"{base.__name__}.{method}{inspect.signature(promised)} is: {error}."
                ) from error


def _check_call(mine: inspect.Signature, promised: Collection[inspect.Parameter]) -> None:
    """Raises `TypeError` unless a function with the signature `mine` can be called with all `promised` parameters, and
    also with only those of them that have no default."""
    for given in (promised, [each for each in promised if each.default is each.empty]):
        keywords = {each.name: None for each in given if each.kind is each.KEYWORD_ONLY}
        mine.bind(*[None] * (len(given) - len(keywords)), **keywords)


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
            for name in set(_imported(path)) - {"lnlit"}:
                waiting += [path.parent / f"{name}.py", *sorted((path.parent / name).rglob("*.py"))]
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


def module_of(file: Path) -> str:
    """The name that a file is imported by."""
    path = whole(file)
    readable = re.sub(r"\W", "_", path.stem)
    return f"{__name__}.{readable}_{str(path).encode().hex()}"


def _forget(sources: Collection[Path]) -> None:
    """Have modules that were made of one of these files made anew when they are imported next."""
    for name, module in list(sys.modules.items()):
        if (file := getattr(module, "__file__", None)) and Path(file) in sources:
            del sys.modules[name]


def _open(folder: Path) -> None:
    """Let files of a folder import what lies beside them."""
    if folder not in _folders:
        _folders.append(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it hides nothing


def _check_beside(file: Path, sources: Iterable[Path]) -> None:
    """Raises `UserError` where an import of what lies beside a file would find another module of the name. A module of
    Python's own is what is meant.
    """
    for beside in {file.parent / path.relative_to(file.parent).parts[0] for path in sources} - {file}:
        found = None if beside.stem in sys.stdlib_module_names else importlib.util.find_spec(beside.stem)
        places = [found.origin, *(found.submodule_search_locations or ())] if found else [str(beside)]
        if str(beside) not in places:
            raise UserError(
                f"{file.name} imports {beside.stem!r}, which is {places[0] or places[1]} here and not {beside}. Rename "
                "the latter."
            )


def _file(module: str) -> Path | None:
    try:
        path = Path(bytes.fromhex(module.rpartition("_")[2]).decode())
    except ValueError:
        return None
    return path if path.is_absolute() else None


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return _beside(PathFinder.find_spec(fullname, path)) if _folders else None
        file = _file(fullname)
        if file is None:
            beside = fullname.removeprefix(f"{__name__}.")
            raise ImportError(f"a file of one's own is in no package: write `{beside}` without a dot before it")
        if not file.is_file():
            raise ImportError(f"there is no file {str(file)!r}")
        _open(file.parent)
        return importlib.util.spec_from_file_location(fullname, file, loader=_Compiled(fullname, str(file)))


class _Compiled(SourceFileLoader):
    """Compiles the source each time. Python's bytecode would be written beside the user's file, and taken for that of a
    file of the same length which has changed within a second.
    """

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _beside(spec: ModuleSpec | None) -> ModuleSpec | None:
    """What Python would import, if it lies in a folder of a user's own; otherwise None."""
    if spec is None or type(spec.loader) is not SourceFileLoader or not spec.origin:
        return None
    if not any(Path(spec.origin).is_relative_to(folder) for folder in _folders):
        return None
    spec.loader = _Compiled(spec.name, spec.origin)
    return spec


# before Python's own, so that what lies beside such a file is compiled too, and after those of what is built in
sys.meta_path.insert(sys.meta_path.index(PathFinder), _Finder())

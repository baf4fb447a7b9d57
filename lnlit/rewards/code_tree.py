"""What a row's tests say about the candidate before they are run: the names that must be its own."""

from __future__ import annotations

import ast
import builtins
import datetime
import threading
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

#: Attributes of plain values. Tests that use no others may be about a function's value.
_PLAIN = {
    name
    for kind in (str, bytes, int, complex, list, tuple, dict, set, deque, Fraction, datetime.datetime)
    for name in dir(kind)
}

#: Methods that change the container they are called on.
_IN_PLACE = {
    "append", "appendleft", "add", "extend", "insert", "pop", "popleft", "popitem", "remove", "discard", "clear",
    "update", "sort", "reverse", "rotate", "setdefault",
}  # fmt: skip
#: Functions that inspect an object's class or source.
_INSIDE = {
    "inspect.signature", "inspect.getsource", "inspect.isgeneratorfunction", "inspect.isfunction", "dataclasses.asdict",
    "dataclasses.astuple", "dataclasses.fields", "dataclasses.replace", "dataclasses.is_dataclass",
    "typing.get_type_hints",
}  # fmt: skip

#: The module that tests may import the candidate from.
SOLUTION = "solution"

_PARSING = threading.Lock()


def parse(text: str) -> ast.Module:
    """A program's syntax tree. It is guarded by a lock, because before CPython's fix of issue 106905 two threads that
    parse at once share a recursion counter and fail with a SystemError."""
    with _PARSING:
        return ast.parse(text)


def unknown_names(tree: ast.AST, with_builtins: bool = False) -> set[str]:
    """The names that are read and are not builtins of Python; with `with_builtins`, these too."""
    used = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    return {name for name in used if with_builtins or not hasattr(builtins, name)}


def own_names(tree: ast.AST) -> set[str]:
    """The names that a program defines, including its imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
    return found


def exceptions(tree: ast.AST) -> set[str]:
    """The names that are used as classes of exceptions: in `except`, or as what should be raised. Not those that are
    imported from elsewhere than `SOLUTION`."""
    found: set[str] = set()
    elsewhere: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module != SOLUTION:
            elsewhere |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.ExceptHandler) and node.type:
            found |= _names_of(node.type)
        elif isinstance(node, ast.Call) and _called(node.func) in ("assertRaises", "assertRaisesRegex", "suppress"):
            found |= set().union(*map(_names_of, node.args[:1]))
        elif isinstance(node, ast.Raise) and node.exc:
            found |= _names_of(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
    return found - elsewhere


def tested_classes(tree: ast.AST) -> set[str]:
    """The names that are used as classes whose objects are tested: for attributes that no plain value has, for an
    operator between two of them, or for being an instance of the class."""
    held: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                held.setdefault(_called(target), set()).update(_made(node.value))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in _PLAIN:
            found |= _made(node.value) | held.get(_called(node.value), set())
        elif isinstance(node, ast.Compare):
            found |= _made(node.left) & set().union(*map(_made, node.comparators))
        elif isinstance(node, ast.Call) and _called(node.func) in ("isinstance", "assertIsInstance"):
            found |= set().union(*map(_names_of, node.args[1:]))
    return found - {""}


def beyond_reach(tree: ast.AST, preamble: ast.AST) -> list[str]:
    """What tests do to an object of the candidate's that cannot be done from another process: change what it holds in
    place (`s.xs.append(1)`), or ask what it is made of (`inspect.signature(f)`). What the tests or their preamble
    define is their own, what they import from `SOLUTION` is the candidate's."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == SOLUTION
        for alias in node.names
    }
    own = (own_names(tree) | own_names(preamble)) - imported
    theirs: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(not hasattr(builtins, name) for name in _made(node.value) - own):
            theirs |= {_called(target) for target in node.targets}
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in _IN_PLACE and isinstance(node.func.value, ast.Attribute):
                found += [ast.unparse(node.func)] if _root(node.func.value) in theirs else []
            elif f"{_called(node.func.value)}.{node.func.attr}" in _INSIDE:
                found.append(ast.unparse(node.func))
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            held = isinstance(node.value, ast.Attribute) and _root(node.value) in theirs
            found += [ast.unparse(node)] if held else []
    return found


def _root(node: ast.AST) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return _called(node)


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


def patched(tree: ast.AST) -> set[str]:
    """The names that are replaced temporarily, as by `unittest.mock.patch`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node.func) == "patch"]
    first = [arg.value for call in calls for arg in call.args[:1] if isinstance(arg, ast.Constant)]
    return {name for name in first if isinstance(name, str)}


def _called(node: ast.AST) -> str:
    """The last part of a dotted name, or "" for anything else."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _names_of(node: ast.AST) -> set[str]:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return {part.id for part in parts if isinstance(part, ast.Name)}


def _made(node: ast.AST) -> set[str]:
    """The names that are called to produce a value or one of its operands."""
    if isinstance(node, ast.BinOp):
        return _made(node.left) | _made(node.right)
    return {node.func.id} if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else set()

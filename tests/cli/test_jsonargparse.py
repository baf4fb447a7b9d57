"""What lnlit uses of jsonargparse beyond its public interface is what stands here, and not more."""

from __future__ import annotations

import ast
from pathlib import Path

import lnlit

#: Private name -> what for. There is no setting for the three functions, which are replaced, and no other way to learn
#: what type an argument has. `_actions` is argparse's own list of a parser's arguments.
USED = {
    "adapt_typehints": "a list that is given again, and null",
    "raise_union_unexpected_value": "what a class says of its arguments where other types are allowed too",
    "resolve_class_path_by_name": "names of the registry and files of one's own",
    "_typehint": "what was expected, in an error's words",
    "_actions": "which keys there are",
}


def used(file: Path) -> set[str]:
    """Names from jsonargparse's private modules, and private attributes of what it makes."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found, modules = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jsonargparse._"):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "jsonargparse":
            found |= {alias.name for alias in node.names if alias.name.startswith("_")}
        elif isinstance(node, ast.Import):
            modules |= {alias.asname for alias in node.names if alias.name.startswith("jsonargparse._")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_module = isinstance(node.value, ast.Name) and node.value.id in modules
            of_object = isinstance(node.value, ast.Name) and node.value.id in ("parser", "action", "namespace")
            if of_module or (of_object and node.attr.startswith("_")):
                found.add(node.attr)
    return found


def test_the_private_names_are_those_that_nothing_public_replaces():
    home = Path(lnlit.__file__).parent
    by_file = {str(file.relative_to(home)): used(file) for file in home.rglob("*.py")}
    assert set().union(*by_file.values()) == set(USED), {file: names for file, names in by_file.items() if names}

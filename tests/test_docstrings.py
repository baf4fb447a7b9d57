"""Docstrings are sentences that stand on their own: read aloud without their code, they say what they are about."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = sorted(
    path for root in ("lnlit", "plugins") for path in (ROOT / root).rglob("*.py") if "build" not in path.parts
)
#: Words that lean on something said before. "Of all ranks." is a fragment; "The losses of all ranks." is not.
FRAGMENTS = {
    "beside", "his", "it", "its", "likewise", "of", "such", "that", "their", "they", "those", "where", "who", "whom",
    "whose",
}  # fmt: skip
#: Entries may begin with a name that is written in lower case.
LOWER_CASE = re.compile(r"`|torch|vLLM|lnlit|\w+\(")


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text


def entries(text: str) -> Iterator[tuple[str, str]]:
    """(name, description) of each argument that a docstring describes."""
    section = re.search(r"^Args:\n(.*?)(?=\n\S|\Z)", text, re.M | re.S)
    for found in re.finditer(r"^    (\S[^:\n]*): (.*?)(?=\n    \S|\Z)", section[1] if section else "", re.M | re.S):
        yield found[1], " ".join(found[2].split())


def faults(text: str) -> Iterator[str]:
    first = re.match(r"\w+", text)
    if first and first[0].lower() in FRAGMENTS:
        yield f"begins with {first[0]!r}"
    for name, said in entries(text):
        word = re.match(r"\w+", said)
        if word and word[0].lower() in FRAGMENTS:
            yield f"{name}: begins with {word[0]!r}"
        if said[0].islower() and not LOWER_CASE.match(said):
            yield f"{name}: begins in lower case"
        if not said.endswith((".", ".)")):
            yield f"{name}: has no full stop"


def test_docstrings_are_sentences():
    found = [f"{place} {fault}" for path in CODE for place, text in docstrings(path) for fault in faults(text)]
    assert not found, "\n".join(found)


def settable(owner: ast.AST, classes: dict[str, ast.ClassDef]) -> set[str]:
    """The parameters of a function; of a class, those of its constructor, its fields, and those of its bases."""
    if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.arg for node in ast.walk(owner.args) if isinstance(node, ast.arg)}
    if not isinstance(owner, ast.ClassDef):
        return set()
    names = {
        node.target.id for node in owner.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for node in owner.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names |= settable(node, classes)
    bases = [classes[base.id] for base in owner.bases if isinstance(base, ast.Name) and base.id in classes]
    return names.union(*(settable(base, classes) for base in bases))


def test_what_is_described_can_be_set():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in CODE}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    classes = {node.name: node for _, node in nodes if isinstance(node, ast.ClassDef)}
    described = [
        (f"{path.relative_to(ROOT)}:{node.lineno}", name.lstrip("*"), settable(node, classes))
        for path, node in nodes
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for whole, _ in entries(ast.get_docstring(node) or "")
        for name in whole.split(", ")
    ]
    assert len(described) > 400
    assert not [
        f"{place} describes {name}, which it does not have" for place, name, has in described if name not in has
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Of all ranks.", ["begins with 'Of'"]),
        ("The losses of all ranks.", []),
        ("Draws.\n\nArgs:\n    seed: of the order.", ["seed: begins with 'of'", "seed: begins in lower case"]),
        ("Draws.\n\nArgs:\n    seed: Seed of the\n        order\n    rate: A rate.", ["seed: has no full stop"]),
        ("Draws.\n\nArgs:\n    mode: torch's modes.\n\nRaises `UserError` for others", []),
    ],
)
def test_fragments_are_found(text: str, expected: list[str]):
    assert list(faults(text)) == expected

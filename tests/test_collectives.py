"""No rank may talk to the others alone: what is collective stands below no condition that only some ranks meet."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Attributes and functions that talk to other ranks: torch's, Lightning's (`log_dir` and metrics are agreed on when
#: they are read) and ours. A file's own functions that use one are found.
COLLECTIVE = {
    "at_once",
    "barrier",
    "batches_of",
    "broadcast",
    "broadcast_object_list",
    "callback_metrics",
    "canonical_weights",
    "all_gather",
    "export_files",
    "full_tensor",
    "gather",
    "gathered",
    "in_passes",
    "inference_copy",
    "log_dir",
    "log_means",
    "merged",
    "reduce",
    "reduce_boolean_decision",
    "rows_of_all_ranks",
    "save_checkpoint",
    "stacked",
    "streamed",
    "unshard",
    "whole",
    "whole_block",
    "_gathered",
}
#: Names of which a condition tells one rank from another.
RANK = {"is_global_zero", "global_rank", "local_rank", "rank", "get_rank", "node_rank", "owner"}
DECORATORS = {"rank_zero_only"}
#: (file, what is called) that is right as it is, with the reason.
ALLOWED = {
    ("lnlit/models/ranks.py", "send_object_list"): "from one rank to another: the owner sends",
    ("lnlit/models/ranks.py", "recv_object_list"): "and rank 0 receives",
}


def name_of(node: ast.AST) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def is_collective(name: str | None) -> bool:
    return name is not None and (name in COLLECTIVE or name.startswith(("all_", "send_", "recv_")))


def used(part: ast.AST, own: set[str]) -> set[str]:
    """What `part` uses that is collective, `own` functions where it calls them."""
    called = {name_of(node.func) for node in ast.walk(part) if isinstance(node, ast.Call)}
    return {
        name for node in ast.walk(part) if (name := name_of(node)) and (is_collective(name) or name in own & called)
    }


def own_collectives(tree: ast.AST) -> set[str]:
    """Functions of the file that talk to other ranks, themselves or through others of the file."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    own: set[str] = set()
    while more := {f.name for f in functions if any(used(each, own) for each in f.body)} - own:
        own |= more
    return own


def tells_ranks_apart(test: ast.AST) -> bool:
    return any(name_of(node) in RANK for node in ast.walk(test))


def ends(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)


def for_some(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements and expressions that only some ranks come to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(name_of(each) in DECORATORS for each in node.decorator_list):
            yield from node.body
        if isinstance(node, ast.IfExp | ast.If | ast.While) and tells_ranks_apart(node.test):
            yield from [node.body, node.orelse] if isinstance(node, ast.IfExp) else [*node.body, *node.orelse]
        if isinstance(node, ast.BoolOp):
            for index, value in enumerate(node.values[:-1]):
                if tells_ranks_apart(value):
                    yield from node.values[index + 1 :]
        for field in ("body", "orelse", "finalbody"):  # what follows `if not is_global_zero: return` in its block
            block = getattr(node, field, None)
            for index, statement in enumerate(block if isinstance(block, list) else []):
                if isinstance(statement, ast.If) and tells_ranks_apart(statement.test) and ends(statement.body):
                    yield from block[index + 1 :]  # type: ignore[index]


def found(source: str) -> set[str]:
    tree = ast.parse(source)
    own = own_collectives(tree)
    return {name for part in for_some(tree) for name in used(part, own)}


CODE = [*(ROOT / "lnlit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CODE if "build" not in path.parts),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_every_rank_comes_to_what_is_collective(path: Path):
    place = path.relative_to(ROOT).as_posix()
    wrong = {name for name in found(path.read_text(encoding="utf-8")) if (place, name) not in ALLOWED}
    assert not wrong, f"{place}: {', '.join(sorted(wrong))} where not every rank comes; the others wait for ever"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("if trainer.is_global_zero:\n    x = trainer.log_dir", {"log_dir"}),
        ("if a:\n    b()\nelif rank == 0:\n    dist.all_reduce(x)", {"all_reduce"}),
        ("def f():\n    if not trainer.is_global_zero:\n        return\n    strategy.barrier()", {"barrier"}),
        ("x = canonical_weights(d) if get_rank() == 0 else None", {"canonical_weights"}),
        ("rank == 0 and trainer.callback_metrics", {"callback_metrics"}),
        ("@rank_zero_only\ndef f():\n    p.full_tensor()", {"full_tensor"}),
        (
            "def g(t):\n    return t.log_dir\ndef h(t):\n    return g(t)\n"
            "def f(t):\n    if not t.is_global_zero:\n        return\n    write(h(t))",
            {"h"},
        ),
        ("strategy.barrier()\nif rank == 0:\n    write()\nstrategy.barrier()", set()),
        ("if rank == 0:\n    raise ValueError\n", set()),
    ],
)
def test_it_would_be_seen(source, expected):
    """The search itself, on the shapes in which such faults come."""
    assert found(source) == expected


def test_nothing_is_allowed_that_is_not_there():
    for (place, name), _ in ALLOWED.items():
        assert name in found((ROOT / place).read_text(encoding="utf-8")), (place, name)

"""The rules of the design that a machine can check: import arrows, lazy imports, file and function sizes."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

_BOTTOM = {
    "renamed",
    "errors",
    "files",
    "journal",
    "schema",
    "progress",
    "thinking",
    "notation",
    "end_of_turn",
    "builtins",
    "specs",
    "interfaces",
    "registry",
    "own",
    "endpoint",
}
_PURE = {"models", "objectives"}
_MIDDLE = {"data", "rewards", "rollout", "search", "checkpoint"}
_SAMPLED = {"sampling", "rl", "eval", "planning"}
_LIGHTNING = {"modules", "callbacks"}

#: What each part of lnlit may import from lnlit, itself aside. An arrow that is not here points up or sideways.
MAY_IMPORT: dict[str, set[str]] = {
    "renamed": set(),
    "errors": {"renamed"},
    "files": {"errors"},
    "schema": {"errors"},
    "journal": {"errors", "files"},
    "progress": set(),
    "thinking": {"errors"},
    "notation": set(),
    "end_of_turn": {"errors", "files", "thinking"},
    "builtins": set(),
    "specs": {"errors", "schema"},
    "interfaces": {"errors", "schema", "specs", "thinking"},
    "own": {"errors", "files"},
    "endpoint": {"errors"},
    "registry": {"errors", "builtins", "specs", "interfaces"},
    **dict.fromkeys(_PURE, _BOTTOM),
    **dict.fromkeys(_MIDDLE, _BOTTOM | _PURE),
    "sampling": _BOTTOM | _PURE | _MIDDLE,
    "planning": _BOTTOM | _PURE | _MIDDLE,
    **dict.fromkeys(("rl", "eval"), _BOTTOM | _PURE | _MIDDLE | {"sampling"}),
    "curation": _BOTTOM | _PURE | _MIDDLE | {"sampling", "eval"},
    "report": _BOTTOM | _PURE | _MIDDLE | {"sampling", "eval"},
    **dict.fromkeys(_LIGHTNING, _BOTTOM | _PURE | _MIDDLE | _SAMPLED | {"report"}),
    "testing": _BOTTOM | _PURE | _MIDDLE | _SAMPLED | _LIGHTNING,
    "stages": _BOTTOM | _PURE | _MIDDLE | _SAMPLED | {"report", "curation"},
    "cli": _BOTTOM | _PURE | _MIDDLE | _SAMPLED | _LIGHTNING | {"stages", "report"},
}
#: An extra brings it, so nothing else may need it.
USES_DATATROVE = {"lnlit/curation", "lnlit/stages/curate.py"}
USES_LIGHTNING = {"modules", "callbacks", "cli", "data", "testing"}
WITHOUT_TORCH = _BOTTOM
HEAVY = {
    "torch", "lightning", "transformers", "vllm", "cvxpy", "flash_attn", "torchtune", "torchao", "jsonargparse",
    "datatrove",
}  # fmt: skip
#: May not be imported before something is drawn or shown.
LATE = HEAVY | {"matplotlib", "jinja2"}

SOURCES = sorted((ROOT / "lnlit").rglob("*.py"))
PLUGINS = sorted(path for path in (ROOT / "plugins").rglob("*.py") if not {"tests", "build"} & set(path.parts))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported dotted name in a file, function-level ones too, and whether it is for type checkers only."""
    package = path.relative_to(ROOT).parent.parts
    tree = parsed(path)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, node in typing_only) for name in names]
    return found


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "lnlit").parts[0].removesuffix(".py")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in SOURCES if part_of(p) != "__init__"], ids=relative)
def test_import_arrows_point_down(path: Path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"lnlit.{part} has no place in the design: give it one in MAY_IMPORT"
    for name, _ in imports(path):
        root, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if root == "lnlit" and target in MAY_IMPORT and target != part:
            assert target in MAY_IMPORT[part], f"{relative(path)} imports {name}: an arrow up or sideways"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_libraries_stay_where_they_belong(path: Path):
    part = part_of(path)
    for name, typing_only in imports(path):
        library = name.partition(".")[0]
        assert library not in {"vllm", "cvxpy", "flash_attn"}, f"{relative(path)} imports {name}: that is a plugin's"
        if library in {"datatrove", "loguru"}:
            assert {relative(path), relative(path.parent)} & USES_DATATROVE, f"{relative(path)} imports {name}"
        if library in {"lightning", "pytorch_lightning"}:
            assert part in USES_LIGHTNING, f"{relative(path)} imports {name}: Lightning stays at the edge"
        if part in WITHOUT_TORCH and not typing_only:
            assert library not in HEAVY, f"{relative(path)} imports {name} at run time"


@pytest.mark.parametrize("path", PLUGINS, ids=relative)
def test_a_plugin_imports_only_the_sockets(path: Path):
    for name, _ in imports(path):
        if name.startswith("lnlit."):
            socket = name.split(".")[1]
            assert socket in {"interfaces", "specs", "errors"}, f"{relative(path)} imports {name}"


@pytest.mark.parametrize(
    "code",
    [
        "import lnlit, lnlit.specs, lnlit.registry, lnlit.interfaces, lnlit.builtins; assert 'GRPO' in dir(lnlit)",
        "import lnlit.report.charts, lnlit.report.maps, lnlit.report.pages",
        "from lnlit.cli.main import main; assert main(['--help']) == 0",
        "from lnlit.cli.main import main; assert main(['--version']) == 0",
        "from lnlit.cli.main import main; assert main(['plugins']) == 0",
        "from lnlit.cli.main import main; assert main(['fit', '--help']) == 0",
        "from lnlit.cli.main import main; assert main(['nonsense']) == 2",
        "from lnlit.cli.main import main; assert main(['fit', '--config', 'nowhere.yaml']) == 2",
    ],
)
def test_the_front_door_imports_nothing_heavy(code: str):
    probe = f"import sys; {code}; print('imported:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert not LATE & set(done.stdout.rpartition("imported:")[2].split())


ALL_CODE = [*SOURCES, *sorted((ROOT / "plugins").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]


@pytest.mark.parametrize("path", [p for p in ALL_CODE if "build" not in p.parts], ids=relative)
def test_files_and_functions_are_short(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{relative(path)} has {text.count(chr(10))} lines; split it"
    assert path.stem not in {"utils", "common", "helpers", "misc"}, f"{relative(path)}: name it by what it does"
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines < 60, f"{relative(path)}:{node.lineno} {node.name} has {lines} lines"


#: Rooms in which a constructor with more than ten arguments has a missing concept.
SHORT_CONSTRUCTORS = {"modules", "rl", "sampling", "rollout"}
#: Classes of theirs that may have more, each with its reason.
LONG_CONSTRUCTORS: dict[str, str] = {}


def arguments(cls: ast.ClassDef) -> int:
    """How many arguments a class's constructor has, that of a dataclass too. Inherited ones do not count."""
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) - 1
    if not any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        return 0
    fields = [node for node in cls.body if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node)]
    return sum("init=False" not in ast.unparse(field) for field in fields)


def test_a_constructor_has_ten_arguments_at_most():
    counted = {
        f"{relative(path)}:{node.name}": arguments(node)
        for path in SOURCES
        if part_of(path) in SHORT_CONSTRUCTORS
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
    }
    assert counted["lnlit/modules/prompt_data.py:PromptData"] == 10 and counted["lnlit/rl/rpo.py:RPO"] == 4
    assert {name for name, count in counted.items() if count > 10} == LONG_CONSTRUCTORS.keys()


def test_a_stage_has_ten_arguments_at_most():
    counted = {
        node.name: len([*node.args.args, *node.args.kwonlyargs])
        for path in SOURCES
        if part_of(path) == "stages"
        for node in parsed(path).body
        if isinstance(node, ast.FunctionDef)
    }
    assert counted["solve"] == counted["annotate"] == 10 and max(counted.values()) == 10


#: All that GRPO is, from the method to the gradient: what is sampled, compared and learned from, and how.
GRPO = [
    "modules/grpo", "modules/policy", "rl/grpo", "rl/algorithm", "rl/collector", "interfaces/algorithm",
    "objectives/advantage", "objectives/policy", "objectives/kl",
]  # fmt: skip


def test_grpo_is_understood_from_few_files(record_property):
    """Ten files and 1,200 lines at most: all that the algorithm is made of, without the data module."""
    lines = {name: (ROOT / "lnlit" / f"{name}.py").read_text(encoding="utf-8").count("\n") for name in GRPO}
    record_property("lines to read to understand GRPO", sum(lines.values()))
    assert len(lines) <= 10 and sum(lines.values()) <= 1200, lines
    graph, found, todo = imported_files(), set(), ["lnlit.rl.grpo"]
    while todo:
        found.add(name := todo.pop())
        todo += [t for t in graph[name] - found if t.startswith(("lnlit.rl.", "lnlit.objectives."))]
    assert {name.removeprefix("lnlit.").replace(".", "/") for name in found} <= lines.keys()


#: Who may know a built-in part by its name or by what its arguments are called: the list of them, their own files, the
#: formats that models are kept in, and what makes models for tests.
KNOWS_PARTS = re.compile(
    r"lnlit/(builtins\.py|models/(attention|ffn|stubs)\.py|checkpoint/.*|testing/.*)|plugins/lnlit-vllm/.*/config\.py"
)


def built_in_words() -> set[str]:
    """Names of built-in parts, but for `noop`, which is what a spec calls an empty slot, and of their arguments, but
    for words that others have uses of their own for.
    """
    from lnlit import registry
    from lnlit.builtins import BUILTINS

    words = set()
    for slot in ("attention", "ffn"):
        for name in BUILTINS[slot]:
            words |= {name, *inspect.signature(registry.get(slot, name)).parameters}
    return words - {"noop", "context", "bias", "window"}


def test_no_file_but_its_own_knows_a_part_by_its_name_or_its_arguments():
    words, found = built_in_words(), []
    assert {"gqa", "swiglu", "swiglu_fused", "single_linear", "head_dim", "intermediate_size"} <= words
    for path in [*SOURCES, *PLUGINS]:
        if not KNOWS_PARTS.fullmatch(relative(path)):
            found += [
                f"{relative(path)}:{node.lineno} {node.value!r}"
                for node in ast.walk(parsed(path))
                if isinstance(node, ast.Constant) and node.value in words
            ]
    assert not found, f"ask the part instead (lnlit/interfaces/layer.py): {found}"


def test_no_machine_paths_in_committed_files():
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    machine = re.compile(r"(?<![\w.~}])/(?:work|root|home/\w+|Users/\w+)/")
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file() or path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}:{number}" for number, line in enumerate(text.split("\n"), 1) if machine.search(line)]
    assert not found


def imported_files() -> dict[str, set[str]]:
    """Which files of lnlit each imports, by dotted name; a package is its `__init__`."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}
    known = set(names.values())
    graph = {}
    for path, name in names.items():
        targets = (target if target in known else target.rpartition(".")[0] for target, _ in imports(path))
        graph[name] = (known & set(targets)) - {name}
    return graph


def test_no_files_import_each_other():
    graph = imported_files()
    reach = {name: set(targets) for name, targets in graph.items()}
    for middle in graph:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    circles = {
        tuple(sorted(other.removeprefix("lnlit.") for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    assert not circles


def test_no_two_files_of_tests_have_one_name():
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1], "pytest imports only one of them"

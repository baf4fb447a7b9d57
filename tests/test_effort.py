"""What CONTRIBUTING says that a part costs whoever adds it, in files and lines, is counted here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from lnlit.cli.new_plugin import write_plugin

ROOT = Path(__file__).parents[1]
#: What is added -> (its kind, a real example). A stage from files to a file is control flow, and so no kind of part.
EXAMPLES = {
    "attention variant": ("attention", "tests/lnlit-stranger/lnlit_stranger:NormedAttention"),
    "FFN variant": ("ffn", "lnlit/models/ffn:SwiGLU"),
    "family of checkpoints": ("checkpoint", "tests/lnlit-stranger/lnlit_stranger:Stranger"),
    "algorithm": ("algorithm", "lnlit/rl/cispo:CISPO"),
    "reward": ("reward", "lnlit/rewards/format:FormatReward"),
    "stage of training": ("method", "lnlit/modules/sft:SFT"),
    "stage from files to a file": (None, "lnlit/stages/curriculum:curriculum"),
    "solver": ("solver", "lnlit/search/baselines:Uniform"),
    "source of prompts": ("source", "lnlit/data/difficulty:DifficultySource"),
    "order of prompts": ("prompt_order", "lnlit/sampling/order:Uniform"),
    "benchmark": ("task", "lnlit/eval/tasks/mathematics:GSM8K"),
}


def lines_of(file: Path, name: str) -> int:
    """Of the class or function `name` in a file."""
    (found,) = (node for node in ast.parse(file.read_text()).body if getattr(node, "name", "") == name)
    assert isinstance(found, ast.ClassDef | ast.FunctionDef)
    return (found.end_lineno or 0) - min(node.lineno for node in (found, *found.decorator_list)) + 1


def lines_that_name(package: Path, module: str, name: str) -> int:
    """So that a part is found: its entry point, or its lines in lnlit's lists of parts, stages and public names."""
    files = [package / "pyproject.toml"]
    if package == ROOT:
        files = [file for pattern in ("*.py", "*.pyi") for file in (ROOT / "lnlit").rglob(pattern)]
    naming = re.compile(rf"{module}:{name}\"|from {module} import {name} as|^ *\"(search|rollout)_{name}\",")
    return sum(bool(naming.search(line)) for file in files for line in file.read_text().splitlines())


@pytest.mark.parametrize("what", EXAMPLES)
def test_what_contributing_says_of_adding_a_part_is_so(what, tmp_path):
    kind, example = EXAMPLES[what]
    begin = "a file in `lnlit/stages`"
    if kind is not None:
        written = write_plugin(kind, "mine", tmp_path / "mine")
        assert len([file for file in written.rglob("*") if file.is_file()]) == 4
        begin = f"`plugins new {kind}`: {len((written / 'lnlit_mine.py').read_text().splitlines())} lines"
    path, _, name = example.partition(":")
    package = ROOT if path.startswith("lnlit/") else (ROOT / path).parent
    module = str((ROOT / path).relative_to(package)).replace("/", ".")
    own, others = lines_of(ROOT / f"{path}.py", name), lines_that_name(package, module, name)
    row = f"| {what} | {begin} | [`{name}`]({path}.py) | {own} | {others} |"
    assert row in (ROOT / "CONTRIBUTING.md").read_text().splitlines(), f"CONTRIBUTING.md should have the line\n{row}"

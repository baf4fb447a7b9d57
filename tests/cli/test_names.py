"""Parts of installed plugins in a configuration: registry and class names, clashes, broken ones, the import policy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from lnlit import registry
from lnlit.cli import blame
from lnlit.errors import UserError

PART = """
from lnlit.interfaces import Source

class Numbers(Source):
    def __init__(self, limit: int = 8):
        self.limit = limit

    def rows(self, start=0):
        for i in range(start, self.limit):
            yield {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": str(i)}]}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`install("demo-one", numbers="demo_one:Numbers")` makes a distribution with these sources importable."""
    folder = tmp_path / "site"
    folder.mkdir()

    def install_one(distribution: str, text: str = PART, **points: str) -> None:
        module = distribution.replace("-", "_")
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {target}" for name, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[lnlit.source]", *lines]))
        (folder / f"{module}.py").write_text(text)
        registry._plugins.cache_clear()

    monkeypatch.syspath_prepend(str(folder))
    yield install_one
    registry._plugins.cache_clear()
    for name in [name for name in sys.modules if name.startswith("demo_")]:
        del sys.modules[name]


def source(config, name: str) -> Path:
    """A configuration that takes its rows from the source called `name`."""
    path = config()
    tree = yaml.safe_load(path.read_text())
    tree["data"]["init_args"]["train"] = {"class_path": name}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("name", ["numbers", "Numbers", "demo-one:numbers", "demo_one.Numbers"])
def test_every_spelling_of_a_plugins_part_trains(install, lnlit, config, name):
    install("demo-one", numbers="demo_one:Numbers", idle="demo_idle:Idle")
    code, _, err = lnlit("fit", "--config", source(config, name))
    assert code == 0, err


def test_only_what_is_named_is_imported(install, lnlit, config):
    install("demo-one", numbers="demo_one:Numbers")
    install("demo-two", others="demo_two:Numbers")
    assert lnlit("fit", "--config", source(config, "numbers"), "--print_config")[0] == 0
    assert "demo_one" in sys.modules and "demo_two" not in sys.modules


def test_a_plugins_part_on_the_command_line(install, lnlit, config):
    install("demo-one", numbers="demo_one:Numbers")
    options = ["--data.train", "numbers", "--data.train.limit", 3, "--print_config"]
    code, out, err = lnlit("fit", "--config", config(), *options)
    assert code == 0, err
    assert yaml.safe_load(out)["data"]["init_args"]["train"] == {
        "class_path": "demo_one.Numbers",
        "init_args": {"limit": 3},
    }


def test_a_clash_is_settled_by_the_distribution(install, lnlit, config):
    install("demo-one", numbers="demo_one:Numbers")
    install("demo-two", numbers="demo_two:Numbers")
    code, _, err = lnlit("fit", "--config", source(config, "numbers"))
    assert code == 2 and err.count("\n") == 1, err
    assert "offered by demo-one (demo_one:Numbers) and demo-two (demo_two:Numbers). Write 'demo-one:numbers' or " in err
    code, _, err = lnlit("fit", "--config", source(config, "Numbers"))
    assert code == 2 and "source class 'Numbers' is offered as demo-one:numbers and demo-two:numbers." in err, err
    code, out, err = lnlit("fit", "--config", source(config, "demo-one:numbers"), "--print_config")
    assert code == 0 and "class_path: demo_one.Numbers" in out, err


def test_a_broken_plugin_hurts_only_who_names_it(install, lnlit, config):
    install("demo-broken", "import a_module_that_is_not_there\n", numbers="demo_broken:Numbers", odd="not a path!")
    code, _, err = lnlit("fit", "--config", source(config, "numbers"))
    assert code == 2 and err.count("\n") == 1, err
    assert "source 'numbers' of demo-broken 1.0 cannot be imported" in err
    assert lnlit("fit", "--config", config(), "--print_config")[0] == 0


def test_a_circle_of_causes_ends():
    inner, outer = ValueError("inner"), ValueError("outer")
    outer.__cause__, inner.__cause__ = inner, outer
    assert str(blame.while_building(outer)) == "inner"
    inner.__cause__ = told = UserError("what the user did")
    assert blame.while_building(outer) is told


def test_a_module_that_no_plugin_owns_is_imported_where_it_is_written_and_must_fit(install, lnlit, config):
    install("demo-one", numbers="demo_one:Numbers")
    (Path(sys.path[0]) / "demo_stranger.py").write_text(f"{PART}\nclass Other: ...\n")
    assert lnlit("fit", "--config", config(), "--print_config")[0] == 0
    assert "demo_stranger" not in sys.modules
    code, _, err = lnlit("fit", "--config", source(config, "demo_stranger.Other"))
    assert code == 2 and "'demo_stranger.Other' may not be named here." in err and "here a Source. Allowed: " in err, (
        err
    )
    code, _, err = lnlit("fit", "--config", source(config, "demo_one.PART"))
    assert code == 2 and "cannot import 'demo_one.PART'" in err, err
    assert lnlit("fit", "--config", source(config, "demo_stranger.Numbers"))[0] == 0


def test_a_clash_with_a_builtin_concerns_who_writes_the_bare_name(install, lnlit, config):
    install("demo-one", jsonl="demo_one:Numbers")
    code, _, err = lnlit("fit", "--config", config())
    assert code == 2 and "offered by lnlit (lnlit.data.sources:JsonlSource) and demo-one (demo_one:Numbers)." in err
    assert lnlit("fit", "--config", source(config, "demo-one:jsonl"), "--print_config")[0] == 0
    assert lnlit("fit", "--config", config(("jsonl\n", "lnlit:jsonl\n")), "--print_config")[0] == 0

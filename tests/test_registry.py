from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from lnlit import registry
from lnlit.builtins import OF_OUR_PLUGINS
from lnlit.cli import plugins as plugins_command
from lnlit.errors import UserError
from lnlit.interfaces import Source
from lnlit.interfaces.layer import NOW_CALLED
from lnlit.models.ffn import SwiGLU

PART = '''
from lnlit.interfaces import Source

class Numbers(Source):
    """Counts upwards."""
    def rows(self, start=0):
        return iter([])

class NotASource:
    pass
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`install("name", module_text, numbers="module:Class")` makes a distribution with entry points importable; a
    group in place of the text is another than lnlit.source."""

    def install_one(distribution: str, text: str = PART, **points: str) -> None:
        group, text = (text, PART) if text.startswith("lnlit.") else ("lnlit.source", text)
        module = distribution.replace("-", "_")
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = [f"{name} = {target}" for name, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
        (tmp_path / f"{module}.py").write_text(text)
        registry._plugins.cache_clear()

    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("LNLIT_PLUGINS", raising=False)
    registry._plugins.cache_clear()
    yield install_one
    registry._plugins.cache_clear()
    for name in [
        n for n in set(sys.modules) - before if str(getattr(sys.modules[n], "__file__", "")).startswith(str(tmp_path))
    ]:
        del sys.modules[name]


def test_an_installed_part_is_listed_with_its_owner_and_not_imported(install):
    install("demo-numbers", numbers="demo_numbers:Numbers")
    entry = registry.find("source", "numbers")
    assert (entry.distribution, entry.version, entry.target) == ("demo-numbers", "1.2", "demo_numbers:Numbers")
    assert "numbers" in registry.names("source")
    assert "demo_numbers" not in sys.modules


def test_an_installed_part_is_built(install):
    install("demo-numbers", numbers="demo_numbers:Numbers")
    assert list(registry.build("source", "numbers").rows()) == []


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UserError, match=r"unknown ffn 'swigul'\. Did you mean 'swiglu'\? Allowed: noop, "):
        registry.get("ffn", "swigul")


def test_a_part_of_our_own_plugins_is_told_with_the_plugin_that_has_it(monkeypatch):
    """And those that the code knows are those that the plugins have."""
    offered = {}
    for file in (Path(__file__).parent.parent / "plugins").glob("*/pyproject.toml"):
        project = tomllib.loads(file.read_text())["project"]
        for group, parts in project.get("entry-points", {}).items():
            if group.startswith("lnlit."):
                offered |= {(group.removeprefix("lnlit."), name): project["name"] for name in parts}
    assert offered == OF_OUR_PLUGINS
    monkeypatch.setattr(registry, "_plugins", lambda kind: [])
    for (kind, name), plugin in offered.items():
        with pytest.raises(UserError, match=rf"{name}' is of the plugin {plugin}, .*install -e plugins/{plugin}`"):
            registry.find(kind, name)
        with pytest.raises(UserError, match="unknown"):
            registry.find(kind, f"others:{name}")
    monkeypatch.setenv("LNLIT_PLUGINS", "off")
    with pytest.raises(UserError, match=r"'highs' is of the plugin lnlit-highs.*: remove LNLIT_PLUGINS=off"):
        registry.find("solver", "highs")


def test_an_unknown_kind_gets_a_suggestion():
    with pytest.raises(UserError, match=r"unknown kind 'atention'\. Did you mean 'attention'\?"):
        registry.names("atention")


def test_a_clash_names_both_owners_and_only_for_who_uses_the_bare_name(install):
    install("demo-one", numbers="demo_one:Numbers")
    install("demo-two", numbers="demo_two:Numbers")
    assert registry.names("source").count("numbers") == 1
    with pytest.raises(UserError, match=r"offered by demo-one \(demo_one:Numbers\) and demo-two \(demo_two:Numbers\)"):
        registry.get("source", "numbers")
    assert registry.get("source", "demo-one:numbers").__module__ == "demo_one"
    assert registry.get("source", "demo-two:numbers").__module__ == "demo_two"
    assert registry.get("source", "jsonl").__name__ == "JsonlSource"


def test_a_plugin_cannot_take_a_builtin_name_quietly(install):
    install("demo-thief", jsonl="demo_thief:Numbers")
    with pytest.raises(UserError, match=r"offered by lnlit .* and demo-thief .* Write 'lnlit:jsonl' or 'demo-thief"):
        registry.named("source", "jsonl")
    assert registry.named("source", "lnlit:jsonl").__name__ == "JsonlSource"
    assert registry.named("source", "demo-thief:jsonl").__name__ == "Numbers"


def test_what_specs_and_defaults_name_stays_what_it_was(install):
    """A model's spec says `swiglu` and a checkpoint is tried by every format; nobody has written these names."""
    install("demo-thief", "lnlit.ffn", swiglu="demo_thief:Numbers")
    install("demo-other", "lnlit.checkpoint", llama="demo_other:Numbers")
    assert registry.get("ffn", "swiglu").__name__ == "SwiGLU"
    assert {"lnlit:llama", "demo-other:llama", "gguf"} <= {*registry.spellings("checkpoint")}
    assert "demo_thief" not in sys.modules


def test_a_solver_has_the_name_it_is_registered_by(install):
    from lnlit.search.baselines import Greedy

    assert (registry.name_of("solver", Greedy), registry.name_of("solver", int)) == ("greedy", None)


def test_a_group_that_is_no_kind_is_told(install, capsys):
    install("demo-astray", "lnlit.sources", numbers="demo_astray:Numbers")
    assert plugins_command.main([]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "demo-astray" in line)
    assert line.endswith("not looked at: 'sources' is no kind. Did you mean 'source'?")
    with pytest.raises(UserError) as caught:
        registry.named("source", "numbers")
    told = "demo-astray offers 'numbers' in the group 'lnlit.sources', which is no kind. Did you mean 'lnlit.source'?"
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import a_module_that_is_not_there\n", "ModuleNotFoundError"),
        ("x = 1\n", "AttributeError"),
        ("raise SystemExit(3)\n", "SystemExit"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_a_broken_plugin_is_listed_and_fails_only_when_asked_for(install, text, reason):
    install("demo-broken", text, numbers="demo_broken:Numbers")
    assert "numbers" in registry.names("source")
    assert registry.get("source", "jsonl")
    with pytest.raises(UserError, match=f"of demo-broken 1.2 cannot be imported from demo_broken:Numbers: {reason}"):
        registry.get("source", "numbers")


def test_a_class_of_the_wrong_kind_is_refused(install):
    install("demo-wrong", numbers="demo_wrong:NotASource")
    with pytest.raises(UserError, match=r"it must be a subclass of lnlit\.interfaces\.source\.Source"):
        registry.get("source", "numbers")


def test_plugins_can_be_switched_off(install, monkeypatch):
    install("demo-numbers", numbers="demo_numbers:Numbers", jsonl="demo_numbers:Numbers")
    monkeypatch.setenv("LNLIT_PLUGINS", "off")
    assert "numbers" not in registry.names("source")
    assert registry.get("source", "jsonl").__name__ == "JsonlSource"


def test_a_notebook_can_add_a_part(monkeypatch):
    class Mine(Source):
        def rows(self, start: int = 0):
            return iter([])

    monkeypatch.setattr(registry, "_added", {})
    registry.add("source", "mine", Mine)
    assert registry.get("source", "mine") is Mine and "mine" in registry.names("source")
    with pytest.raises(UserError, match="exists already"):
        registry.add("source", "jsonl", Mine)
    with pytest.raises(UserError, match="must be a subclass"):
        registry.add("source", "other", int)


@pytest.mark.parametrize(("old", "now"), NOW_CALLED.items())
def test_a_part_of_an_earlier_version_is_told_what_its_words_are_called(old, now):
    """Or a search would leave it out and say nothing."""
    with pytest.raises(UserError, match=rf"Mine\.{old} is now called {now}"):
        type("Mine", (SwiGLU,), {old: "down_proj"})


def test_the_listing_shows_state_and_clash_without_importing(install, capsys):
    install("demo-one", numbers="demo_one:Numbers", lost="demo_not_there:Lost")
    install("demo-two", numbers="demo_two:Numbers")
    assert plugins_command.main([]) == 0
    rows = {tuple(line.split()[1:3]): line for line in capsys.readouterr().out.splitlines() if line}
    assert "1.2      clash, write demo-one:numbers; available" in rows["numbers", "demo-one"]
    assert "clash, write demo-two:numbers" in rows["numbers", "demo-two"]
    assert "broken: there is no module demo_not_there" in rows["lost", "demo-one"]
    assert rows["swiglu", "lnlit"].endswith("available")
    assert not {"demo_one", "demo_two"} & sys.modules.keys()


def test_check_imports_and_shows_the_error(install, capsys):
    install("demo-broken", "import a_module_that_is_not_there\n", numbers="demo_broken:Numbers")
    assert plugins_command.main(["--check"]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if " numbers " in line)
    assert "broken: " in line and "No module named 'a_module_that_is_not_there'" in line


def test_find_prints_file_line_and_first_docstring_line(install, capsys, tmp_path):
    install("demo-numbers", numbers="demo_numbers:Numbers")
    assert plugins_command.main(["find", "source", "numbers"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'demo_numbers.py'}:4\nCounts upwards.\n"

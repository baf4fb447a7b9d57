"""The name of a YAML file alone is a configuration."""

from __future__ import annotations

from argparse import Namespace

import pytest

from lnlit.cli.arguments import CommandParser, with_configs
from lnlit.cli.stage_commands import ALL
from lnlit.errors import UserError


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["a.yaml"], ["--config", "a.yaml"]),
        (["a.yaml", "b.yml", "--x", "1"], ["--config", "a.yaml", "--config", "b.yml", "--x", "1"]),
        (["--config", "a.yaml"], ["--config", "a.yaml"]),
        (["--config=a.yaml", "b.yaml"], ["--config=a.yaml", "--config", "b.yaml"]),
        (["--model.run", "a.yaml"], ["--model.run", "a.yaml"]),  # the value of an option
        (["--print_config", "a.yaml"], ["--print_config", "--config", "a.yaml"]),
        (["model", "--out=c.yaml"], ["model", "--out=c.yaml"]),
    ],
)
def test_a_yaml_file_that_is_no_value_is_a_configuration(given, read):
    assert with_configs(given, ("--print_config",)) == read


def test_every_command_that_takes_a_configuration_takes_its_name(lnlit, config, tmp_path):
    file = config()
    _, expected, _ = lnlit("fit", "--print_config", "--config", file)
    code, out, _ = lnlit("fit", "--print_config", file)
    assert code == 0 and out == expected and "class_path: lnlit.modules.sft.SFT" in out
    code, out, _ = lnlit("plan", file, "--gpu", "cpu")
    assert code == 0 and "parameters" in out
    (tmp_path / "solve.yaml").write_text("problem: nothing.json\nout: out.json\n")
    (tmp_path / "curate.yaml").write_text("strict: yes please\n")
    code, _, err = lnlit("search", "solve", "solve.yaml")
    assert code == 2 and "nothing.json" in err
    code, _, err = lnlit("curate", "curate.yaml", "--tasks", "0")
    assert code == 2 and "curate.yaml:1: strict" in err
    code, _, err = lnlit("fit", "missing.yaml")
    assert code == 2 and "missing.yaml" in err and err.count("\n") == 1


def test_an_option_is_written_as_keys_are_too():
    parser = CommandParser(prog="lnlit work")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--say")
    for words in (["--top-p", "0.5"], ["--top_p", "0.5"], ["--top_p=0.5"]):
        assert parser.parse_args([*words, "--say", "a_b"]) == Namespace(top_p=0.5, say="a_b")
    with pytest.raises(UserError, match="unrecognized arguments: --top_k 3"):
        parser.parse_args(["--top_k", "3"])
    assert parser.parse_known_args(["--model.top_p", "1"])[1] == ["--model.top_p", "1"]


def test_an_override_of_a_plan_may_be_two_words(lnlit, config):
    """Its value is no folder."""
    code, out, err = lnlit("plan", config(), "--gpu", "cpu", "--model.init_args.lora", "{rank: 2}")
    assert code == 0, err
    assert lnlit("plan", "--model.init_args.lora={rank: 2}", "--config", config(), "--gpu=cpu")[:2] == (0, out)
    assert lnlit("plan", config(), "--gpu", "cpu")[1] != out
    code, _, err = lnlit("plan", config(), "--gpu", "cpu", "--model.init_args.rnk", "3")
    assert code == 2 and "unknown key 'rnk'" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "command", [[command.name, stage] for command in ALL for stage in command.stages], ids=" ".join
)
def test_a_stage_without_arguments_says_what_it_needs(lnlit, command):
    code, _, err = lnlit(*command)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err

"""Parts in files of a user's own: named by path, from YAML and command line, read only where they are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lnlit as front
from lnlit import own

PARTS = """
from lnlit.interfaces import PromptOrder, Source
from lnlit.modules.sft import SFT
import lightning as L
from beside import END

class Numbers(Source):
    def __init__(self, limit: int = 8):
        self.limit = limit

    def rows(self, start=0):
        for i in range(start, self.limit):
            yield {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"{i}{END}"}]}

class Mine(SFT):
    '''A method.'''

class Says(L.Callback):
    def __init__(self, word: str):
        self.word = word

    def on_fit_end(self, trainer, module):
        print(self.word)

class Breaks(Mine):
    def training_step(self, batch, index):
        return batch.nonsense

class Refuses(Source):
    def __init__(self):
        raise ValueError("no such thing")

    def rows(self, start=0):
        return iter([])
"""
REWARDS = '''
from lnlit.interfaces import RewardRequest

def polite(request: RewardRequest, worth: float = 1.0) -> float:
    """Pays for a please."""
    return worth * request.completion.count("please")

def broken(request):
    return 1 / 0

number = 3
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with parts of a user's own, apart from where the configurations lie."""
    folder = tmp_path / "my code"
    folder.mkdir()
    (folder / "my_parts.py").write_text(PARTS)
    (folder / "beside.py").write_text("END = '!'\n")
    (folder / "my_rewards.py").write_text(REWARDS)
    yield folder
    for name in [name for name in sys.modules if name.startswith("lnlit.own.") or name == "beside"]:
        del sys.modules[name]


def named(config, *swaps: tuple[str, str]) -> Path:
    """A configuration in which classes have other names."""
    path = config(*((f"class_path: {old}", f"class_path: {new}") for old, new in swaps))
    return path


def test_a_source_a_method_and_a_callback_of_ones_own_train(lnlit, config, folder):
    path = named(config, ("SFT", "my code/my_parts.py:Mine"), ("jsonl", "./my code/my_parts.py:Numbers"))
    tree = yaml.safe_load(path.read_text())
    tree["data"]["init_args"]["train"] = {"class_path": "my code/my_parts.py:Numbers", "init_args": {"limit": 6}}
    tree["trainer"]["callbacks"] = [{"class_path": "my code/my_parts.py:Says", "init_args": {"word": "done"}}]
    path.write_text(yaml.safe_dump(tree))
    code, out, err = lnlit("fit", "--config", path)
    assert code == 0 and "done" in out, err


def test_a_path_in_a_file_is_relative_to_it_and_one_on_the_command_line_to_here(lnlit, config, folder, monkeypatch):
    path = named(config, ("SFT", "my code/my_parts.py:Mine"))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    options = ["--data.train", "../my_parts.py:Numbers", "--data.train.limit", 3, "--print_config"]
    code, out, err = lnlit("fit", "--config", path, *options)
    assert code == 0, err
    tree = yaml.safe_load(out)
    assert tree["model"]["class_path"] == f"{folder}/my_parts.py:Mine"
    source = {"class_path": f"{folder}/my_parts.py:Numbers", "init_args": {"limit": 3}}
    assert tree["data"]["init_args"]["train"] == source
    (folder / "again.yaml").write_text(out)
    assert lnlit("fit", "--config", folder / "again.yaml", "--print_config")[1] == out


def test_nothing_is_read_that_is_not_named(lnlit, config, folder):
    (folder / "my_rewards.py").write_text("raise SystemExit('read')\n")
    before = set(sys.modules)
    assert lnlit("fit", "--config", config(), "--print_config")[0] == 0
    assert not [name for name in set(sys.modules) - before if name.startswith("lnlit.own.")]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("my code/my_part.py:Mine", "model.class_path: there is no file "),
        ("my code/my_parts.py:Mein", "my_parts.py has no 'Mein'. Did you mean 'Mine'? It has: Numbers, Mine, Says, "),
        ("my code/my_parts.py:Says", "may not be named here. A configuration may name classes of lnlit, "),
        ("my code/my_rewards.py:polite", "may not be named here."),
        ("my code/broken.py:Mine", "model.class_path: broken.py:3: ZeroDivisionError: division by zero"),
        ("my code/typo.py:Mine", "model.class_path: typo.py:2: SyntaxError: "),
        ("my code/lost.py:Mine", "model.class_path: lost.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("nowhere_at_all.Mine", "model.class_path: cannot import 'nowhere_at_all.Mine': No module named"),
        ("subprocess.Popen", "'subprocess.Popen' may not be named here."),
    ],
)
def test_a_wrong_name_or_a_broken_file_is_one_line(lnlit, config, folder, part, told):
    (folder / "broken.py").write_text("\n\n1 / 0\n")
    (folder / "typo.py").write_text("x = 1\ndef f(:\n")
    (folder / "lost.py").write_text("import nowhere_at_all\n")
    code, _, err = lnlit("fit", "--config", named(config, ("SFT", part)))
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: ") and "run.yaml:9: " in err, err
    assert told in err, err


def test_what_a_part_raises_is_told_with_its_line(lnlit, config, folder):
    line = 1 + PARTS[: PARTS.index("return batch.nonsense")].count("\n")
    code, _, err = lnlit("fit", "--config", named(config, ("SFT", "my code/my_parts.py:Breaks")))
    assert code == 2 and f"error: my_parts.py:{line}: AttributeError: " in err.splitlines()[-1], err
    path = config()
    tree = yaml.safe_load(path.read_text())
    tree["data"]["init_args"]["train"] = {"class_path": "my code/my_parts.py:Refuses"}
    path.write_text(yaml.safe_dump(tree))
    code, _, err = lnlit("fit", "--config", path)
    line = 1 + PARTS[: PARTS.index("raise ValueError")].count("\n")
    assert code == 2 and err.count("my_parts.py") == 1, err
    assert f"my_parts.py:{line}: ValueError: no such thing" in err.splitlines()[-1], err


def test_a_file_that_changed_is_read_again(folder):
    assert own.load(folder / "my_rewards.py", "number") == 3
    (folder / "my_rewards.py").write_text("number = 4444\n")
    assert own.load(folder / "my_rewards.py", "number") == 4444


def test_a_run_sees_the_content_of_such_a_file(folder, tmp_path):
    from lnlit.cli.made_by import Digests, made_by
    from lnlit.cli.pipeline import Stage

    file = tmp_path / "1_sft.yaml"
    file.write_text("model: {class_path: 'my code/my_parts.py:Mine'}\n")
    before = made_by(Stage(file, "1"), [], Digests({}))["inputs"]
    (folder / "beside.py").write_text("END = '?'\n")
    after = made_by(Stage(file, "1"), [], Digests({}))["inputs"]
    assert before.keys() == after.keys() == {"my code/my_parts.py"} and before != after


def reward_named(name: str) -> object:
    """The reward behind a name, as a configuration builds it."""
    from jsonargparse import ArgumentParser

    from lnlit.cli import names
    from lnlit.interfaces import Reward

    names.install()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    return parser.instantiate_classes(parser.parse_args([f"--reward={name}", "--reward.worth=2"])).reward


def test_a_plain_function_judges_in_processes_of_its_own(folder):
    from lnlit.interfaces import RewardRequest
    from lnlit.rewards.pool import RewardPool

    polite = reward_named(f"{folder}/my_rewards.py:polite")
    assert type(polite).__name__ == "polite" and type(polite).__doc__ == "Pays for a please."
    broken = front.FunctionReward(own.load(folder / "my_rewards.py", "broken"))
    pool = RewardPool({"polite": polite, "broken": broken}, workers=1)
    try:
        with pytest.warns(UserWarning, match=r"the first: my_rewards\.py:9: ZeroDivisionError: division by zero"):
            (found,) = pool.score([RewardRequest([], "please, please", False)])
    finally:
        pool.close()
    assert found["polite"].value == 4.0 and found["broken"].value is None


NOTEBOOK = """
import sys
del sys.modules["__main__"].__file__
from lnlit import Reward, RewardRequest, UserError
from lnlit.rewards.pool import RewardPool

WORTH = 3.0

class Mine(Reward):
    def score(self, request):
        return WORTH * len(request.completion)

class Locked(Mine):
    def __init__(self):
        self.file = (x for x in "generators cannot be sent")

if __name__ == "__main__":
    pool = RewardPool({"mine": Mine()}, workers=1)
    print(pool.score([RewardRequest([], "ab", False)])[0]["mine"].value)
    pool.close()
    try:
        RewardPool({"locked": Locked()}, workers=1)
    except UserError as error:
        print(error)
"""


def test_a_class_of_a_notebook_reaches_the_processes_or_is_refused_at_once(tmp_path):
    (tmp_path / "cells.py").write_text(NOTEBOOK)
    done = subprocess.run([sys.executable, tmp_path / "cells.py"], capture_output=True, text=True)
    value, refusal = done.stdout.splitlines()
    assert value == "6.0" and refusal.startswith("rewards.locked: cannot be sent to the processes that judge (TypeErr")


def test_a_function_of_a_module_judges_too(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    assert type(reward_named("my_rewards.polite")).__name__ == "polite"

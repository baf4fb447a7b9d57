"""Parts in files of a user's own: named by path, from YAML and command line, read only where they are named."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lnlit as front
from lnlit import own
from lnlit.cli import names
from lnlit.errors import UserError

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
    before = set(sys.path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("lnlit.own.") or name in ("beside", "others")]:
        del sys.modules[name]
    sys.path[:] = [place for place in sys.path if place in before]


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
        ("my code/my_parts.py", "'my code/my_parts.py' is no part: write FILE.py:NAME"),
        ("my code/my_parts.py:Mine.Inner", "is no part: write FILE.py:NAME"),
        ("my code/made.py:Local", "is made inside a function, where no other process finds it."),
        ("my code/dotted.py:Mine", "dotted.py:1: ImportError: a file of one's own is in no package: write `beside` wi"),
    ],
)
def test_a_wrong_name_or_a_broken_file_is_one_line(lnlit, config, folder, part, told):
    (folder / "broken.py").write_text("\n\n1 / 0\n")
    (folder / "typo.py").write_text("x = 1\ndef f(:\n")
    (folder / "lost.py").write_text("import nowhere_at_all\n")
    (folder / "dotted.py").write_text("from .beside import END\n")
    made = "from lnlit import SFT\ndef make():\n    class Local(SFT):\n        pass\n    return Local\nLocal = make()\n"
    (folder / "made.py").write_text(made)
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


def test_a_file_that_changed_is_read_again_and_so_is_one_beside_it(folder):
    assert own.load(folder / "my_rewards.py", "number") == 3
    (folder / "my_rewards.py").write_text("number = 4444\n")
    assert own.load(folder / "my_rewards.py", "number") == 4444
    assert own.load(folder / "my_parts.py", "END") == "!"
    (folder / "beside.py").write_text("END = 'the end'\n")
    assert own.load(folder / "my_parts.py", "END") == "the end"


def test_what_lies_beside_a_file_is_never_another_file_of_the_name(folder, tmp_path):
    """Python keeps one module of a name: the second file would silently get what lies beside the first."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "beside.py").write_text("END = '?'\n")
    (tmp_path / "other" / "mine.py").write_text("from beside import END\n")
    assert own.load(folder / "my_parts.py", "END") == "!"
    with pytest.raises(
        UserError, match=r"mine\.py imports 'beside', which is .*my code/beside\.py here and not .*other"
    ):
        own.load(tmp_path / "other" / "mine.py", "END")
    (folder / "random.py").write_text("1 / 0\n")
    (folder / "plain.py").write_text("import random\nx = random.random()\n")
    assert 0 <= own.load(folder / "plain.py", "x") < 1  # Python's own, which a file beside it does not hide


def test_no_bytecode_is_written_beside_such_a_file_nor_read(folder):
    """Python takes bytecode by the length of a file and the second in which it was written."""
    before = sorted(folder.rglob("*"))
    for number, end in ((1, 2), (3, 2), (3, 4)):
        (folder / "my_rewards.py").write_text(f"from beside import END\nnumber = {number}\n")
        (folder / "beside.py").write_text(f"END = {end}\n")
        for file in folder.glob("*.py"):
            os.utime(file, (1e9, 1e9))
        assert [own.load(folder / "my_rewards.py", name) for name in ("number", "END")] == [number, end]
    assert sorted(folder.rglob("*")) == before


def test_a_run_sees_the_content_of_such_a_file(folder, tmp_path):
    from lnlit.cli.made_by import Digests, made_by
    from lnlit.cli.pipeline import Stage

    file = tmp_path / "1_sft.yaml"
    file.write_text("model: {class_path: 'my code/my_parts.py:Mine'}\n")
    before = made_by(Stage(file), [], Digests({}))["inputs"]
    (folder / "beside.py").write_text("from others.all import END\n")
    (folder / "others").mkdir()
    seen = [before]
    for end in ("'?'", "'.'"):  # in a package beside it
        (folder / "others" / "all.py").write_text(f"END = {end}\n")
        seen.append(made_by(Stage(file), [], Digests({}))["inputs"])
        assert seen[-1].keys() == {"my code/my_parts.py"} and seen[-1] not in seen[:-1]


def reward_named(name: str) -> object:
    """The reward behind a name, as a configuration builds it."""
    from jsonargparse import ArgumentParser

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


FUNCTIONS = """
from __future__ import annotations
import functools
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import Gone
    from lnlit.interfaces import RewardRequest

def typed(request: RewardRequest, worth: float = 1.0) -> float:
    return worth

def untyped(request, worth: Gone = 1):
    return worth

def wrapping(function):
    def wrapped(*args, **kwargs):
        return function(*args, **kwargs)
    return functools.wraps(function)(wrapped)

class Calls:
    def __call__(self, request, worth: float = 1.0):
        return worth

def takes(request, function: float = 0.0, worth: float = 1.0, self: int = 0):
    return worth + function

def nothing(): ...
def keyword(*, request): ...
async def later(request): ...
def one_by_one(request):
    yield 1.0

decorated = wrapping(typed)
brief = lambda request, worth=1.0: worth
called = Calls()
partial = functools.partial(typed)
"""


@pytest.mark.parametrize("name", ["typed", "decorated", "brief", "called", "partial", "takes"])
def test_whatever_a_file_can_call_judges_wherever_it_is_sent(folder, name):
    """By its name in the file: what the function calls itself is another thing, and a lambda has no name."""
    (folder / "functions.py").write_text(FUNCTIONS)
    sent = pickle.dumps(reward_named(f"{folder}/functions.py:{name}"))
    for module in [module for module in sys.modules if module.startswith("lnlit.own.functions")]:
        del sys.modules[module]  # as in another process
    found = pickle.loads(sent)  # noqa: S301  what we sent
    assert found.score(front.RewardRequest([], "", False)) == 2.0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing", "nothing takes no request. Expected a function such as `def nothing(request, weight"),
        ("keyword", "keyword takes no request."),
        ("later", "later is a coroutine or a generator, whose result is no number."),
        ("one_by_one", "one_by_one is a coroutine or a generator"),
        ("untyped", "untyped: the type of an argument is not known when it runs: name 'Gone' is not defined."),
    ],
)
def test_a_function_that_cannot_judge_is_refused_when_it_is_named(folder, name, told):
    (folder / "functions.py").write_text(FUNCTIONS)
    with pytest.raises(UserError) as refused:
        names.resolve(front.Reward, f"{folder}/functions.py:{name}")
    assert told in str(refused.value)


SOURCES = """
from lnlit import Source

class Short(Source):
    def rows(self):
        return iter([])

class Asks(Source):
    def rows(self, start):
        return iter([])

class More(Source):
    def rows(self, start: int = 0, limit: int = 8, *args):
        return [{"prompt": "a", "completion": "b"}] * limit

class Nothing(Source):
    def rows(self, start=0):
        pass

class Numbers(Source):
    def rows(self, start=0):
        yield {"prompt": "a", "completion": "b"}
        yield 7
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Short", "Short.rows(self) cannot be called as Source.rows(self, start: 'int' = 0) -> "),
        ("Asks", "Asks.rows(self, start) cannot be called as"),
        ("Nothing", "error: Nothing: rows(0) gave None; expected an iterator of rows."),
        ("Numbers", "error: row 2 of Numbers: is 7; expected a dict with keys such as messages."),
        ("More", None),
    ],
)
def test_a_source_that_is_none_is_told_by_what_it_does(lnlit, config, folder, name, told):
    (folder / "sources.py").write_text(SOURCES)
    tree = yaml.safe_load(config().read_text())
    tree["data"]["init_args"]["train"] = {"class_path": "my code/sources.py:" + name}
    (folder.parent / "run.yaml").write_text(yaml.safe_dump(tree))
    code, _, err = lnlit("fit", "--config", folder.parent / "run.yaml")
    assert (code == 0) if told is None else (code == 2 and told in err), err


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

"""Every snippet of README.md and the site is tried: Python runs, YAML and command lines are read as lnlit does."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT, Fence, fences

from lnlit.cli.ablate import _read
from lnlit.cli.arguments import CommandParser, with_configs
from lnlit.cli.arms import runs_of
from lnlit.cli.check import check
from lnlit.cli.main import COMMANDS, main
from lnlit.cli.pipeline import Stage, position, stages_of
from lnlit.cli.plan import _divided
from lnlit.cli.stage_command import StageCommand
from lnlit.cli.stages import _FLAGS
from lnlit.cli.train import check as check_fit
from lnlit.data.preference_rows import preference_row
from lnlit.data.rows import asked, conversation
from lnlit.errors import UserError
from lnlit.testing.tiny import tiny_folder, tiny_spec

QUESTION = {"role": "user", "content": "Why is the sky blue?"}
ANSWER = {"role": "assistant", "content": "Air scatters blue light most."}


class Parsed(Exception):
    """Raised in place of carrying out a command that has been read."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages assume it: recipes, a model, rows, and the files that fences say they are."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(ROOT / "yaml", folder / "yaml")
    tiny_folder(folder / "runs" / "smollm2", tiny_spec().replace(context_length=1024))
    rows = "".join(json.dumps({"messages": [QUESTION, ANSWER]}) + "\n" for _ in range(40))
    (folder / "rows.jsonl").write_text(rows)
    (folder / "gsm8k.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    (folder / "chats").mkdir()
    (folder / "chats" / "some.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    for fence in fences("yaml", "python"):
        if fence.name:
            (folder / fence.name).write_text(fence.text)
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end once their words have been read."""
    depth = 0

    def outermost(read: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                found = read(*args, **kwargs)
            finally:
                depth -= 1
            if not depth:
                raise Parsed(found)
            return found

        return wrapped

    for name in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(CommandParser, name, outermost(getattr(CommandParser, name)), raising=False)
    monkeypatch.setattr(StageCommand, "result", lambda self, name, options: self.parsed(name, options))


def lines(fence: Fence) -> Iterator[list[str]]:
    for line in fence.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def refused(words: list[str]) -> str | None:
    """Why lnlit does not take a command line, or None."""
    name, *rest = words
    if name not in COMMANDS:
        return f"there is no command {name}"
    if name in ("fit", "validate"):
        check_fit([word for word in with_configs(rest, _FLAGS) if word not in ("--print_config", "--debug")])
        return None
    try:
        if code := main(["--debug", *words]):
            return f"exit code {code}"
    except Parsed as parsed:
        (found,) = parsed.args
        return further(name, (found, _divided(with_configs(rest))[1]) if name == "plan" else found)
    return None


def further(name: str, found: Any) -> str | None:
    """Looks at what a command would look at next."""
    options, others = found if isinstance(found, tuple) else (found, [])
    if name in ("run", "plan") and options.folder:
        stages = stages_of(Path(options.folder))
        for word in (getattr(options, key, None) for key in ("first", "last", "only")):
            assert word is None or position(stages, word) >= 0
    elif name == "plan":
        check_fit([word for file in options.config for word in ("--config", file)] + others)
    elif name == "data":
        check_fit(["--config", options.config, *others])
    elif name == "ablate":
        for run in runs_of(_read(options, others)):
            for stage in run.write(Path("arms") / run.name):
                check(stage)
    elif others:
        return f"unknown words {others}"
    return None


BASH = fences("bash")


@pytest.mark.parametrize("fence", BASH, ids=str)
def test_command_lines_are_taken(fence: Fence, here: Path, reading: None, capsys: pytest.CaptureFixture[str]):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    written: set[str] = set()
    for command, *words in lines(fence):
        if command in ("torchrun", "srun"):
            at = words.index("lnlit")
            assert command == "srun" or launched(words[:at])
            command, words = words[at], words[at + 1 :]
        command = command.rpartition("/")[2]
        if command == "lnlit":
            assert refused(words) is None, words
            written |= {f"lnlit-{words[3]}"} if words[:2] == ["plugins", "new"] else set()
        elif command == "make":
            assert set(words) <= targets, words
        elif command == "pip":
            assert words.pop(0) == "install"
            for word in words:
                folder, _, wanted = word.partition("[")
                assert set(filter(None, wanted.rstrip("]").split(","))) <= set(extras)
                assert word.startswith("-") or folder == "lnlit" or folder in written or (ROOT / folder).is_dir(), word
        else:
            assert (command, words[0]) == ("tensorboard", "--logdir"), command


@pytest.mark.parametrize(
    "line",
    [
        "search solve --config yaml/mini/3_solve.yaml --solvr highs",
        "search resolve --config yaml/mini/3_solve.yaml",
        "fit mine.yaml --model.init_args.lora.ranks 8",
        "data show mine.yaml --row 2",
        "run yaml/mini --until 12",
        "plan --config mine.yaml --trainer.max_step 3",
        "chat runs/model --thinking perhaps",
        "eval runs/model --task gsm8k",
        "export runs/mine.ckpt runs/model --quantise fp8",
        "serve runs/model",
    ],
)
def test_a_wrong_command_line_would_be_noticed(line: str, here: Path, reading: None):
    with contextlib.suppress(UserError):
        assert refused(line.split()) is not None


def launched(words: list[str]) -> bool:
    from torch.distributed.run import parse_args

    return parse_args([*words, "lnlit"]).no_python


def configuration(fence: Fence, folder: Path) -> Path:
    """The file that a fence is, or that it becomes a part of."""
    if fence.name:
        return folder / fence.name
    given = yaml.safe_load(fence.text)
    home = folder / "yaml" / "ablations" if "arms" in given else folder
    if fence.into is not None:
        whole = yaml.safe_load((folder / fence.into).read_text())
        place = whole
        for key in str(fence.at).split(".") if fence.at != "." else ():
            place = place[key]
        place |= given
        given = whole
    if "steps" in given:
        given.setdefault("stage", "curate")
    (file := home / "snippet.yaml").write_text(yaml.safe_dump(given))
    return file


@pytest.mark.parametrize("fence", [each for each in fences("yaml") if not each.is_a_file_of_ours], ids=str)
def test_configurations_are_taken(fence: Fence, here: Path, reading: None):
    file = configuration(fence, here)
    if "arms" in yaml.safe_load(file.read_text()):
        assert refused(["ablate", str(file)]) is None
    else:
        check(Stage(file))


@pytest.mark.parametrize(
    "fence", [each for each in fences("python") if not each.is_a_file_of_ours and not each.name], ids=str
)
def test_python_runs(fence: Fence, here: Path):
    exec(compile(fence.text, str(fence), "exec"), {"__name__": "snippet"})


ROWS = {fence: json.loads(fence.text) for fence in fences("json")}


@pytest.mark.parametrize("fence", ROWS, ids=str)
def test_rows_say_what_they_are_said_to_say(fence: Fence):
    """All examples of chats are one conversation, and all examples of preferences one comparison."""
    row = ROWS[fence]
    if "text" in row:
        assert list(row) == ["text"]
    elif "answer" in row:
        assert [turn["role"] for turn in asked(row).messages] == ["user"] and "answer" in asked(row).unread
    elif {"chosen", "completions", "preferred_output"} & set(row):
        read = preference_row(row)
        texts = [each if isinstance(each, str) else each["content"] for each in read["completions"]]
        assert read["messages"] == [QUESTION] and texts == [ANSWER["content"], "It is not."]
        assert read["rewards"] == [1, 0]
    else:
        *before, question, answer = conversation(row).messages
        assert [question, answer] == [QUESTION, ANSWER]
        says = {"thinking", "reasoning", "system_prompt"} & set(row)
        assert before == ([{"role": "system", "content": "detailed thinking off"}] if says else [])


def test_every_fence_says_its_language():
    assert not [str(fence) for fence in fences("")]
    assert {fence.kind for fence in fences("bash", "json", "python", "text", "yaml")} == {
        "bash", "json", "python", "text", "yaml",
    }  # fmt: skip

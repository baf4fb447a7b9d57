"""The `lnlit` command: finds the subcommand, imports only that one, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a bug in lnlit (with a traceback), 2 something that the user can fix, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from lnlit import __version__
from lnlit.errors import UserError, causes, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")
#: name -> ("module:function" of this package, which takes the other arguments and returns an exit code, a line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("stages:fit", "train: lnlit fit --config a.yaml [--config b.yaml] [--model.init_args.key value]"),
    "validate": ("stages:validate", "run the validation loop of a configuration"),
    "import": ("convert:import_command", "read any supported checkpoint and write a model folder"),
    "export": ("convert:export_command", "write a folder that transformers and vLLM load"),
    "search": ("stage_commands:SEARCH", "find the best heterogeneous child of a model, stage by stage"),
    "rollout": ("stage_commands:ROLLOUT", "find out how hard prompts are for a model, before it learns from them"),
    "curate": ("stage_commands:CURATE", "make training rows from rows: lnlit curate --config FILE.yaml [--strict]"),
    "eval": ("evaluate:main", "benchmark models, with intervals: lnlit eval A B --against P --tasks gsm8k"),
    "merge": ("stage_commands:MERGE", "make one model of several of the same architecture: lnlit merge A B --out C"),
    "run": ("run:main", "run a folder of numbered stages in order; finished ones are skipped"),
    "plan": ("plan:main", "what stages take on N GPUs, and whether they fit: lnlit plan FOLDER --gpu h100-80g"),
    "ablate": ("ablate:main", "compare variants of a configuration over several seeds, with intervals"),
    "data": ("data:main", "show what is learned of a configuration's rows: lnlit data show CONFIG"),
    "chat": ("chat:main", "talk to a model: lnlit chat MODEL [--thinking on|off|none]"),
    "card": ("card:card_command", "write a model folder's card from its lnlit.json: lnlit card FOLDER"),
    "push": ("card:push_command", "upload a model folder to the Hugging Face hub: lnlit push FOLDER OWNER/NAME"),
    "recipes": ("recipes:main", "list configurations to begin with, show or copy one: lnlit recipes copy NAME DIR"),
    "plugins": (
        "plugins:main",
        "list every part by kind and name, find one, or begin one of yours: lnlit plugins new KIND NAME",
    ),
    "completion": ("completion:main", 'make a shell complete commands: eval "$(lnlit completion bash)"'),
    "env": ("env:main", "what a bug report has to say: versions, plugins, processors, memory"),
}

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `--debug` anywhere lets errors through as tracebacks."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [argument for argument in given if argument != "--debug"]
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse after --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has left, as in `lnlit plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = user_message(error)
        if message is None or len(arguments) != len(given):
            raise
        return _fail(f"error: {message}", 2)


def user_message(error: BaseException) -> str | None:
    """One clear message if the user can fix `error`, else None: then it is a bug and deserves its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if any(_is_disk_full(cause) for cause in causes(error, contexts=True)):
        return (
            f"the disk is full or a quota is reached while saving ({_one_line(error)}). What was saved before is "
            "intact. Free some space and repeat the command, a training run with --ckpt_path last."
        )
    if isinstance(error, UnicodeEncodeError):
        said = ascii(error.object[error.start : error.end][:8])
        if error.encoding != "utf-8":  # of a terminal, or of a protocol
            return f"{said} cannot be written in {error.encoding}. Set PYTHONUTF8=1, or say it in other letters."
        return f"a text or a name holds {said}, which is half of a character, so no file can hold it. Correct the text."
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a path holds a null character, which no file's name can. Correct the path."
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):
        return f"a link leads back to itself: {str(error).removeprefix('Symlink loop from ')}. Correct the path."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {(error.strerror or type(error).__name__).lower()}"
    return None


def told(function: Callable[P, R]) -> Callable[P, R]:
    """A context in which every error that the command line reports in one line is a `UserError` with that line."""

    @functools.wraps(function)
    def telling(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            raise UserError(message) from error

    return telling


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"lnlit {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}.{did_you_mean(name, COMMANDS)} Allowed: {', '.join(COMMANDS)}.")
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(f"lnlit.cli.{module}"), function)(rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lnlit COMMAND ... [--debug]",
            "",
            "Compress and post-train Llama-family models on PyTorch Lightning.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            f"  {'--version':<{width}}  print the version",
            f"  {'--debug':<{width}}  show tracebacks of errors",
            "",
            "`lnlit COMMAND --help` explains a command.",
        ]
    )


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    # safetensors and torch's zip writer report the system's error as text only
    return any(f"os error {code}" in str(error) or os.strerror(code) in str(error) for code in _DISK_FULL)


def _one_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())

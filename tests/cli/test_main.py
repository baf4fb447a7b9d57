"""The front door: commands, exit codes, one-line errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from lnlit import __version__
from lnlit.cli import main as main_module
from lnlit.cli.main import COMMANDS, main, user_message
from lnlit.errors import UserError


@pytest.fixture
def command(monkeypatch):
    """`command(function)` puts a command of that behaviour in the table as `work`."""

    def put(function):
        monkeypatch.setattr(main_module, "_test_command", function, raising=False)
        monkeypatch.setitem(COMMANDS, "work", ("main:_test_command", "works"))

    return put


def raising(error: BaseException):
    def run(argv: list[str]) -> int:
        raise error

    return run


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_stage_explains_itself(stage, capsys):
    for option in ("--help", "-h"):
        assert main([stage, option]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: lnlit {stage} FILE.yaml") and "--help_all" in out
    assert main([stage]) == 2
    assert f"See `lnlit {stage} --help`" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lnlit {__version__}\n"


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert main(["fitt"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'fitt'. Did you mean 'fit'? Allowed: fit, ")


def test_a_command_gets_the_rest_of_the_line_and_gives_the_exit_code(command):
    command(lambda argv: 7 if argv == ["a", "--b"] else 1)
    assert main(["work", "a", "--b"]) == 7


@pytest.mark.parametrize("arguments", [["work", "--debug"], ["--debug", "work"], ["work", "a", "--debug", "b"]])
def test_debug_anywhere_lets_the_error_through(command, arguments):
    command(raising(UserError("x")))
    with pytest.raises(UserError):
        main(arguments)


def test_a_users_error_is_one_line_and_code_2(command, capsys):
    command(raising(UserError("the message")))
    assert main(["work"]) == 2
    assert capsys.readouterr() == ("", "error: the message\n")


def test_a_bug_keeps_its_traceback(command):
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["work"])


def test_ctrl_c_is_130_and_one_line(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert main(["work"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def wrapped(inner: Exception) -> RuntimeError:
    outer = RuntimeError("writer failed")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "model.ckpt"),
        OSError(errno.EFBIG, "File too large"),
        wrapped(OSError(errno.ENOSPC, "No space left on device")),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_that_says_what_survives(command, capsys, error):
    command(raising(error))
    assert main(["work"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "disk is full" in err and "What was saved before is intact" in err


def test_other_errors_of_the_system_are_not_called_a_full_disk():
    assert user_message(OSError(errno.EIO, "Input/output error")) is None
    assert user_message(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt")) == (
        "a.txt: no such file or directory"
    )


def run(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lnlit.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_reader_that_leaves_is_not_an_error():
    process = run("plugins", env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_commands_that_use_argparse_report_one_line():
    process = run("import", "only-one")
    _, err = process.communicate()
    assert (process.returncode, err) == (
        2,
        "error: the following arguments are required: OUT. See `lnlit import --help`.\n",
    )


@pytest.mark.parametrize(
    ("text", "encoding", "says"), [("ü", "ascii", "written in ascii"), ("\ud800", "utf-8", "half")]
)
def test_texts_that_cannot_be_written_are_told_for_what_they_are(text, encoding, says):
    with pytest.raises(UnicodeEncodeError) as caught:
        text.encode(encoding)
    assert says in str(user_message(caught.value))

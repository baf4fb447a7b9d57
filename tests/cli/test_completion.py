"""A shell completes commands, stages, recipes and files; asked is bash itself."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from lnlit.cli.completion import script
from lnlit.cli.main import COMMANDS

ASK = """
eval "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lnlit
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["lnlit", "ex"], {"export"}),
        (["lnlit", "search", "re"], {"refine", "realize", "report"}),
        (["lnlit", "recipes", "copy", "quick"], {"quickstart/sft"}),
        (["lnlit", "recipes", "s"], {"show"}),
        (["lnlit", "fit", "min"], {"mine.yaml"}),
        (["lnlit", "completion", "z"], {"zsh"}),
        (["lnlit", "zz"], {""}),
    ],
)
def test_bash_completes(tmp_path, typed, offered):
    (tmp_path / "mine.yaml").touch()
    command = ["bash", "-c", ASK, "bash", *typed]
    done = subprocess.run(
        command, cwd=tmp_path, env={"SCRIPT": script("bash"), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.strip("\n").split("\n")) == offered


def test_every_command_is_offered(lnlit):
    code, out, _ = lnlit("completion", "zsh")
    assert code == 0 and all(name in out for name in COMMANDS) and out.startswith("autoload -U +X bashcompinit")

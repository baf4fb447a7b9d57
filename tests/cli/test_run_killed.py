"""`lnlit run` killed without a word: its stage ends with it, and the same command ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import warm

from lnlit.cli.guard import guarded

COMMAND = [sys.executable, "-m", "lnlit.cli.main", "run"]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def until(true: Callable[[], object], seconds: float = 90) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(true())


def trainers(file: str) -> Iterator[int]:
    """Processes that train by a file of this name."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fit" in words and any(word.endswith(file.encode()) for word in words) and b"lnlit.cli.guard" not in words:
            yield int(status.parent.name)


@LINUX
def test_a_trainer_ends_with_a_killed_pipeline_and_the_same_command_ends_the_same(config, tmp_path):
    """The result is that of a run that nobody disturbed, byte for byte, and no two trainers run at once."""
    swaps = [
        ("  enable_checkpointing: false\n", ""),
        ("max_steps: 2\n", "max_steps: 120\n  default_root_dir: NAME\n  callbacks:\n    - CHECKPOINT\n    - EXPORT\n"),
        ("- CHECKPOINT\n", "- {class_path: lnlit.callbacks.Checkpoint, init_args: {every_n_steps: 10}}\n"),
        ("- EXPORT\n", "- {class_path: ExportModel, init_args: {out: NAME-out}}\n"),
    ]
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        file = config(*swaps)
        file.write_text(file.read_text().replace("NAME", name + "-run"))
        file.rename(tmp_path / name / f"1_{name}.yaml")
    calm = warm.run("-m", "lnlit.cli.main", "fit", "--config", "calm/1_calm.yaml", cwd=tmp_path)
    assert calm.returncode == 0, calm.stderr
    first = subprocess.Popen([*COMMAND, "killed"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert until(lambda: list((tmp_path / "killed-run" / "checkpoints").glob("step-*.ckpt")))
    (trainer,) = trainers("1_killed.yaml")
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = subprocess.Popen([*COMMAND, "killed"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    most = 0
    while again.poll() is None:
        most = max(most, len(list(trainers("1_killed.yaml"))))
        time.sleep(0.05)
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert most == 1 and not Path(f"/proc/{trainer}").exists() and "resuming from" in err
    files = [(tmp_path / f"{name}-run-out" / "model.safetensors").read_bytes() for name in ("calm", "killed")]
    assert files[0] == files[1]


#: Starts a process of its own that starts another, in a session of its own, and waits.
FAMILY = """
import os, subprocess, sys, time
if len(sys.argv) > 2:
    inner = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()} '); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", inner, sys.argv[1]], start_new_session=True)
else:
    subprocess.Popen([sys.executable, "-c", os.environ["FAMILY"], sys.argv[1], "child"], start_new_session=True)
open(sys.argv[1], "a").write(f"{os.getpid()} ")
time.sleep(float(os.environ["STAYS"]))
"""


def alive(pids: list[int]) -> list[int]:
    def lives(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    return [pid for pid in pids if lives(pid)]


@LINUX
@pytest.mark.parametrize("killed", [True, False])
def test_nothing_that_a_stage_has_started_is_left(killed, tmp_path, monkeypatch):
    """Children of children too, in sessions of their own; when `lnlit run` is killed, and when the stage just ends."""
    monkeypatch.setenv("FAMILY", FAMILY)
    monkeypatch.setenv("STAYS", "600" if killed else "1")
    log = tmp_path / "pids"
    code = (
        "import sys; import lnlit.cli.guard as g; print(g.guarded([sys.executable, '-c', sys.argv[1], sys.argv[2]], "
        "open(sys.argv[2] + '.lock', 'w').fileno())[0])"
    )
    runner = subprocess.Popen([sys.executable, "-c", code, FAMILY, str(log)], stdout=subprocess.PIPE, text=True)
    assert until(lambda: log.exists() and len(log.read_text().split()) == 3)
    pids = list(map(int, log.read_text().split()))
    if killed:
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    else:
        assert runner.communicate()[0] == "0\n"
    assert until(lambda: not alive(pids), 30)


def test_a_command_answers_with_its_exit_code_or_signal(tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        assert guarded([sys.executable, "-c", "raise SystemExit(3)"], lock.fileno()) == (3, 0)
        dies = f"import os; os.kill(os.getpid(), {signal.SIGKILL})"
        assert guarded([sys.executable, "-c", dies], lock.fileno()) == (137, 0)
        assert not os.get_inheritable(lock.fileno())

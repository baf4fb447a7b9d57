"""How a run ends: signals, a full disk, and going on from `--ckpt_path last`."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import warm

SAVING = ("  enable_checkpointing: false\n", "")
ENDLESS = ("max_steps: 2", "max_steps: 1000000")
#: A command of lnlit whose files cannot be larger than this.
FULL = """
import resource, sys
from lnlit.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
sys.exit(main(sys.argv[1:]))
"""


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs" / "checkpoints").glob("*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_gives_its_exit_code(config, lnlit, tmp_path, number, code):
    process = warm.Process("-m", "lnlit.cli.main", "fit", "--config", config(SAVING, ENDLESS), cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not checkpoints(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"stopped by {number.name}" in err.splitlines()[-1] and "Traceback" not in err
    (saved,) = checkpoints(tmp_path)
    step = int(saved.removeprefix("step-").removesuffix(".ckpt"))
    assert f"saved a checkpoint at step {step}" in err

    longer = config(SAVING, ("max_steps: 2", f"max_steps: {step + 1}"))
    code, _, err = lnlit("fit", "--config", longer, "--ckpt_path", "last")
    assert code == 0 and f"resuming from runs/checkpoints/{saved}" in err, err
    assert checkpoints(tmp_path) == [f"step-{step + 1}.ckpt"]


def test_a_full_disk_leaves_the_previous_checkpoint(config, lnlit, tmp_path):
    """A limit on the size of files stands for the full disk: the write fails part way, as on one."""
    assert lnlit("fit", "--config", config(SAVING))[0] == 0
    assert checkpoints(tmp_path) == ["step-2.ckpt"]
    before = (tmp_path / "runs" / "checkpoints" / "step-2.ckpt").read_bytes()

    longer = config(SAVING, ("max_steps: 2", "max_steps: 4"))
    script = tmp_path / "full.py"
    script.write_text(FULL.format(len(before) // 2))
    done = warm.run(script, "fit", "--config", longer, "--ckpt_path", "last", cwd=tmp_path, timeout=100)
    err = done.stderr
    last = err.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in err, err
    assert last.startswith("error: the disk is full") and "What was saved before is intact" in last
    assert checkpoints(tmp_path) == ["step-2.ckpt"]
    assert (tmp_path / "runs" / "checkpoints" / "step-2.ckpt").read_bytes() == before


def test_last_without_a_checkpoint_starts_from_the_beginning(lnlit, config):
    code, _, err = lnlit("fit", "--config", config(), "--ckpt_path", "last")
    assert code == 0 and "no checkpoint in runs/checkpoints yet" in err, err

"""A pipeline that is killed again and again writes what it would have written, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lnlit.curation.step import Step
from lnlit.errors import UserError
from lnlit.stages.curate import curate

SCRIPT = Path(__file__).with_name("kill_curate.py")


def killed(folder: Path, kills: int, workers: int) -> int:
    folder.mkdir()
    command = [sys.executable, str(SCRIPT), str(folder), str(kills), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)  # ends when nobody holds its output
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(("workers", "kills"), [(1, 8), (2, 3)])
def test_the_same_file(tmp_path, workers, kills):
    assert killed(tmp_path / "whole", 0, 1) == 0
    # The first kill comes before the sleeps of the first step can be over; a fast machine may be done before the last.
    assert killed(tmp_path / "killed", kills, workers) >= 1
    assert (tmp_path / "killed/out.jsonl").read_bytes() == (tmp_path / "whole/out.jsonl").read_bytes()
    left = {file.name for file in (tmp_path / "killed").iterdir()}
    assert left == {"log.txt", "out.counts.json", "out.jsonl", "rows.jsonl"}


class Dies(Step):
    """Kills the process that it runs in at one row, unless that has happened before."""

    def __init__(self, row: int, died: str) -> None:
        super().__init__()
        self._row, self._died = row, died

    def each(self, row):
        if row["number"] == self._row and not Path(self._died).exists():
            Path(self._died).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return row


def test_a_worker_that_is_killed_is_one_line_and_hangs_nothing(rows_in, tmp_path):
    # Rows are long enough to reach the disk before the process is killed.
    rows = [{"number": number, "prompt": "long " * 4000} for number in range(40)]
    source, out = rows_in(rows), tmp_path / "out.jsonl"
    steps = [Dies(21, str(tmp_path / "died"))]
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"curate 2/3, Dies: the process of a task was killed.*same command again"
    ) as told:
        curate(source, steps, str(out), workers=2, tasks=4)
    assert time.monotonic() - began < 60 and "\n" not in str(told.value) and not out.exists()
    curate(source, steps, str(out), workers=2, tasks=4)
    assert [json.loads(line)["number"] for line in out.read_text().splitlines()] == list(range(40))


def test_a_run_that_was_killed_while_it_cleaned_up_leaves_nothing_after_the_next(rows_in, tmp_path, monkeypatch):
    source, out = rows_in([{"number": number} for number in range(4)]), tmp_path / "out.jsonl"

    def killed(folder, **_):
        if folder.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        curate(source, [], str(out))
    monkeypatch.undo()
    assert (tmp_path / "out.jsonl.work.old").is_dir()
    before = out.read_bytes()
    curate(source, [], str(out))
    assert out.read_bytes() == before and not (tmp_path / "out.jsonl.work.old").exists()

"""A pipeline that is killed again and again writes what it would have written, and leaves no process behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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

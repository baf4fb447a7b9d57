"""A warm process is a process: what it is told reaches it, and what it does is seen as of any other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import warm

SCRIPT = """
import atexit, json, os, random, sys, time
import numpy
atexit.register(lambda: print("left"))
if "stays" in sys.argv:
    time.sleep(100)
strings = [hash("a"), numpy.random.rand(), random.random()]
print(json.dumps([sys.argv, os.getcwd(), os.environ["SAID"], len(os.environ), os.getpgrp() == os.getpid(), strings]))
raise SystemExit("enough")
"""


@pytest.fixture
def script(tmp_path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def test_it_has_its_own_arguments_environment_streams_exit_and_chance(script, tmp_path):
    given = {"env": {"SAID": "yes"}, "cwd": tmp_path, "timeout": 60}
    found = [warm.run(script, "one", start_new_session=True, **given), warm.run(script, server=1, **given)]
    assert [done.returncode for done in found] == [1, 1] and [done.stderr for done in found] == ["enough\n"] * 2
    lines = [done.stdout.splitlines() for done in found]
    assert [line[1:] for line in lines] == [["left"]] * 2
    one, other = (json.loads(line[0]) for line in lines)
    assert one[:5] == [[str(script), "one"], str(tmp_path), "yes", 1, True]
    assert other[:5] == [[str(script)], str(tmp_path), "yes", 1, False]
    assert not {*one[5]} & {*other[5]}


def test_a_signal_ends_it_and_so_does_a_late_answer(script):
    process = warm.Process(script, "stays", env={"SAID": ""})
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == process.returncode == -signal.SIGTERM
    late = warm.Process(script, "stays", env={"SAID": ""})
    with pytest.raises(subprocess.TimeoutExpired):
        late.communicate(timeout=0.1)
    assert late.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(late.pid, 0)


def test_a_rank_that_fails_ends_the_others(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text("import os, time\nassert os.environ['RANK'] == '0', 'not me'\ntime.sleep(100)\n")
    with pytest.raises(AssertionError, match=r"(?s)rank 0 ended with -9.*rank 1 ended with 1.*not me"):
        warm.torchrun(2, script, cwd=tmp_path, timeout=60)


STANDING_IN = """
import json, multiprocessing, os, sys, time

def work(queue):
    queue.put([os.getppid(), sys.executable])
    time.sleep(100)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    child = context.Process(target=work, args=(queue,))
    child.start()
    found = [sys.stdin.read(), os.read(int(sys.argv[1]), 9).decode(), os.getppid(), sys.executable]
    print(json.dumps([found, queue.get(), [os.getpid(), child.pid]]), flush=True)
    time.sleep(100)
"""


def test_its_stand_in_is_all_that_is_seen_of_it(tmp_path):
    """It has its input, descriptors and parent, starts processes by the same executable, and ends with all of these."""
    (tmp_path / "script.py").write_text(STANDING_IN)
    reads, writes = os.pipe()
    os.write(writes, b"passed")
    command = [warm.python(), "-u", str(tmp_path / "script.py"), str(reads)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=[reads], start_new_session=True, text=True, **pipes) as process:
        for end in (reads, writes):
            os.close(end)
        assert process.stdin and process.stdout
        process.stdin.write("asked")
        process.stdin.close()
        found, of_child, (own, child) = json.loads(process.stdout.readline())
        assert found == ["asked", "passed", os.getpid(), warm.python()]
        assert of_child == [own, warm.python()]
        os.killpg(process.pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while any(map(is_running, (own, child))):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(process: int) -> bool:
    """Ended ones that nobody has waited for yet are not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False

"""A few of the command lines with mistakes that `tests/fuzz/fuzz.py` makes by the thousand."""

from __future__ import annotations

from pathlib import Path

import warm

FUZZ = Path(__file__).parents[1] / "fuzz" / "fuzz.py"


def test_no_call_ends_in_a_traceback_or_loses_a_file(record_property):
    done = warm.run(FUZZ, "--tries", "40", "--seed", "500", timeout=280)
    assert done.returncode == 0 and "faults: 0" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
    record_property("mistaken calls", 40)

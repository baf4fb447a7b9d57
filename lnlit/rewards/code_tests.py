"""Pays for code that passes its tests."""

from __future__ import annotations

import re
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import Reward, RewardRequest
from lnlit.rewards.code_sandbox import Isolation, Limits, passes
from lnlit.thinking import answer_of

_FENCE = re.compile(r"^ {0,3}```[ \t]*(\w*)[^\n`]*\n(.*?)^ {0,3}```[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON = {"python", "python3", "py", "py3"}


class CodeTestsReward(Reward):
    """1 where the last fenced Python block after the thinking passes all tests of the row, else 0. A block that says
    nothing of its language counts only where none says that it is Python.

    A row has Python source under `tests` (HumanEval's: a function `check` that is called with the row's `entry_point`)
    or a list of assert statements. What is neither the tests' own nor Python's belongs to the candidate, and so does
    the `entry_point`: a function with a name of Python's own, such as `sum`, must be it.

    The candidate runs in a process of its own and the tests in another; calls and plain values (numbers, text,
    containers, views of dictionaries, iterators) cross between them, so printing, exiting, redefining `assert`, objects
    that equal everything and a look at the tests gain nothing. An argument changed in place is changed for the tests
    too. An exception arrives as the nearest of Python's own, with its text. Classes and functions as values do not
    cross: tests that hand one over, or more than 64 MiB in their first call, stop the run with a `UserError`, and so do
    tests that fail before they call the candidate; tests that want one back fail.

    With `isolation: namespaces` (Linux) the candidate has no network, sees no other process and no file but Python's
    own and the system's libraries, read-only, and can fill 16 MiB of memory with files. It cannot start processes or
    threads. What is left to it are mistakes of the kernel and of Python. With `isolation: limits` there are limits of
    time, memory, file size and processes, and nobody's rights where the run is root's; that stops accidents, not
    attacks: open to it are the network, every file that the user (or nobody, where the run is root's) may read,
    overwrite or delete, and, without root, every process of the same user. Only Python's standard library can be
    imported.

    Args:
        tests: key of the tests in the row.
        preamble: key of code in the row that runs before the candidate's, such as HumanEval's `prompt` with its imports
            and helpers; the tests see it too.
        cpu_s: seconds of processor time for a candidate.
        wall_s: seconds for all of it, after which the candidate has failed; be generous on a busy machine.
        memory_mib: address space, Python's own included.
        isolation: `namespaces`, or `limits` where that is not to be had.
    """

    def __init__(
        self,
        tests: str = "test",
        preamble: str | None = None,
        cpu_s: float = 4.0,
        wall_s: float = 10.0,
        memory_mib: int = 1024,
        isolation: Isolation = "namespaces",
    ) -> None:
        self.tests, self.preamble = tests, preamble
        self.limits = Limits(cpu_s, wall_s, memory_mib * 2**20, isolation)
        self.time_limit_s = wall_s + 20  # the last resort: it has to start two processes and to clean up

    def score(self, request: RewardRequest) -> float:
        tests = self._text(request, self.tests)
        preamble = self._text(request, self.preamble) if self.preamble else ""
        code = last_block(answer_of(request.completion))
        return (
            0.0 if code is None else float(passes(code, tests, request.row.get("entry_point"), preamble, self.limits))
        )

    def _text(self, request: RewardRequest, key: str) -> str:
        found: Any = request.row.get(key)
        lines = found if isinstance(found, list) else [found]
        if not lines or not all(isinstance(line, str) for line in lines):
            raise UserError(f"code_tests: the row's {key!r} must be Python source or a list of it, got {found!r:.200}")
        return "\n".join(lines)


def last_block(text: str) -> str | None:
    """The code of the last fenced block that is Python's, or else of the last that says nothing of its language."""
    blocks = [(match[1].lower(), match[2]) for match in _FENCE.finditer(text.replace("\r\n", "\n"))]
    said, unsaid = [code for tag, code in blocks if tag in _PYTHON], [code for tag, code in blocks if not tag]
    return next(reversed(said or unsaid), None)

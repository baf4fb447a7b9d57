"""A reward for code that passes its tests."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import NoVerdictError, Reward, RewardRequest
from lnlit.rewards.code_sandbox import Isolation, Limits, passes
from lnlit.rewards.code_tree import SOLUTION, beyond_reach, imports, own_names, parse, patched, unknown_names
from lnlit.thinking import answer_of

_FENCE = re.compile(r"^ {0,3}```[ \t]*(\w*)[^\n`]*\n(.*?)^ {0,3}```[ \t]*$", re.DOTALL | re.MULTILINE)
#: Modules that the tests cannot use, because each side is one process with files of its own.
_NOT_THERE = {"concurrent", "multiprocessing", "socket", "subprocess", "tempfile", "threading"}
#: Names through which the candidate uses objects of the tests' side.
_REACHES = {"builtins.input", "sys.stdin", "sys.stdout", "sys.stderr"}
_FAR = "the tests reach into an object of the candidate's, which is in another process"
_PYTHON = {"python", "python3", "py", "py3"}


class CodeTestsReward(Reward):
    """1 where the last fenced Python block after the thinking passes all tests of the row, else 0. A block that says
    nothing of its language counts only where none says that it is Python.

    A row has Python source under `tests_key`, or a list of assert statements: asserts on functions or on classes such
    as `Solution`, HumanEval's `check`, which is called with the row's `entry_point` (also one such as
    `Solution().add`), unittest's cases, or functions called `test_...`, which are run where the tests only define them.
    What is neither the tests' own nor Python's belongs to the candidate, what is imported from `solution` too, and so
    does the `entry_point`: a function with a name of Python's own, such as `sum`, must be it.

    The candidate runs in a process of its own and the tests in another, so printing, exiting, redefining `assert`,
    objects that equal everything and a look at the tests gain nothing. Plain values are copied from one to the other:
    numbers, text, containers, ranges, fractions, decimals, dates, named tuples. What one side does to a list, set or
    dictionary that it was handed is done to the other's. Functions, iterators and objects stay where they are, and the
    other side uses them from afar. An object of the candidate's equals, and is smaller than, no plain value, unless the
    tests make it of a class that they evidently test, by asking for attributes that no plain value has. Of what the
    tests hand over, functions can be called and iterators looped over; only objects of the tests' own classes show
    attributes. An exception arrives as the nearest of Python's own or of those that the tests name, with its text. What
    is printed arrives in the tests' `sys.stdout` or `sys.stderr`, and `input` asks theirs. What they seed `random` with
    seeds the candidate's.

    Rows whose tests cannot be run are named before anything is sampled where that shows without running them: no
    Python, modules that are not there, threads, processes or files to share, nothing to call. Tests that turn out to
    hand over what cannot leave their process, such as a lock, more than 64 MiB in their first call, or to fail before
    they call the candidate, are no verdict, counted as "unsuitable_tests". Of a class of the candidate's the tests can
    derive none.

    With `isolation: namespaces` (Linux on x86_64 or ARM) the candidate has no network, sees no other process and no
    file but Python's own and the system's libraries, read-only, and can fill 16 MiB of memory with files. It cannot
    start processes or threads, send signals, or hold memory that its limit does not count; a filter refuses the system
    calls for that. What is left to it are mistakes of the kernel and of Python. With `isolation: limits` there are
    limits of time, memory, file size and processes, and nobody's rights where the run is root's; that stops accidents.
    On Linux the same filter stands before the network and other processes, and where the kernel has Landlock (5.13)
    only Python's own files can be read and only a folder of its own written, but nothing bounds how many files it
    writes there for as long as it runs, and a filter is no wall of its own; elsewhere the network, every file that the
    user (or nobody) may touch and every process of the same user are open to it. Only Python's standard library can be
    imported.

    Args:
        tests_key: Key of the tests in the row.
        preamble_key: Key of code in the row that runs before the candidate's, such as HumanEval's `prompt` with its
            imports and helpers; the tests see it too.
        cpu_s: Seconds of processor time for a candidate.
        wall_s: Seconds for all of it, after which the candidate has failed; be generous on a busy machine.
        memory_mib: Address space, Python's own included.
        isolation: `namespaces`, or `limits` where that is not to be had.
    """

    def __init__(
        self,
        tests_key: str = "test",
        preamble_key: str | None = None,
        cpu_s: float = 4.0,
        wall_s: float = 10.0,
        memory_mib: int = 1024,
        isolation: Isolation = "namespaces",
    ) -> None:
        self.tests_key, self.preamble_key = tests_key, preamble_key
        self.limits = Limits(cpu_s, wall_s, memory_mib * 2**20, isolation)
        self.time_limit_s = wall_s + 20  # the last resort: it has to start two processes and to clean up

    def score(self, request: RewardRequest) -> float:
        tests = self._text(request.row, self.tests_key)
        preamble = self._text(request.row, self.preamble_key) if self.preamble_key else ""
        code = last_block(answer_of(request.completion))
        if code is None:
            return 0.0
        passed = passes(code, tests, request.row.get("entry_point"), preamble, self.limits)
        if not passed and (far := beyond_reach(parse(tests), parse(preamble))):
            raise NoVerdictError("unsuitable_tests", f"{_FAR}: {far[0]}")
        return float(passed)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Checks what can be checked without running the tests: that they are Python, that their imports are available,
        and that they use a name that can be the candidate's."""
        texts = [self._text(row, self.tests_key), self._text(row, self.preamble_key) if self.preamble_key else ""]
        try:
            tests, preamble = map(parse, texts)
            entry_point = unknown_names(parse(row.get("entry_point") or ""), with_builtins=True)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise UserError(f"code_tests: the row's tests are not Python: {type(error).__name__}: {error}") from error
        modules = {*imports(tests), *imports(preamble)}
        if missing := sorted(modules - sys.stdlib_module_names - {SOLUTION}):
            raise UserError(f"code_tests: the tests need {', '.join(missing)}; only Python's standard library is there")
        if elsewhere := sorted(patched(tests) - _REACHES):
            raise UserError(
                f"code_tests: the tests patch {', '.join(elsewhere)}, which the candidate has of its own, in its "
                f"process; only {', '.join(sorted(_REACHES))} reach it"
            )
        if needed := sorted(_NOT_THERE & set(imports(tests))):
            raise UserError(
                f"code_tests: the tests use {', '.join(needed)}; they run in one thread without a network, and share "
                "no file with the candidate"
            )
        if far := beyond_reach(tests, preamble):
            raise UserError(f"code_tests: {_FAR}: {', '.join(far[:3])}")
        known = own_names(tests) | own_names(preamble)
        if not entry_point and SOLUTION not in modules and not unknown_names(tests) - known:
            raise UserError(
                "code_tests: the tests call nothing that could be the candidate's; an entry_point is missing"
            )

    def _text(self, row: Mapping[str, Any], key: str) -> str:
        found: Any = row.get(key)
        lines = found if isinstance(found, list) else [found]
        if not lines or not all(isinstance(line, str) for line in lines):
            raise UserError(f"code_tests: the row's {key!r} must be Python source or a list of it, got {found!r:.200}")
        return "\n".join(lines)


def last_block(text: str) -> str | None:
    """The code of the last fenced block marked as Python, or else of the last block without a language."""
    blocks = [(match[1].lower(), match[2]) for match in _FENCE.finditer(text.replace("\r\n", "\n"))]
    said, unsaid = [code for tag, code in blocks if tag in _PYTHON], [code for tag, code in blocks if not tag]
    return next(reversed(said or unsaid), None)

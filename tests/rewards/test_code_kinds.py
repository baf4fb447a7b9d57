"""Of the kinds of tests that people write, right code is paid by each and wrong code by none."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import NoVerdictError, RewardRequest
from lnlit.rewards.code_sandbox import check_isolation
from lnlit.rewards.code_tests import CodeTestsReward
from lnlit.rewards.pool import RewardPool

FILE = Path(__file__).with_name("code_kinds.txt")


@pytest.fixture(scope="module", autouse=True)
def isolated():
    try:
        check_isolation("namespaces")
    except UserError as error:
        pytest.skip(str(error))


def kinds() -> dict[str, dict[str, str]]:
    """Name -> its parts: the right `code`, `wrong` code, `test`, and what else the row has."""
    found = {}
    for block in FILE.read_text(encoding="utf-8").split("=== ")[1:]:
        first, *parts = re.split(r"^--- (\w+)\n", block, flags=re.MULTILINE)
        name, _, code = first.partition("\n")
        found[name] = {"code": code, **dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))}
    return found


def score(code: str, row: dict[str, str], reward: CodeTestsReward | None = None) -> float:
    reward = reward or CodeTestsReward(wall_s=60, preamble_key="prompt" if "prompt" in row else None)
    reward.check_row(row)
    return reward.score(RewardRequest([], f"```python\n{code}\n```", False, row))


@pytest.mark.parametrize(("part", "value"), [("code", 1.0), ("wrong", 0.0)])
def test_right_code_is_paid_and_wrong_code_is_not(part, value, record_property):
    rows = kinds()
    with ThreadPoolExecutor(3) as threads:
        found = dict(zip(rows, threads.map(lambda row: score(row[part], row), rows.values()), strict=True))
    record_property(f"{part}_paid", sum(found.values()))
    assert {name for name, paid in found.items() if paid != value} == set()


#: What would pay any answer if an object of the candidate's could speak for itself: (what it is made to do, the test).
SPEAKS = {
    "equals": ("__eq__ = lambda *a: True", "assert f(2) == 4"),
    "differs from nothing": ("__ne__ = lambda *a: False", "assert not f(2) != 4"),
    "is reflected": ("__eq__ = lambda *a: True", "assert 4 == f(2)"),
    "is what is left": ("__sub__ = __rsub__ = lambda *a: 0.0", "assert abs(f(2) - 4) < 1e-6"),
    "is small": ("__sub__ = __abs__ = lambda s, *a: s\n    __lt__ = lambda *a: True", "assert abs(f(2) - 4) < 1e-6"),
    "is in order": ("__lt__ = __le__ = __gt__ = __ge__ = lambda *a: True", "assert 3 < f(2) < 5"),
    "contains": ("__contains__ = lambda *a: True", "assert 4 in f(2)"),
    "is contained": ("__eq__ = lambda *a: True\n    __hash__ = lambda s: hash(4)", "assert f(2) in {4}"),
    "is a key": ("__eq__ = lambda *a: True\n    __hash__ = lambda s: hash(4)", "assert {4: True}[f(2)]"),
    "begins so": ("startswith = endswith = lambda *a: True", "assert f(2).startswith('fo')"),
    "has no more": ("issubset = issuperset = lambda *a: True", "assert f(2).issubset({4})"),
    "is of the type": ("__class__ = int\n    __eq__ = lambda *a: True", "assert isinstance(f(2), int)"),
    "takes all in": ("__iadd__ = __radd__ = lambda *a: 4", "x = 0\nx += f(2)\nassert x == 4 and f(3) == 6"),
    "iterates with nothing": ("__iter__ = lambda s: iter(())", "assert all(a == b for a, b in zip([4], [f(2)]))"),
    "has equal items": ("__getitem__ = lambda s, k: s\n    __eq__ = lambda *a: True", "assert f(2)[0] == 4"),
    "has equal parts": ("__getattr__ = lambda s, n: X()\n    __eq__ = lambda *a: True", "assert f(2).real == 4"),
}


@pytest.mark.parametrize("how", ["function", "class", "list"])
def test_no_object_says_itself_that_it_is_right(how):
    def paid(body: str, test: str) -> float:
        base = "(list)" if how == "list" else ""
        code = f"class X{base}:\n    def __init__(self, *args): pass\n    {body}\n"
        code += "f = X" if how == "class" else "def f(*args): return X()"
        return score(code, {"test": test})

    with ThreadPoolExecutor(3) as threads:
        found = dict(zip(SPEAKS, threads.map(lambda case: paid(*case), SPEAKS.values()), strict=True))
    assert {name for name, value in found.items() if value} == set()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"test": "assert f("}, "not Python: SyntaxError"),
        ({"test": "import numpy as np\nassert f(np.zeros(2)) == 0"}, "the tests need numpy; only"),
        ({"test": "from pytest import raises\nimport pandas.api\nf()"}, "the tests need pandas, pytest; only"),
        ({"test": "def check(f):\n    assert f(1) == 2"}, "call nothing that could be the candidate's"),
        ({"test": "assert 2 + 2 == 4"}, "call nothing that could be the candidate's"),
        ({"test": "import threading, tempfile\nf()"}, "the tests use tempfile, threading; they run in one thread"),
        (
            {"test": "from unittest.mock import patch\nwith patch('time.sleep'): f()"},
            "the tests patch time.sleep, which",
        ),
        ({"test": "assert f()\0"}, "not Python"),
        ({"test": ["assert f()", 7]}, "must be Python source or a list"),
        ({"test": "f()", "entry_point": "f("}, "not Python: SyntaxError"),
        ({"test": "f()", "entry_point": 7}, "not Python: TypeError"),
        ({"question": "?"}, "'test' must be Python source"),
    ],
)
def test_a_row_that_needs_more_is_named_before_anything_is_run(row, message):
    with pytest.raises(UserError, match=message):
        CodeTestsReward().check_row(row)


@pytest.mark.parametrize(
    "test",
    [
        "assert sum([1, 2]) == 3\ndef check(f): assert f(1)",
        "from solution import f\nassert f(1) == 2",
        "assert Solution().f(1) == 2",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 2)",
    ],
)
def test_a_row_that_needs_no_more_is_not(test):
    CodeTestsReward().check_row({"test": test, "entry_point": "f" if "check" in test else None})


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("assert f(__import__('threading').Lock()) == 1", "cannot leave their process: a lock"),
        ("f(__import__('socket').socketpair()[0])", "cannot leave their process: a socket"),
        ("import sys\ntry:\n    f(sys._getframe())\nexcept BaseException: pass", "cannot leave their process: a frame"),
        ("class Mine(X): pass\nassert Mine().f() == 1", "a class cannot be derived"),
        ("try:\n    assert f(1)\n    class Mine(X): pass\nexcept BaseException: pass", "a class cannot be derived"),
        ("raise KeyError('x')", "before they call the candidate, KeyError"),
    ],
)
def test_tests_that_cannot_be_run_so_are_no_verdict_and_counted_by_name(test, why):
    with pytest.raises(NoVerdictError, match=f"unsuitable_tests: .*{why}"):
        score("def f(x): return 1\nclass X: pass", {"test": test, "entry_point": "f"})


def test_a_row_that_has_no_verdict_stops_no_run():
    rows = [{"test": "assert f(__import__('threading').Lock()) == 1"}, {"test": "assert f(1) == 1"}, {"test": "f("}]
    pool = RewardPool({"code": CodeTestsReward(wall_s=60)}, workers=1)
    try:
        with pytest.warns(UserWarning, match="rewards/code/unsuitable_tests, counted from now on"):
            found = pool.score([RewardRequest([], "```\ndef f(x): return 1\n```", False, row) for row in rows])
    finally:
        pool.close()
    assert [row["code"].value for row in found] == [None, 1, None]
    assert pool.outcomes == {"code/unsuitable_tests": 2}

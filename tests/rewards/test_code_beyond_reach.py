"""What the tests of a row cannot do from another process is no verdict, never a silent zero."""

from __future__ import annotations

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import NoVerdictError, RewardRequest
from lnlit.rewards.code_tests import CodeTestsReward

STACK = """
class S:
    def __init__(self): self.xs = []; self.d = {}
    def n(self): return len(self.xs) + len(self.d)
"""
BEYOND = {
    "s = S()\ns.xs.append(1)\nassert s.n() == 1": "s.xs.append",
    "s = S()\ns.d['a'] = 1\nassert s.n() == 1": r"s.d\['a'\]",
    "s = S()\ns.d['a'] = 1\ndel s.d['a']\nassert s.n() == 0": r"s.d\['a'\]",
    "from solution import S\ns = S()\ns.xs.extend([1])\nassert s.n() == 1": "s.xs.extend",
    "import inspect\nassert len(inspect.signature(S).parameters) == 0": "inspect.signature",
}
WITHIN = [
    "s = S()\ns.xs = [1]\nassert s.n() == 1",
    "s = S()\nfound = [s.n()]\nfound.append(s.n())\nassert found == [0, 0]",
    "class Box:\n    def __init__(self): self.xs = []\nb = Box()\nb.xs.append(S().n())\nassert b.xs == [0]",
]


def judge(tests: str, code: str = STACK) -> float:
    return CodeTestsReward(cpu_s=2).score(RewardRequest([], f"```python\n{code}\n```", False, {"test": tests}))


@pytest.mark.parametrize("tests", BEYOND, ids=ascii)
def test_what_cannot_be_done_from_afar_is_no_verdict_and_named_before(tests):
    with pytest.raises(UserError, match=rf"in another process: .*{BEYOND[tests]}"):
        CodeTestsReward().check_row({"test": tests})
    try:
        assert judge(tests) == 1
    except NoVerdictError as none:
        assert none.kind == "unsuitable_tests" and BEYOND[tests].replace("\\", "") in none.why


@pytest.mark.parametrize("tests", WITHIN, ids=ascii)
def test_what_can_be_done_still_is(tests):
    CodeTestsReward().check_row({"test": tests})
    assert judge(tests) == 1
    assert judge(tests, STACK.replace("return len(self.xs)", "return 7 + len(self.xs)")) == 0

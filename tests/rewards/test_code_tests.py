"""Only code that passes its tests is paid, and what a completion does instead stays inside."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import NoVerdictError, RewardRequest
from lnlit.rewards import code_sandbox
from lnlit.rewards.code_sandbox import Limits, check_isolation, passes
from lnlit.rewards.code_tests import CodeTestsReward, last_block

HUMANEVAL = Path(__file__).parents[3] / "shared/data/humaneval/HumanEval.jsonl.gz"
TESTS = ["assert double(2) == 4", "assert double(-3) == -6"]
GOOD = "def double(x):\n    return 2 * x\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no resource limits on Windows")


@pytest.fixture(scope="module", autouse=True)
def isolated():
    if sys.platform == "linux":
        try:
            check_isolation("namespaces")
        except UserError as error:
            pytest.skip(str(error))


def score(code: str, tests=TESTS, reward: CodeTestsReward | None = None, **row) -> float:
    completion = f"<think>```python\nwrong\n```</think>Here:\n```python\n{code}\n```\nThat is it."
    return (reward or CodeTestsReward(cpu_s=1, wall_s=4)).score(
        RewardRequest([], completion, False, {"test": tests, **row})
    )


def inside(body: str) -> str:
    """A right solution that first does something it should not be able to do; what it could, it says by a wrong one."""
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    caught = "(OSError, ImportError, ValueError)"
    return f"def double(x):\n    try:\n{lines}\n    except {caught}:\n        return 2 * x\n    return 'it could'\n"


@pytest.mark.parametrize("isolation", ["namespaces", "limits"])
def test_right_code_is_paid_and_wrong_code_is_not(isolation):
    reward = CodeTestsReward(isolation=isolation)
    assert score(GOOD, reward=reward) == 1
    assert score(GOOD.replace("2", "3"), reward=reward) == 0
    assert score("def half(x):\n    return x", reward=reward) == 0
    assert score("def double(x) return", reward=reward) == 0
    assert score(GOOD, "def check(f):\n    assert f(4) == 8", reward=reward, entry_point="double") == 1
    assert score(GOOD, "def check(f):\n    assert f(4) == 9", reward=reward, entry_point="double") == 0


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "def double(x):\n    import os\n    os._exit(0)",
        "def double(x):\n    raise SystemExit(0)",
        "print('passed')\nimport os\nfor fd in range(1, 64):\n    try: os.write(fd, b'tests\\npassed\\n')\n"
        "    except OSError: pass",
        # objects that equal everything, by themselves or inside what may cross
        "class Same(int):\n    __eq__ = lambda self, other: True\n    __hash__ = int.__hash__\n"
        "def double(x): return Same()",
        "class Same:\n    __eq__ = lambda self, other: True\ndef double(x): return Same()",
        "class Same(list):\n    __eq__ = lambda self, other: True\ndef double(x): return Same()",
        # redefining what tests are made of
        "import builtins\nbuiltins.AssertionError = type('Quiet', (Exception,), {})\ndef double(x): return 0",
        "import builtins\nbuiltins.compile = builtins.exec = lambda *a: None\ndef double(x): return 0",
        "import sys\nsys.modules['__main__'].judge = sys.modules['__main__'].encode = lambda *a: True\n"
        "def double(x): return 0",
        "import __main__\n__main__.encode = lambda value, depth=0: {'int': 'nonsense'}\ndef double(x): return 0",
        "import __main__\n__main__.encode = lambda value, depth=0: {'exec': ['import os; os._exit(0)']}\n"
        "def double(x): return 0",
        "import sys\ndef double(x):\n    frame = sys._getframe()\n    while frame.f_back: frame = frame.f_back\n"
        "    frame.f_globals['json'].dumps = lambda m: '[' * 100000\n    return 0",
        # asking for pardon
        "def double(x):\n    raise AssertionError",
        "while True: pass",
        "def double(x):\n    while True: pass",
        "import time\ntime.sleep(60)",
        "def double(x): return double(x)",
        "import sys\nsys.setrecursionlimit(10**9)\ndef double(x): return double(x)",
        "x = input()",
        "import mmap\nroom = mmap.mmap(-1, 2**31)\n" + GOOD,
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "data = []\nwhile True: data.append('x' * 10**7)",
        "import ctypes\nctypes.string_at(0)",
        "def double(x): return 'x' * 10**8",
        "def double(x): return iter(int, 1)",
    ],
)
def test_nothing_but_right_values_is_paid(code):
    assert score(code) == 0


@pytest.mark.parametrize(
    "body",
    [
        "import os\nos.fork()",
        "import subprocess\nsubprocess.Popen(['/usr/bin/true'])",
        "import socket\nsocket.create_connection(('127.0.0.1', PORT), timeout=1)",
        "import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=1)",
        "open('SECRET').read()",
        "open('/etc/passwd').read()",
        "open('/proc/1/environ').read()",
        "import os\nos.listdir('/proc')",
        "import os\nos.listdir(os.path.dirname('SECRET'))",
        "import json\nopen(json.__file__, 'a')",
        "open('/usr/here', 'w')",
        "with open('big', 'wb') as file:\n    for _ in range(100): file.write(bytes(2**20))",
        "open('/tmp/file', 'wb').write(bytes(2**21))",
        "for n in range(100): open(f'/tmp/{n}', 'wb').write(bytes(2**20))",
        "import os\nos.kill(PARENT, 9)",
        "import os\nos.chroot('/tmp')",
        "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError",
        "import ctypes\nif ctypes.CDLL(None).umount2(b'/usr', 2): raise OSError",
        "import os\nos.setuid(0)",
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (99, 99))",
        "import sys\nif sys.stdin.read() == '': raise OSError",
        "import os\nif not os.environ.keys() - {'LC_CTYPE'}: raise OSError",
        "import numpy",
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_the_outside_is_out_of_reach(body, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the tests")
    with socket.create_server(("127.0.0.1", 0)) as server:
        body = body.replace("PORT", str(server.getsockname()[1])).replace("SECRET", str(secret))
        code = inside(body.replace("PARENT", str(os.getpid())))
        assert score(code, reward=CodeTestsReward(cpu_s=2)) == 1


@pytest.fixture
def traces(monkeypatch, tmp_path) -> Iterator[Callable[[], set[str]]]:
    """Folders and processes of this test's own sandboxes: other tests have some at the same time."""
    mark, command = f"of-{tmp_path.name}-{os.getpid()}", code_sandbox._command
    with tempfile.TemporaryDirectory() as own:
        Path(own).chmod(0o755)  # root's code is nobody's once it runs
        monkeypatch.setattr(tempfile, "tempdir", own)
        monkeypatch.setenv("TMPDIR", own)
        monkeypatch.setattr(code_sandbox, "_command", lambda: [*command(), mark])

        def found() -> set[str]:
            running = set()
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    said = file.read_bytes()
                    if b"code_process.py" in said and mark.encode() in said:
                        running.add(file.parent.name)
            return {path.name for path in Path(own).glob("lnlit-code-*")} | running

        found.mark = mark  # type: ignore[attr-defined]
        yield found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("isolation", ["namespaces", "limits"])
def test_nothing_is_left_behind(isolation, traces):
    code = "import os\nopen('here', 'w').write('x')\ntry: os.setsid()\nexcept OSError: pass\nwhile True: pass"
    assert score(code, reward=CodeTestsReward(cpu_s=1, isolation=isolation)) == 0
    assert not traces()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("isolation", ["namespaces", "limits"])
def test_no_process_outlives_the_one_that_asked(isolation, traces):
    ask = (
        "from lnlit.rewards import code_sandbox\n"
        "from lnlit.rewards.code_sandbox import *\n"
        f"command = [*code_sandbox._command(), {traces.mark!r}]\n"
        "code_sandbox._command = lambda: command\n"
        f"passes('import time; time.sleep(600)', 'f()', None, '', Limits(wall_s=600, isolation={isolation!r}))"
    )
    asker = subprocess.Popen([sys.executable, "-c", ask])
    wait_for(lambda: len(started := [name for name in traces() if name.isdigit()]) >= 2 and started)
    asker.kill()
    asker.wait()
    wait_for(lambda: not [name for name in traces() if name.isdigit()])


def wait_for(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.mark.parametrize(
    "value",
    ["None", "True", "-7", "10**30", "0.1", "float('inf')", "1j", "'ä\\n\\ud800'", "b'\\x00'", "[1, [2]]", "(1,)",
     "{1: 'a', (2,): [3.5]}", "{1, 2}", "frozenset({1})", "{}", "[]",
     "2**63", "-2**63", "float('-inf')", "[True, 1, 1.0]",
     "{1: 'a'}.keys()", "{1: [2]}.items()", "__import__('collections').deque([1, [2]])"],
)  # fmt: skip
def test_plain_values_cross_unchanged(value):
    tests = f"value = {value}\nfound = same(value)\nassert found == value and type(found) is type(value), found"
    assert score("def same(x): return x", tests) == 1
    assert score("def same(x): return 1.5", tests) == 0


def test_views_compare_as_views_do():
    views = "d = {'b': 2, 'a': 1}\nassert keys(d) == {'a', 'b'} and list(keys(d)) == ['b', 'a'] and 'a' in keys(d)\n"
    views += "assert keys(d) != ['b', 'a'] and items(d) == {('a', 1), ('b', 2)} and sorted(values(d)) == [1, 2]"
    code = "def keys(d): return d.keys()\ndef values(d): return d.values()\ndef items(d): return d.items()"
    assert score(code, views) == 1


def test_what_is_changed_in_place_is_changed_whatever_it_equals():
    tests = "from collections import deque\nx, y = [1, 0.0], deque([1])\nchange(x, y)\n"
    tests += "assert repr(x) == '[True, -0.0]' and list(y) == [1, 2]"
    assert score("def change(x, y):\n    x[:] = [True, -0.0]\n    y.append(2)", tests) == 1


def test_a_dataclass_is_one():
    lines = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    code = f"{lines}@dataclass\nclass Point:\n    x: int\ndef double(x): return Point(x).x * 2"
    assert score(code) == 1
    row = {"prompt": "from dataclasses import dataclass\n@dataclass\nclass Of:\n    x: int\n", "entry_point": "double"}
    assert score(GOOD, "assert double(Of(2).x) == 4", CodeTestsReward(preamble_key="prompt"), **row) == 1


@pytest.mark.parametrize(
    ("raises", "catches", "says"),
    [
        ("ValueError('bad')", "ValueError", "bad"),
        ("E('bad')", "ValueError", "bad"),
        ("Told(1, [2])", "LookupError", "told 1"),
        ("KeyError('bad')", "KeyError", "'bad'"),
        ("Alone('bad')", "Exception", "bad"),
        ("FileNotFoundError(2, 'bad')", "OSError", "[Errno 2] bad"),
        ("EOFError('bad')", "EOFError", "bad"),
        ("Odd(lambda: 1)", "TypeError", "odd"),
        ("ExceptionGroup('bad', [ValueError()])", "Exception", "bad (1 sub-exception)"),
        (
            "UnicodeDecodeError('utf-8', b'a', 0, 1, 'bad')",
            "UnicodeDecodeError",
            "'utf-8' codec can't decode byte 0x61 in position 0: bad",
        ),
    ],
)
def test_an_exception_arrives_as_the_nearest_of_pythons_own(raises, catches, says):
    code = (
        "class E(ValueError): pass\nclass Alone(Exception): pass\n"
        "class Told(IndexError):\n    def __str__(self): return f'told {self.args[0]}'\n"
        "class Odd(TypeError):\n    def __str__(self): return 'odd'\n"
        f"def f(x): raise {raises}\ndef g(): return 1"
    )
    tests = f"try:\n    f(1)\nexcept {catches} as e:\n    assert str(e) == {says!r}, e\nelse:\n    assert False\n"
    assert score(code, tests + "assert g() == 1") == 1


def test_big_arguments_cross():
    assert score("def f(x): return len(x)", f"assert f('a' * {20 * 2**20}) == {20 * 2**20}") == 1
    assert score("def f(x): return sorted(x)", "assert f(list(range(10**5, 0, -1)))[0] == 1") == 1


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        (
            "def f(x):\n    for _ in range(99): x = (x,)\n    return x\ndef g(x): return 1",
            "assert g(((((f(1),),),),)) == 1",
        ),
        ("def f(x): return 'x' * 40 * 2**20\ndef g(x): return 1", "assert g(f(1) + f(1)) == 1"),
        ("def f(x): return 10**9\ndef g(x): return 1", "assert g('x' * f(1)) == 1"),
        ("def f(x): raise TypeError\ndef g(x): return sum(x)", "assert g(f(n) for n in range(3)) == 1"),
    ],
)
def test_what_a_candidate_gives_stops_no_run(code, tests):
    assert score(code, tests) == 0


def test_what_else_tests_rely_on_crosses_too():
    assert score("def sort(x): x.sort()", "x = [3, 1]\nsort(x)\nassert x == [1, 3]") == 1
    assert score("def items(n):\n    yield from range(n)", "assert list(items(3)) == [0, 1, 2]") == 1
    assert score("def nan(): return float('nan')", "x = nan()\nassert x != x") == 1
    raises = "try:\n    f(1)\nexcept KeyError:\n    pass\nelse:\n    assert False"
    assert score("def f(x): raise KeyError(x)", raises) == 1
    assert score("def f(x): raise ValueError(x)", raises) == 0
    assert score("def f(a, *, b): return a - b", "assert f(5, b=3) == 2") == 1


def test_a_helper_of_the_row_is_not_the_candidates_to_replace():
    reward = CodeTestsReward(preamble_key="prompt")
    row = {"prompt": "import math\ndef error(x):\n    return abs(x - math.pi)\ndef pi(): ...\n", "entry_point": "pi"}
    tests = "def check(f):\n    assert error(f()) < 0.01"
    assert score("def pi(): return math.pi", tests, reward, **row) == 1
    assert score("def pi(): return 3\ndef error(x): return 0", tests, reward, **row) == 0


@pytest.mark.parametrize("row", [{"test": None}, {"test": []}, {}])
def test_a_row_without_tests_is_a_mistake_of_the_setup(row):
    with pytest.raises(UserError, match="must be Python source or a list"):
        CodeTestsReward().score(RewardRequest([], f"```\n{GOOD}\n```", False, row))


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("assert double(", "SyntaxError"),
        ("assert double(__import__('threading').Lock())", "a lock"),
        ("assert 2 + 2 == 4", "never call the candidate"),
        ("assert double('a' * 65 * 2**20)", "more than 64 MiB"),
        ("assert double(['a'] * 10**9)", "out of memory|MemoryError"),
        ("x = ()\nfor _ in range(150): x = (x,)\ndouble(x)", "nested too deeply"),
        ("assert sum(1, 2) == 3", "before they call the candidate, TypeError.*must be the row's entry_point"),
    ],
)
def test_tests_that_cannot_be_run_are_no_verdict(tests, message):
    with pytest.raises(NoVerdictError, match=message):
        CodeTestsReward().score(RewardRequest([], f"```\n{GOOD}\n```", False, {"test": tests}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"isolation": "none"}, "namespaces or limits"), ({"wall_s": 0}, "positive"), ({"memory_mib": 1}, "128 MiB")],
)
def test_limits_are_checked(arguments, message):
    with pytest.raises(UserError, match=message):
        CodeTestsReward(**arguments)


def test_a_machine_that_forbids_namespaces_says_what_to_do(monkeypatch):
    monkeypatch.setattr(code_sandbox, "_command", lambda: [sys.executable, "-c", "raise OSError('unshare: forbidden')"])
    check_isolation.cache_clear()
    try:
        with pytest.raises(UserError, match=r"unshare: forbidden.*isolation: limits"):
            passes(GOOD, TESTS[0], None, "", Limits(isolation="limits"))
    finally:
        check_isolation.cache_clear()


def test_a_sandbox_that_does_not_start_is_no_failed_test(monkeypatch):
    check_isolation("limits")
    monkeypatch.setattr(code_sandbox, "_command", lambda: [sys.executable, "-c", "raise OSError"])
    with pytest.raises(RuntimeError, match="did not start"):
        passes(GOOD, TESTS[0], None, "", Limits(isolation="limits"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```\n```py\nb\n```\n```bash\nc\n```", "b\n"),
        ("```\na\n```", "a\n"),
        ("```Python title=x\r\na\r\n```", "a\n"),
        ("```python\na", None),
        ("a", None),
        ("```json\n1\n```", None),
        ("```python\na\n```\nIt prints\n```\n8\n```", "a\n"),
        ("```\nb\n```\n```\na\n```", "a\n"),
    ],
)
def test_the_last_python_block_counts(text, code):
    assert last_block(text) == code


@pytest.mark.data
def test_humanevals_own_solutions_pass_and_no_others(record_property):
    if not HUMANEVAL.exists():
        pytest.skip(f"{HUMANEVAL} is absent")
    with gzip.open(HUMANEVAL, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][::8]
    reward = CodeTestsReward(preamble_key="prompt", wall_s=60)

    def paid(row: dict[str, str]) -> tuple[float, float]:
        reward.check_row(row)
        bodies = row["canonical_solution"], "    pass\n"
        texts = [f"```python\n{row['prompt']}{body}\n```" for body in bodies]
        right, wrong = (reward.score(RewardRequest([], text, False, row)) for text in texts)
        return right, wrong

    with ThreadPoolExecutor(3) as threads:
        found = dict(zip((row["task_id"] for row in rows), threads.map(paid, rows), strict=True))
    record_property("right_paid", sum(right for right, _ in found.values()))
    record_property("wrong_paid", sum(wrong for _, wrong in found.values()))
    assert len(found) == 21 and {name for name, both in found.items() if both != (1, 0)} == set()

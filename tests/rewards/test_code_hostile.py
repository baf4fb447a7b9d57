"""Programs that want a reward without an answer, or to do harm: none gets either."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import RewardRequest
from lnlit.rewards.code_sandbox import check_isolation
from lnlit.rewards.code_tests import CodeTestsReward

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")

#: Catches what it can, hands over a function, an object, a generator and its own buffer, and prints.
TESTS = """
import contextlib, io
from fractions import Fraction

class Case:
    def __init__(self):
        self.passed = False
    def right(self, value):
        return value == 4

case = Case()
secret = 4
assert double(2) == 4, double(2)
assert all(a == b for a, b in zip(map(double, [2, -3]), [4, -6]))
assert [apply(lambda x: x + secret, 1), apply(case.right, 3), apply(len, "abc")] == [5, False, 3]
assert use(case) is False and not case.passed and not case.right(5)
buffer = io.StringIO()
with contextlib.redirect_stdout(buffer):
    double(3)
assert buffer.getvalue() == ""
try:
    double(None)
except TypeError:
    pass
else:
    raise AssertionError
assert double(Fraction(1, 3)) == Fraction(2, 3) and list(count(3)) == [0, 1, 2]
"""
RIGHT = """
def double(x): return 2 * x
def apply(f, x): return f(x)
def use(case): return case.right(3)
def count(n): yield from range(n)
"""
#: Ways to the other side: a message of one's own on the line, in answer to a call.
_SEND = """
import __main__, gc, json, os, socket, struct
line = next(item for item in gc.get_objects() if type(item).__name__ == "Line")
def send(message):
    line.send_bytes(json.dumps(message).encode())
def reply(value, **more):
    send({"value": value, "raised": None, "changed": [], "cells": [], "printed": ["", ""], **more})
def ask(do, *args):
    send({"do": do, "args": list(args), "keywords": {}, "cells": [], "printed": ["", ""]})
    return line.receive()
"""

CHEATS = {
    "StopIteration": "def double(x): raise StopIteration",
    "GeneratorExit": "def double(x): raise GeneratorExit",
    "StopAsyncIteration": "def double(x): raise StopAsyncIteration",
    "KeyboardInterrupt": "def double(x): raise KeyboardInterrupt",
    "leaves with 0": "def double(x): raise SystemExit(0)",
    "an exception that says it is another": "class E(TypeError):\n    __mro__ = ()\n    __str__ = lambda s: 1 / 0\n"
    "def double(x): raise E",
    "a class that is compared": "class Meta(type):\n    __eq__ = __call__ = lambda *a: 4\n"
    "class double(metaclass=Meta): pass",
    "a module that is the function": "import sys, types\nclass M(types.ModuleType):\n    __eq__ = lambda *a: True\n"
    "def double(x): return M('m')",
    "answers sent ahead": f"{_SEND}\nfor _ in range(99): reply(4)\n",
    "answers that are questions": f"{_SEND}\ndef double(x):\n    send({{'do': 'call', 'args': [{{'yours': 0}}]}})\n",
    "the globals of what was handed over": f"{_SEND}\ndef double(x): return 2 * x\ndef apply(f, x):\n"
    "    names = f.__globals__\n    names['secret'] = x\n    return 5",
    "the code of what was handed over": f"{_SEND}\ndef apply(f, x):\n    f.__code__ = (lambda x: 5).__code__\n",
    "asks for the globals itself": f"{_SEND}\ndef double(x): return 2 * x\ndef apply(f, x):\n"
    "    said = ask('get', {'yours': 0}, '__globals__')\n    return 5 if said['value'] else 0",
    "a name of theirs": f"{_SEND}\ndef double(x): return ask('get', {{'yours': 'secret'}}, 'real')['value']",
    "another number of theirs": f"{_SEND}\ndef use(case):\n"
    "    for n in range(99): ask('set', {'yours': n}, 'passed', 0)",
    "a method of theirs": "def use(case):\n    case.right = lambda *a: False\n    return False",
    "their buffer": "import sys\ndef double(x):\n    sys.stdout.write('4')\n    return 2 * x",
    "a type that is none": f"{_SEND}\ndef double(x): reply({{'type': '__loader__'}})",
    "something made over there": f"{_SEND}\ndef double(x): reply({{'made': [['os', '_exit'], {{'tuple': [0]}}]}})",
    "a tuple with code for names": f"{_SEND}\ndef double(x): reply({{'namedtuple': ['x', ['a=print()'], [4]]}})",
    "a number that never ends": f"{_SEND}\ndef double(x): reply({{'fraction': ['1e999999999']}})",
    "a container that is not there": f"{_SEND}\ndef double(x): reply({{'ref': 99}})",
    "an exception of the judge's": f"{_SEND}\ndef double(x): reply(None, raised={{'kinds': ['BrokenOffError', "
    "'SystemExit'], 'holds': [0], 'vars': {}, 'says': '0'})",
    "endless length": f"{_SEND}\ndef double(x): os.write(line.fileno(), struct.pack('!iQ', -1, 2**62))",
    "nested JSON": f"{_SEND}\ndef double(x): line.send_bytes(b'[' * 10**6)",
    "a handle on what never ends": "import itertools\ndef count(n): return itertools.cycle(range(n))",
    "a handle that calls itself": "def count(n):\n    class C:\n        def __iter__(s): return s\n"
    "        def __next__(s): return s\n    return C()",
    "asks for pardon in between": "def apply(f, x):\n    try: f()\n    finally: raise StopIteration",
    "tests in memory": "import gc, sys\ndef double(x):\n"
    "    found = [o for o in gc.get_objects() if 'secr' 'et' in str(o)]\n"
    "    return 4 if found else 0",
    "tests in frames": "import sys\ndef double(x):\n    f = sys._getframe()\n    while f:\n"
    "        if 'secret' in f.f_globals: return 2 * x\n        f = f.f_back",
    "tests in files": "import os\ndef double(x):\n    for n in range(32):\n        try:\n"
    "            if b'secr' b'et' in os.pread(n, 9999, 0): return 2 * x\n        except OSError: pass",
    "tracing": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef double(x): return 0",
    "at the end": "import atexit, os\natexit.register(os._exit, 0)\nclass D:\n    def __del__(s): os._exit(0)\n"
    "d = D()\ndef double(x): return 0",
    "operators made anew": "import operator, builtins\nfrom lnlit.rewards import code_handle, code_calls\n"
    "operator.eq = code_handle.ACTIONS['eq'] = lambda *a: True\ncode_handle.Handle.__eq__ = lambda *a: True\n"
    "code_calls.same = lambda *a: True\ndef double(x): return [x]",
    "a writer of its own": "from lnlit.rewards import code_calls\n"
    "code_calls.Writer.value = lambda *a: {'keys': [1, 2, 3, 4]}\ndef double(x): return 4",
    "a plain value that is asked twice": "class L(list):\n    n = 0\n    def __iter__(s):\n        L.n += 1\n"
    "        return iter([L.n])\ndef double(x): return L()",
    "signals": "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.pause()",
    "stops itself": "import os\nos.closerange(0, 4096)",
    "uses up descriptors": "import os\nwhile True: os.dup(0)",
}


def score(code: str, tests: str, isolation: str = "namespaces", **limits) -> float:
    reward = CodeTestsReward(isolation=isolation, **{"wall_s": 30, "cpu_s": 2, **limits})
    return reward.score(RewardRequest([], f"```python\n{code}\n```", False, {"test": tests}))


@pytest.fixture(scope="module", autouse=True)
def isolated():
    try:
        check_isolation("namespaces")
    except UserError as error:
        pytest.skip(str(error))


def test_right_code_passes_these_tests():
    assert score(RIGHT, TESTS) == 1


def test_no_cheat_is_paid(record_property):
    with ThreadPoolExecutor(3) as threads:
        codes = [f"{RIGHT}\n{code}" for code in CHEATS.values()]
        found = dict(zip(CHEATS, threads.map(lambda code: score(code, TESTS, wall_s=5, cpu_s=1), codes), strict=True))
    record_property("cheats", len(found))
    record_property("cheats_paid", sum(found.values()))
    assert {name for name, paid in found.items() if paid} == set()


HARM = """
import ctypes, fcntl, os, resource, socket, sys, termios, time, _thread
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(number, *args):
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def as_child(number, *args):
    before = os.getpid()
    call(number, *args)
    if os.getpid() != before:
        os._exit(0)

def refused(done):
    if done < 0:
        raise OSError

def write(path):
    with open(path, "w") as file:
        file.write("x")

def link(how, to, name):
    how(to, name)
    open(name).read()

room = ctypes.create_string_buffer(512)
TRIES = {
    "System V shared memory": lambda: [call(29, 0, 2**24, 0o1600) for _ in range(64)],
    "a message queue": lambda: call(68, 0, 0o1600),
    "semaphores": lambda: call(64, 0, 32000, 0o1600),
    "a POSIX message queue": lambda: call(240, b"x", os.O_CREAT | os.O_RDWR, 0o600, 0),
    "memory as a file": lambda: os.memfd_create("x"),
    "POSIX shared memory": lambda: write("/dev/shm/lnlit-was-here"),
    "keys of the kernel": lambda: call(248, b"user", b"x", b"y", 1, -2),
    "the way of 32 bits": lambda: call(0x40000000 + 29, 0, 4096, 0o1600),
    "fork": lambda: os.fork() or os._exit(0),
    "fork, by number": lambda: as_child(57),
    "clone, by number": lambda: as_child(56, 17, 0, 0, 0, 0),
    "clone3": lambda: as_child(435, room, 88),
    "a thread": lambda: _thread.start_new_thread(time.sleep, (9,)),
    "another program": lambda: os.execv("/usr/bin/env", ["env"]),
    "all processes": lambda: os.kill(-1, 15),
    "the group": lambda: os.kill(0, 15),
    "itself, stopped": lambda: os.kill(os.getpid(), 19),
    "who started it": lambda: os.kill(PARENT, 15),
    "a thread of who started it": lambda: call(234, PARENT, PARENT, 15),
    "a handle on who started it": lambda: call(434, PARENT, 0),
    "tracing who started it": lambda: call(101, 16, PARENT, 0, 0),
    "reading who started it": lambda: call(310, PARENT, 0, 0, 0, 0, 0),
    "memory of who started it": lambda: open(f"/proc/{PARENT}/mem", "r+b"),
    "limits of who started it": lambda: resource.prlimit(PARENT, resource.RLIMIT_NOFILE, (3, 3)),
    "processors of who started it": lambda: os.sched_setaffinity(PARENT, {0}),
    "priority of who started it": lambda: os.setpriority(os.PRIO_PROCESS, PARENT, 19),
    "more memory": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
    "the network": lambda: socket.create_connection(("127.0.0.1", PORT), 1),
    "routes": lambda: socket.socket(16, 3, 0),
    "an abstract name": lambda: socket.socket(socket.AF_UNIX).bind(chr(0) + "lnlit"),
    "the kernel's ciphers": lambda: socket.socket(38, 5, 0),
    "a ring": lambda: call(425, 8, room),
    "page faults": lambda: call(323, 0),
    "a program in the kernel": lambda: call(321, 0, room, 128),
    "counters": lambda: call(298, room, 0, -1, -1, 0),
    "watching": lambda: call(294, 0),
    "a user namespace": lambda: call(272, 0x10000000),
    "another root": lambda: os.chroot("."),
    "a mount": lambda: refused(libc.mount(b"x", b".", b"tmpfs", 0, None)),
    "root": lambda: os.setuid(0),
    "the host's name": lambda: refused(libc.sethostname(b"x", 1)),
    "the clock": lambda: time.clock_settime(0, 0),
    "a terminal": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
    "a device": lambda: (os.mknod("device", 0o20600, os.makedev(1, 1)), open("device", "rb").read(1)),
    "a link": lambda: link(os.symlink, "/etc/passwd", "symbolic"),
    "a hard link": lambda: link(os.link, "/etc/passwd", "hard"),
    "the way up": lambda: open("../" * 20 + "etc/passwd").read(),
    "a secret": lambda: open(SECRET).read(),
    "what is beside a secret": lambda: os.listdir(os.path.dirname(SECRET)),
    "others' temporary files": lambda: write("/var/tmp/lnlit-was-here"),
    "Python's own files": lambda: write(os.path.dirname(os.__file__) + "/lnlit_was_here.py"),
    "Python's own rights": lambda: os.chmod(os.__file__, 0o777),
    "a file with a hole": lambda: os.truncate(os.open("hole", os.O_CREAT | os.O_WRONLY) and "hole", 2**30),
    "the environment": lambda: open("/proc/self/environ").read(),
}

def tried():
    could = []
    for name, what in TRIES.items():
        try:
            what()
        except (OSError, RuntimeError, ValueError):
            continue
        could.append(name)
    return could
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="calls the kernel by the numbers of x86_64")
@pytest.mark.parametrize("isolation", ["namespaces", "limits"])
def test_no_harm_is_done(isolation, tmp_path, record_property):
    secret = tmp_path / "secret"
    secret.write_text("the tests")
    before = left_behind()
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = f"PARENT, PORT, SECRET = {os.getpid()}, {server.getsockname()[1]}, {str(secret)!r}\n"
        # What a program could do, it gives back; the tests know nothing that it could do.
        assert score(places + HARM, "assert len(tried.__globals__['TRIES']) == 54", isolation) == 1
        assert score(places + HARM, "assert tried() == [], tried()", isolation, cpu_s=8) == 1
    record_property(f"harm_tried_{isolation}", 54)
    assert left_behind() == before


def left_behind() -> tuple[list[str], list[str]]:
    """System V objects of nobody's, and files where everybody may write."""
    objects = [line for kind in ("shm", "msg", "sem") for line in Path("/proc/sysvipc", kind).read_text().splitlines()]
    files = [str(path) for place in ("/dev/shm", "/var/tmp") for path in Path(place).glob("lnlit-*")]
    return [line for line in objects if " 65534 " in line], files


def test_files_fill_no_more_than_their_room():
    code = "def full():\n    n = 0\n    try:\n        while n < 9999:\n            open(f'f{n}', 'w').close()\n"
    code += "            n += 1\n    except OSError: pass\n    return n"
    assert score(code, "assert full() < 5000") == 1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="calls the kernel by the numbers of x86_64")
def test_no_memory_is_held_beside_the_limit():
    """What was written to files, queues and segments, and let go from the address space, still counts."""
    code = """
import ctypes, mmap, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def held():
    total, data, keep = 0, bytes(2**20), []
    for n in range(600):
        for how in ("shm", "memfd", "pipe", "file", "socket"):
            try:
                if how == "shm":
                    number = libc.syscall(29, 0, 2**20, 0o1600)
                    if number < 0: continue
                    libc.shmat.restype = ctypes.c_void_p
                    place = libc.shmat(number, None, 0)
                    ctypes.memset(place, 1, 2**20)
                    libc.shmdt(ctypes.c_void_p(place))
                    total += 1
                elif how == "memfd":
                    file = os.memfd_create("x")
                    total += os.write(file, data) / 2**20
                elif how == "file":
                    with open(f"f{n}", "wb", 0) as file: total += file.write(data) / 2**20
                elif how == "pipe":
                    ends = os.pipe()
                    os.set_blocking(ends[1], False)
                    total += os.write(ends[1], data) / 2**20
                else:
                    ends = socket.socketpair()
                    ends[0].setblocking(False)
                    keep.append(ends)
                    total += ends[0].send(data) / 2**20
            except OSError: pass
    return total
"""
    assert score(code, "assert held() < 24, held()", memory_mib=256, cpu_s=8) == 1


def test_a_right_program_is_paid_while_others_do_their_worst():
    """Signals, descriptors and memory of one program are not another's."""
    worst = [
        "import os\nwhile True:\n    try: os.kill(-1, 15)\n    except OSError: pass",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "data = []\nwhile True: data.append(bytes(10**7))",
    ]
    for isolation in ("limits", "namespaces"):
        with ThreadPoolExecutor(4) as threads:
            others = [threads.submit(score, code, TESTS, isolation, cpu_s=1) for code in worst]
            time.sleep(0.2)
            assert score(RIGHT, TESTS, isolation, cpu_s=8) == 1
            assert [other.result() for other in others] == [0, 0, 0]

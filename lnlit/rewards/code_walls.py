"""The isolation of one side of a code test (`code_process`), which it sets up for itself, by Linux system call
numbers."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any

_NOBODY = 65534
# The same on every processor.
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_NO_SUID, _NO_DEVICES = 2, 4
_MOUNT_SETATTR, _AT_RECURSIVE, _READ_ONLY = 442, 0x8000, 1
_DIE_WITH_PARENT, _SET_DUMPABLE, _KEEP_CAPABILITIES, _SET_SECCOMP, _NO_NEW_PRIVILEGES = 1, 4, 8, 22, 38
_READ_SEARCH = 1 << 2

#: What nobody's program needs: (number on x86_64, on ARM; None where it has none). Other processes and programs, memory
#: that no limit counts, the network, the machine, and what was the way out of a sandbox before.
_CLOSED: dict[str, tuple[int | None, int | None]] = {
    **{"fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435)},
    **{"execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "kcmp": (312, 272)},
    **{"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424)},
    **{"rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434)},
    **{"pidfd_getfd": (438, 438), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"process_madvise": (440, 440), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119)},
    **{"sched_setparam": (142, 118), "sched_setattr": (314, 274), "setpriority": (141, 140), "ioprio_set": (251, 30)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
    **{"shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semctl": (66, 191)},
    **{"msgget": (68, 186), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181)},
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "userfaultfd": (323, 282)},
    **{"socket": (41, 198), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218)},
    **{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41)},
    **{"chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430)},
    **{"mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)},
    **{"fanotify_init": (300, 262), "inotify_init": (253, None), "inotify_init1": (294, 26), "quotactl": (179, 60)},
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426)},
    **{"io_uring_register": (427, 427), "personality": (135, 92), "syslog": (103, 116), "acct": (163, 89)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "swapon": (167, 224), "swapoff": (168, 225)},
    **{"settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266)},
    "sethostname": (170, 161),
}
#: Processor -> (its number in the kernel's audit, which of the numbers above, `prlimit64`'s).
_PROCESSORS = {"x86_64": (0xC000003E, 0, 302), "aarch64": (0xC00000B7, 1, 261)}
_LOAD, _EQUALS, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x50001  # with EPERM
_X32 = 0x40000000

# Landlock (Linux 5.13): what may be done to files, and a rule that everything below a folder is free.
_CREATE_RULES, _ADD_RULE, _RESTRICT = 444, 445, 446
_READ, _WRITE, _WRITE_SINCE = 0b1101, 0b1111111110010, {2: 1 << 13, 3: 1 << 14}
_READ_FILE, _WRITE_FILE = 0b100, 0b110


def enter_namespaces(folder: str) -> None:
    """Enters namespaces without network, without other processes and without files except Python's own and an empty
    folder (Linux). Raises `OSError` if that is forbidden."""
    if platform.machine() not in _PROCESSORS:
        raise OSError(f"the system calls of {platform.machine()} are not known, only those of x86_64 and aarch64")
    uid, gid = os.getuid(), os.getgid()
    flags = _NEW_MOUNTS | _NEW_IPC | _NEW_PID | _NEW_NET
    _call("unshare", flags | (_NEW_USER if uid else 0))
    if uid:
        for file, text in {
            "setgroups": "deny",
            "uid_map": f"{_NOBODY} {uid} 1",
            "gid_map": f"{_NOBODY} {gid} 1",
        }.items():
            Path("/proc/self", file).write_text(text)
    _in_child()
    _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    room = b"size=16m,nr_inodes=4096,mode=755"
    _call("mount", b"tmpfs", folder.encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, room)
    for place in sorted(_pythons()):
        inside = Path(folder + place)
        if Path(place).is_symlink():
            inside.symlink_to(Path(place).readlink())
        elif Path(place).is_dir() and not inside.exists():
            inside.mkdir(parents=True)
            _call("mount", place.encode(), str(inside).encode(), None, _BIND | _RECURSIVE, None)
            attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SUID | _NO_DEVICES, 0, 0, 0)
            _call("syscall", _MOUNT_SETATTR, -100, str(inside).encode(), _AT_RECURSIVE, attributes, 32)
    Path(folder, "tmp").mkdir()
    Path(folder, "tmp").chmod(0o777)
    os.chroot(folder)


def _pythons() -> set[str]:
    """The folders of Python and the system's libraries."""
    return {"/usr", "/lib", "/lib64", sys.base_prefix, sys.base_exec_prefix}


def _in_child() -> None:
    """Continues in a child, the first process of the new namespace. All other processes in the namespace end with
    it."""
    child = os.fork()
    if child:
        # What shows the other side that we are gone must close with the child.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.waitpid(child, 0)
        os._exit(0)
    die_with(0)  # it is outside, so it has no number here


def die_with(parent: int) -> None:
    """Makes this process end when the process that started it ends, which may already have happened."""
    if sys.platform == "linux":
        _call("prctl", _DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def close_files(folder: str) -> bool:
    """Allows reading Python's own files and writing one folder only, for any user. Returns False if the kernel has no
    Landlock."""
    version = _libc.syscall(_CREATE_RULES, None, 0, 1) if sys.platform == "linux" else 0
    if version < 1:
        return False
    write = _WRITE | sum(right for since, right in _WRITE_SINCE.items() if version >= since)
    rules = _libc.syscall(_CREATE_RULES, (ctypes.c_uint64 * 1)(_READ | write), 8, 0)
    places = {**dict.fromkeys(_pythons(), _READ), folder: _READ | write}
    for place, rights in {**places, os.devnull: _WRITE_FILE, "/dev/urandom": _READ_FILE}.items():
        if Path(place).exists():
            file = os.open(place, os.O_PATH)
            _call("syscall", _ADD_RULE, rules, 1, struct.pack("=Qi", rights, file), 0)
            os.close(file)
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("syscall", _RESTRICT, rules, 0)
    os.close(rules)
    return True


def give_up_rights(cpu_s: float, memory: int, files_closed: bool) -> None:
    """Becomes nobody if root, drops all capabilities otherwise, and sets limits. If only Python's own files can be
    reached, nobody may read them even in root's home."""
    if os.getuid() == 0:
        if files_closed:
            _call("prctl", _KEEP_CAPABILITIES, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    if sys.platform == "linux":
        try:
            _keep(_READ_SEARCH if files_closed else 0)
        except PermissionError:  # it was not to be had
            _keep(0)
        _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)  # no process of the same user may look inside
    limits = {"CPU": math.ceil(cpu_s), "AS": memory, "FSIZE": 2**20, "NOFILE": 32, "CORE": 0, "NPROC": 0}
    for name, limit in limits.items():
        with contextlib.suppress(ValueError):  # macOS refuses an address space below what is mapped
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def _keep(capabilities: int) -> None:
    """Keeps only these capabilities."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)(capabilities, capabilities, 0, 0, 0, 0))


def close_calls() -> None:
    """Makes the system calls in `_CLOSED` fail with EPERM. Does nothing on a processor whose call numbers are
    unknown."""
    if sys.platform != "linux" or platform.machine() not in _PROCESSORS:
        return
    audit, column, limits = _PROCESSORS[platform.machine()]
    numbers = [call[column] for call in _CLOSED.values() if call[column] is not None]
    program = [(_LOAD, 0, 0, 4), (_EQUALS, 1, 0, audit), (_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, 0)]
    # Limits may be asked for and lowered, but only one's own: those of process 0.
    checks = [(_AT_LEAST, _X32), *((_EQUALS, number) for number in numbers)]
    end = len(checks) + 4
    program += [(code, end - at - 1, 0, value) for at, (code, value) in enumerate(checks)]
    program += [(_EQUALS, 0, 2, limits), (_LOAD, 0, 0, 16), (_EQUALS, 0, 1, 0)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code)
    pointer = ctypes.c_uint64(ctypes.addressof(buffer))
    filled = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(program), pointer.value))
    _call("prctl", _SET_SECCOMP, 2, filled, 0, 0)


def _call(name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


_libc = ctypes.CDLL(None, use_errno=True)

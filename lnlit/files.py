"""Atomic writing of files and folders: they are written beside the target and then renamed over it."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lnlit.errors import UserError

#: What the names of scratch have in common, between the name of what is written and some random letters.
_MARK = "lnlit-"


def expanded(path: str | Path) -> Path:
    """The path with `~` expanded. Raises `UserError` for `~name` if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: a path begins with ~ and the name of a user who is not known here. Write the whole path."
        ) from error


def listed(folder: str | Path, pattern: str) -> list[Path]:
    """The files of a folder that a pattern names, sorted. As in a shell, `*` stands for no name that begins with a dot,
    which scratch of a writer that was killed has."""
    return sorted(Path(folder) / name for name in glob.glob(pattern, root_dir=folder, recursive=True))  # noqa: PTH207


@contextmanager
def replaced_folder(out: Path, replaces: Callable[[str], bool] = lambda _: True) -> Iterator[Path]:
    """A temporary folder beside `out`, which replaces `out` if the block succeeds and is deleted if it fails.

    `replaces` says for each name in the old folder whether to delete it; other files are moved into the new folder.
    """
    with _scratch(out, folder=True) as scratch:
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide the result from a server that runs as another user
        yield scratch
        _take_place(scratch, out, replaces)


@contextmanager
def replaced_file(out: Path) -> Iterator[Path]:
    """The path of a temporary file beside `out`, which replaces `out` if the block succeeds. If it fails, `out` is
    unchanged."""
    with _scratch(out, folder=False) as scratch:
        yield scratch
        scratch.chmod(0o644)
        scratch.replace(out)


def check_output(out: Path, *, folder: bool = False, inputs: Iterable[str | None] = (), mark: bytes = b"") -> Path:
    """Checks before any work is done that a file (or a `folder`) can be written at `out`, and returns `out`.

    Raises `UserError` if there is a folder in the place of a file or a file in the place of a folder, if a parent is a
    file, if the place is not writable, or if it is one of the `inputs`, which would be overwritten. With a `mark`, that
    all results of a command hold, a file that is there and does not hold it is refused as well.
    """
    if not folder and out.is_dir():
        raise UserError(f"out: {out} is a folder; expected the name of a file to write, as in {out / 'NAME'}.")
    if folder and out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file; expected the name of a folder to write.")
    for given in (expanded(given) for given in inputs if given):
        if out.exists() and given.exists() and any(out.samefile(place) for place in (given, *given.resolve().parents)):
            what = "is" if out.samefile(given) else f"holds {given}, which is"
            raise UserError(f"out: {out} {what} read by this very command, and would be lost. Choose another place.")
    if mark and out.is_file() and (before := out.read_bytes()) and mark not in before:
        raise UserError(
            f"out: {out} is there already, and is no earlier result of this command, which alone is replaced. Choose "
            "another place, or delete it."
        )
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"out: {out} lies below {above}, which is a file. Choose another place.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"out: {out} cannot be written: {above} may not be changed. Check its permissions.")
    return out


def write_file(out: Path, content: str | bytes) -> None:
    """Writes a file atomically, text as UTF-8."""
    with replaced_file(out) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(out: Path, data: Any) -> None:
    """Writes `data` as readable JSON, atomically. All numbers must be finite."""
    write_file(out, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(file: Path, what: str = "a JSON file") -> dict[str, Any]:
    """Reads a JSON object from a file. `what` names the expected content in error messages, e.g. "a block library"."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file; expected {what}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as {what}: {error}.") from error
    if not isinstance(data, dict):
        raise UserError(f"{file}: expected {what} (a JSON object), got {type(data).__name__}.")
    return data


def check_format(data: Mapping[str, Any], wanted: int, file: str | Path, what: str) -> None:
    """Raises `UserError` unless a file's object has the wanted format. One without any is not `what` at all."""
    if "format" not in data:
        raise UserError(f"{file}: expected {what}, which has the key 'format'; this has none. Choose another path.")
    if data["format"] != wanted:
        raise UserError(f"{file}: format {data['format']!r}; this lnlit reads format {wanted}. Update lnlit.")


@contextmanager
def _scratch(out: Path, *, folder: bool) -> Iterator[Path]:
    """A hidden file or folder beside `out`, deleted at the end unless it was renamed. A lock says that its writer is
    alive: what a killed one left is deleted by the next writer of the same name."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in _leftovers(out):
            _delete(leftover)
        scratch, lock = _locked_scratch(out, folder)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error}.") from error
    try:
        yield scratch
    except Exception as error:
        if not _is_failed_write(error):
            raise
        raise _told(error, out) from error
    finally:
        _delete(scratch)
        os.close(lock)


def _locked_scratch(out: Path, folder: bool) -> tuple[Path, int]:
    """A new file or folder, and the descriptor that holds its lock."""
    while True:
        if folder:
            name = tempfile.mkdtemp(prefix=f".{out.name}.{_MARK}", dir=out.parent)
            try:
                lock = os.open(name, os.O_RDONLY)
            except FileNotFoundError:  # another writer found it before it was locked, and deleted it
                continue
        else:
            lock, name = tempfile.mkstemp(prefix=f".{out.name}.{_MARK}", suffix=out.suffix, dir=out.parent)
        with suppress(OSError):  # some network drives have no locks; nobody deletes leftovers there
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return Path(name), lock
        os.close(lock)  # deleted in the same way


def _leftovers(out: Path) -> Iterator[Path]:
    """Scratch of `out` whose writer is dead."""
    name = re.compile(rf"\.{re.escape(out.name)}\.{_MARK}\w{{8}}({re.escape(out.suffix)})?")
    for scratch in out.parent.iterdir():
        # Beside an `.old` folder it may be the only whole one: its writer died between two renames.
        if not name.fullmatch(scratch.name) or scratch.with_name(f"{scratch.name}.old").exists():
            continue
        with suppress(OSError):
            lock = os.open(scratch, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield scratch
            finally:
                os.close(lock)


def _delete(scratch: Path) -> None:
    if scratch.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        scratch.unlink(missing_ok=True)


def _is_failed_write(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError"


def _told(error: Exception, out: Path) -> UserError:
    reason = getattr(error, "errno", None)
    full = reason in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "os error 28" in str(error)
    advice = "The disk is full: free some space." if full else "Check the disk and its permissions."
    return UserError(f"{out}: saving failed and nothing was changed there: {error}. {advice}")


def _take_place(scratch: Path, out: Path, replaces: Callable[[str], bool]) -> None:
    """Renames `scratch` to `out`. The old content is deleted at the end, or restored on any interruption, including
    Ctrl-C."""
    old = scratch.with_name(f"{scratch.name}.old")
    names = {entry.name for entry in out.iterdir()} if out.exists() else set()
    stays = [name for name in names if not replaces(name) and not (scratch / name).exists()]
    try:
        if out.exists():
            out.rename(old)
        scratch.rename(out)
    finally:
        if not scratch.exists():
            for name in stays:
                (old / name).rename(out / name)
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists() and not out.exists():
            old.rename(out)

"""Atomic writing of files and folders: they are written beside the target and then renamed over it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lnlit.errors import UserError


def expanded(path: str | Path) -> Path:
    """The path with `~` expanded. Raises `UserError` for `~name` if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: a path begins with ~ and the name of a user who is not known here. Write the whole path."
        ) from error


@contextmanager
def replaced_folder(out: Path, replaces: Callable[[str], bool] = lambda _: True) -> Iterator[Path]:
    """A temporary folder beside `out`, which replaces `out` if the block succeeds and is deleted if it fails.

    `replaces` says for each name in the old folder whether to delete it; other files are moved into the new folder.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error}.") from error
    try:
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide the result from a server that runs as another user
        yield scratch
        _take_place(scratch, out, replaces)
    except Exception as error:
        if not _is_failed_write(error):
            raise
        raise _told(error, out) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def replaced_file(out: Path) -> Iterator[Path]:
    """The path of a temporary file beside `out`, which replaces `out` if the block succeeds. If it fails, `out` is
    unchanged."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", suffix=out.suffix, dir=out.parent)
        os.close(handle)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error}.") from error
    scratch = Path(name)
    try:
        yield scratch
        scratch.chmod(0o644)
        scratch.replace(out)
    except Exception as error:
        if not _is_failed_write(error):
            raise
        raise _told(error, out) from error
    finally:
        scratch.unlink(missing_ok=True)


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
        for name in stays:
            (out / name).rename(scratch / name)
        if out.exists():
            out.rename(old)
        scratch.rename(out)
    finally:
        if not scratch.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            if old.exists() and not out.exists():
                old.rename(out)
            for name in stays:
                if (scratch / name).exists() and not (out / name).exists():
                    (scratch / name).rename(out / name)

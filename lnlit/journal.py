"""JSON-lines files that grow while work is done, so that an interruption loses at most the entry in progress.

A journal has a header line, which holds the settings of the work, and one line per entry. Only one process at a time
may write it, and each entry is on disk before the next piece of work begins. A last line that a crash cut off is
ignored.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lnlit.errors import UserError, shown
from lnlit.files import check_output, replaced_file, write_file


class Lines:
    """A JSON-lines file opened for appending and locked against other processes. It is created if it does not exist.

    Args:
        file: The path of the file.
        what: A description of the entries for error messages, e.g. "scores".

    Raises `UserError` if another process is writing the file or if it cannot be written.
    """

    #: The number of lines before the entries.
    _ahead = 0

    def __init__(self, file: Path, what: str) -> None:
        self.file, self.what = file, what
        self._descriptor = _locked(file, what)
        try:
            text = file.read_bytes()
            self._open(text)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """The number of entries."""
        return self._entries

    def close(self) -> None:
        """Releases the lock, so that another process can write the file."""
        os.close(self._descriptor)

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """(line number, entry) of each entry. Raises `UserError` for a line that is not JSON."""
        return (line for line in read_lines(self.file, self.what) if line[0] > self._ahead)

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Appends all of the given entries or none. They are on disk when this returns. Raises `UserError` if writing
        fails."""
        self._write(entries)
        self._entries += len(entries)

    def keep(self, entries: int) -> None:
        """Truncates the file to the first entries."""
        with self.file.open("rb") as stream:
            for _ in range(self._ahead + entries):
                stream.readline()
            os.ftruncate(self._descriptor, stream.tell())
        os.fsync(self._descriptor)
        self._entries = min(entries, self._entries)

    def _open(self, text: bytes) -> None:
        os.ftruncate(self._descriptor, text.rfind(b"\n") + 1)
        self._entries = max(text.count(b"\n") - self._ahead, 0)

    def _write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        data = memoryview(b"".join(map(line, entries)))
        before = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise UserError(f"{self.file}: cannot be written: {error}. What it held is kept.") from error


class Journal(Lines):
    """A JSON-lines file whose first line is a header. An existing journal with the same header is continued.

    Args:
        file: The path of the file.
        header: The settings of the work that the entries record.
        what: A description of the entries for error messages, e.g. "scores".
        free: Keys of the header whose values may differ from those in the file.

    Raises `UserError` for an existing file that is no journal, or one with other settings, naming those that differ.
    Such a file is not changed.
    """

    _ahead = 1

    def __init__(self, file: Path, header: Mapping[str, Any], what: str, free: Collection[str] = ()) -> None:
        self._header, self._free = header, free
        super().__init__(file, what)

    @classmethod
    def beside(cls, out: Path, header: Mapping[str, Any], what: str, mark: bytes = b"") -> Journal:
        """The journal at `<out>.partial`, which keeps the entries until `finish` writes them to `out` or the caller
        computes `out` from them. Raises `UserError` if `out` cannot be written, or is a file without the `mark`."""
        check_output(out, mark=mark)
        return cls(out.with_name(f"{out.name}.partial"), header, what)

    def __enter__(self) -> Journal:
        return self

    def finish(self, out: Path) -> None:
        """Writes the entries without the header to `out`, and deletes the journal."""
        with replaced_file(out) as scratch, self.file.open("rb") as stream, scratch.open("wb") as target:
            stream.readline()
            shutil.copyfileobj(stream, target)
            target.flush()
            os.fsync(target.fileno())
        self.file.unlink()

    def _open(self, text: bytes) -> None:
        wanted = line(self._header)
        is_cut = is_cut_header(text, wanted)
        if not is_cut:
            check_header(self.file, text, json.loads(wanted), self.what, self._free)
        super()._open(b"" if is_cut else text)
        if is_cut:
            self._write([self._header])


def read_lines(file: Path, what: str) -> Iterator[tuple[int, Any]]:
    """Yields (line number from 1, value) of each complete line of a file that another process may be appending to.

    Raises `UserError` for a line that is not JSON and for a file that cannot be read. `what` describes the lines in
    error messages.
    """
    number = 0
    try:
        with file.open("rb") as stream:
            for number, text in enumerate(stream, start=1):
                if text.endswith(b"\n"):
                    yield number, json.loads(text)
    except OSError as error:
        raise UserError(f"{file}: cannot be read as {what}: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}:{number}: not a line of {what}: {error}. Delete the line, or the file.") from error


def write_lines(file: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines atomically: if it fails, the old file is unchanged."""
    write_file(file, b"".join(map(line, entries)))


def line(entry: Mapping[str, Any]) -> bytes:
    """An entry as one line of JSON. All numbers must be finite."""
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def why_no_line(entry: Mapping[str, Any]) -> str | None:
    """Why an entry cannot be a line of JSON, or None if it can."""
    try:
        line(entry)
    except (TypeError, ValueError, RecursionError) as error:
        return f"cannot be written as JSON: {error}"
    return None


def is_cut_header(text: bytes, header: bytes) -> bool:
    """True if a file holds nothing but an incomplete first line that begins like `header`."""
    start = header.partition(b": ")[0]
    return b"\n" not in text and (text.startswith(start) or start.startswith(text))


def check_header(file: Path, text: bytes, wanted: Mapping[str, Any], what: str, free: Collection[str] = ()) -> None:
    """Raises `UserError` unless the first line of `text` is the header `wanted`, ignoring the keys in `free`."""
    try:
        found = json.loads(text.partition(b"\n")[0])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a file of {what}: its first line is no header. Delete it, or write elsewhere.")
    if different := [told for key, told in _differences(found, wanted) if key not in free]:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise UserError(
            f"{file}: holds {what} with other settings: {'; '.join(different[:3])}{more}. Repeat those to go on with "
            "it, delete it to start anew, or write elsewhere."
        )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """(key, difference as text), descending into nested mappings. A missing key counts as null."""
    for key in {**found, **wanted}:
        there, here = found.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from ((key, told) for _, told in _differences(there, here, f"{place}{key}."))
        elif there != here:
            yield key, f"{place}{key} is {shown(there)}, now {shown(here)}"


def _locked(file: Path, what: str) -> int:
    """A file descriptor for appending, with a lock that excludes other processes until it is closed."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{file}: cannot be written: {error}.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise UserError(f"{file}: another process is writing these {what}. Wait for it, or stop it.") from error
        if _is(descriptor, file):
            return descriptor
        os.close(descriptor)  # its owner has finished and deleted it between our opening and locking


def _is(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False

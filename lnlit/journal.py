"""Files of JSON lines that grow while work is done, so that whoever interrupts it loses the piece it was at, no more.

A journal is a header, the settings that its entries are of, and one line per entry. One process at a time writes it;
an entry is on the disk before the next piece of work begins. A last line that a crash cut off is none.
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
from lnlit.files import check_output, replaced_file


class Lines:
    """A file of JSON lines that this process alone may add to, made where there is none.

    Args:
        file: The file.
        what: What its lines are, in words, for errors: "scores".

    Raises `UserError` while another process writes it, and when it cannot be written.
    """

    #: Lines in front of the entries.
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
        """How many entries there are."""
        return self._entries

    def close(self) -> None:
        """Let others write the file."""
        os.close(self._descriptor)

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """(line number, entry) of each entry. Raises `UserError` for a line that is not JSON."""
        return (line for line in read_lines(self.file, self.what) if line[0] > self._ahead)

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Add entries, all of them or none: they are on the disk when this returns. Raises `UserError` when the disk
        takes them not."""
        self._write(entries)
        self._entries += len(entries)

    def keep(self, entries: int) -> None:
        """Forget all entries but the first ones."""
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
    """Lines of which the first is a header. One that is there already is gone on with.

    Args:
        file: The file.
        header: The settings that the entries are of.
        what: What the entries are, in words, for errors: "scores".
        free: Keys of the header that may differ from those of the file.

    Raises `UserError` for a file of other settings, by the names of those that differ, and for one that is no journal.
    Neither is changed.
    """

    _ahead = 1

    def __init__(self, file: Path, header: Mapping[str, Any], what: str, free: Collection[str] = ()) -> None:
        self._header, self._free = header, free
        super().__init__(file, what)

    @classmethod
    def beside(cls, out: Path, header: Mapping[str, Any], what: str) -> Journal:
        """`<out>.partial`, where the entries wait until `finish` makes `out` of them, or the caller does of what they
        say. Raises `UserError` when `out` cannot be written."""
        check_output(out)
        return cls(out.with_name(f"{out.name}.partial"), header, what)

    def __enter__(self) -> Journal:
        return self

    def finish(self, out: Path) -> None:
        """Write the entries without the header to `out`, and delete this file."""
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
    """(number from 1, value) of each whole line of a file that others may be adding to, so without a last one cut off.

    Raises `UserError` for a line that is not JSON and for a file that cannot be read. `what` the lines are, in words.
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
    """Write a whole file of JSON lines, or leave the one that is there."""
    with replaced_file(file) as scratch:
        scratch.write_bytes(b"".join(map(line, entries)))


def line(entry: Mapping[str, Any]) -> bytes:
    """An entry as it stands in a file. Numbers must be finite."""
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def is_cut_header(text: bytes, header: bytes) -> bool:
    """Whether a file holds nothing but the beginning of a header that begins as `header` does, whose line was cut."""
    start = header.partition(b": ")[0]
    return b"\n" not in text and (text.startswith(start) or start.startswith(text))


def check_header(file: Path, text: bytes, wanted: Mapping[str, Any], what: str, free: Collection[str] = ()) -> None:
    """Raises `UserError` unless the first line of a file's `text` is the header `wanted`, but for the keys `free`."""
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
    """(key, difference in words), down to the innermost mappings. A key that is missing is as good as null."""
    for key in {**found, **wanted}:
        there, here = found.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from ((key, told) for _, told in _differences(there, here, f"{place}{key}."))
        elif there != here:
            yield key, f"{place}{key} is {shown(there)}, now {shown(here)}"


def _locked(file: Path, what: str) -> int:
    """The descriptor of a file to append to that no other process can open so until it is closed."""
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

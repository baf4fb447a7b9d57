"""Finished rows of an unfinished result: whoever interrupts it loses the round that it was at, and no more."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lnlit.errors import UserError
from lnlit.files import check_output, open_locked, replaced_file


class WorkFile:
    """`<out>.partial` beside a file of JSON lines: the settings, then finished rows. It becomes `out` when all are in.

    A file that is there already is gone on with, without a last line that was cut.

    Raises `UserError` when it was begun with other settings, and while another process is writing it.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out = check_output(out)
        self.file = out.with_name(f"{out.name}.partial")
        self._stream = open_locked(self.file)
        try:
            self._open(settings)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> WorkFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __len__(self) -> int:
        """How many rows are finished."""
        return self._rows

    def rows(self) -> Iterator[dict[str, Any]]:
        self._stream.seek(0)
        self._stream.readline()
        for number, line in enumerate(self._stream, start=2):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"{self.file}:{number}: not JSON: {error}. Delete the file to start anew.") from error

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """All of them are on the disk when this returns."""
        lines = [_line(row) for row in rows]
        self._stream.write(b"".join(lines))
        self._sync()
        self._rows += len(lines)

    def keep(self, rows: int) -> None:
        """Forget all rows but the first ones."""
        self._stream.seek(0)
        for _ in range(rows + 1):
            self._stream.readline()
        self._stream.truncate(self._stream.tell())
        self._sync()
        self._rows = rows

    def finish(self) -> None:
        """Write `out` and delete this file."""
        self._stream.seek(0)
        self._stream.readline()
        with replaced_file(self.out) as scratch, scratch.open("wb") as target:
            shutil.copyfileobj(self._stream, target)
            target.flush()
            os.fsync(target.fileno())
        self.file.unlink()

    def _open(self, settings: Mapping[str, Any]) -> None:
        self._stream.seek(0)
        text = self._stream.read()
        whole = text.rfind(b"\n") + 1
        self._stream.truncate(whole)
        self._rows = max(text.count(b"\n") - 1, 0)
        if whole:
            self._check(text[:whole].partition(b"\n")[0], settings)
        else:
            self._stream.write(_line(settings))
            self._sync()

    def _check(self, line: bytes, settings: Mapping[str, Any]) -> None:
        try:
            found = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.file}: not an unfinished result: {error}. Delete it to start anew.") from error
        wanted = json.loads(_line(settings))
        if different := [key for key in (found | wanted) if found.get(key) != wanted.get(key)]:
            raise UserError(
                f"{self.file}: holds an unfinished result with other settings ({', '.join(different)}). Repeat those "
                "to go on with it, delete it to start anew, or write elsewhere."
            )

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, allow_nan=False).encode() + b"\n"

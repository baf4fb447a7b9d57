"""Sources of rows in files and Hugging Face datasets."""

from __future__ import annotations

import gzip
import json
import zlib
from abc import abstractmethod
from codecs import BOM_UTF8
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lnlit.errors import UserError, did_you_mean, shown
from lnlit.files import expanded, listed
from lnlit.interfaces import Source

#: The number of rows that are read to find a table's columns, since a JSON row may lack some.
_HEAD = 100
#: A source with more rows that cannot be read is taken for something else than rows.
_MOST_UNREADABLE = 1000


def expand(paths: str | list[str]) -> list[Path]:
    """The files for a path, a glob pattern (sorted) or a list of either. Raises `UserError` if there are none."""
    found: list[Path] = []
    for item in [paths] if isinstance(paths, str) else paths:
        try:
            path = expanded(item)
        except UserError as error:
            raise UserError(f"data: {error}") from error
        try:
            matches = [match for match in ([path] if path.is_file() else _globbed(path)) if match.is_file()]
            folder = bool(item) and path.is_dir()
        except (OSError, ValueError, IndexError):  # a name that no file can have, a pattern that pathlib does not read
            matches, folder = [], False
        if not matches:
            advice = (
                f"It is a folder: name its files, as in {str(path / '*.jsonl')!r}." if folder else "Check the path."
            )
            raise UserError(f"data: no file matches {item!r:.200} (looked from {Path.cwd()}). {advice}")
        found += matches
    if not found:
        raise UserError("data: the list of paths is empty; give at least one file")
    return found


def _globbed(pattern: Path) -> list[Path]:
    return listed(pattern.anchor or ".", str(pattern.relative_to(pattern.anchor)))


def rows_of(source: Source, start: int = 0) -> Iterator[Any]:
    """Yields a source's rows from index `start` on. Raises `UserError` if it yields something that is not a row."""
    rows: Any = source.rows(start)
    if not isinstance(rows, Iterable):
        raise UserError(f"{source}: rows({start}) gave {shown(rows)}; expected an iterator of rows.")
    for number, row in enumerate(rows, start):
        if not isinstance(row, Mapping):
            raise UserError(f"{where(source, number)}: is {shown(row)}; expected a dict with keys such as messages.")
        yield row


def readable_rows(source: Source) -> Iterator[tuple[int, Any]]:
    """Yields each row of a source with its index. In place of a row that cannot be read, it yields the `UserError` that
    says why.

    Raises the `UserError` of a source that cannot go on behind such a row, and of one with very many of them.
    """
    if isinstance(source, JsonlSource):  # others begin anew behind each such row
        failures = 0
        for index, row in enumerate(source.readable()):
            failures += isinstance(row, UserError)
            if isinstance(row, UserError) and failures > max(_MOST_UNREADABLE, index / 2):
                raise row
            yield index, row
        return
    index, failures, last = 0, 0, ""
    while True:
        try:
            for row in rows_of(source, index):
                yield index, row
                index += 1
            return
        except UserError as error:
            failures += 1
            if str(error) == last or failures > _MOST_UNREADABLE:
                raise
            last = str(error)
            yield index, error
            index += 1


def where(source: Source, index: int) -> str:
    """The place of a row for an error message: file and line if the source knows them."""
    locate = getattr(source, "where", None)
    return locate(index) if locate else f"row {index + 1} of {source}"


@contextmanager
def naming_row(source: Source, index: int) -> Iterator[None]:
    """A `UserError` of the block begins with the place of a row."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where(source, index)}: {error}") from error


class SomeRows(Source):
    """The base class of sources that keep some rows of another one, `source`."""

    source: Source

    @abstractmethod
    def kept(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows that are kept, each with its index in the underlying source."""

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        return (row for _, row in islice(self.kept(), start, None))

    def where(self, index: int) -> str:
        """The place of a row in the underlying source."""
        kept = next(islice(self.kept(), index, None), None)
        return f"row {index + 1} of {self}" if kept is None else where(self.source, kept[0])


class FileSource(Source):
    """The base class of sources of files. `files` are those for `paths`, in the given order."""

    def __init__(self, paths: str | list[str]) -> None:
        self.paths = paths
        self.files = expand(paths)

    def __str__(self) -> str:
        return ", ".join(str(file) for file in self.files)


def files_behind(source: Source) -> int:
    """The number of files that a source reads one after the other, also if it changes or selects the rows of another
    source."""
    behind = vars(source).get("source")
    if isinstance(behind, Source):
        return files_behind(behind)
    return len(source.files) if isinstance(source, FileSource) else 1


class Columns(UserDict[str, str | None]):
    """Maps columns to their new names, or to None to leave them out. Raises `UserError` if two columns would get the
    same name.

    Its text lists what is renamed. A source appends it to its own text, so that sources which rename otherwise differ.
    """

    def __init__(self, columns: Mapping[str, str | None]) -> None:
        super().__init__(columns)
        for column, name in columns.items():
            others = [other for other, called in columns.items() if called == name and other != column]
            if name is not None and others:
                raise UserError(f"columns: {column!r} and {others[0]!r} cannot both be called {name!r}")

    def __str__(self) -> str:
        parts = [f"{column} left out" if name is None else f"{column} as {name}" for column, name in self.items()]
        return f" ({', '.join(parts)})" if parts else ""

    def check(self, rows: Iterable[Mapping[str, Any]], table: str) -> None:
        """Raises `UserError` for a column that none of these first rows has."""
        found = dict.fromkeys(key for row in rows for key in row)
        for column, name in self.items():
            if column not in found and found:
                guess = did_you_mean(column, found)
                if name in found and not guess:
                    guess = f" Columns come first, as in {{{name}: {column}}}."
                raise UserError(f"columns: {table} has no column {column!r}.{guess} It has: {', '.join(found)}.")

    def renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its columns under their new names. Raises `UserError` if two columns with values would have the
        same name."""
        new: dict[str, Any] = {}
        for column, value in row.items():
            name = self.get(column, column)
            if name is None:
                continue
            if value is not None and new.get(name) is not None:
                raise UserError(
                    f"columns: two columns would be called {name!r}. Leave the other one out: {{{name}: null}}, or "
                    "call it something else."
                )
            if value is not None or name not in new:
                new[name] = value
        return new


class TableSource(Source):
    """The base class of sources of tables, whose `columns` can be renamed to the names that lnlit reads."""

    columns: Columns

    @abstractmethod
    def _table(self, start: int) -> Iterator[dict[str, Any]]:
        """Yields rows from index `start` on, with their original columns."""

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        rows = self._table(start)
        if not self.columns:
            yield from rows
            return
        head = list(islice(rows, _HEAD))
        if start == 0:
            self.columns.check(head, str(self))
        for index, row in enumerate(chain(head, rows), start):
            with naming_row(self, index):
                renamed = self.columns.renamed(row)
            yield renamed

    def __str__(self) -> str:
        return f"{super().__str__()}{self.columns}"


class TableFileSource(TableSource, FileSource):
    """What sources of files with tables share.

    Args:
        paths: A file, a glob pattern, or a list of either, read in the given order. `*` leaves out hidden files.
        columns: What columns are to be called, as in `{question: prompt, answer: completion}`; null leaves one out.
    """

    def __init__(self, paths: str | list[str], columns: dict[str, str | None] | None = None) -> None:
        super().__init__(paths)
        self.columns = Columns(columns or {})


class JsonlSource(TableFileSource):
    """Rows of `.jsonl` or `.jsonl.gz` files (one JSON object a line, blank lines skipped), or of `.json` files, which
    are lists or again one object a line."""

    def _table(self, start: int) -> Iterator[dict[str, Any]]:
        return (json_object(text, place) for place, text in islice(self._located(), start, None))

    def readable(self) -> Iterator[dict[str, Any] | UserError]:
        """Yields each row, or the error of a line that is none."""
        rows = self._parsed()
        head = list(islice(rows, _HEAD))
        self.columns.check([row for _, row in head if not isinstance(row, UserError)], str(self))
        for place, row in chain(head, rows):
            try:
                yield row if isinstance(row, UserError) else self.columns.renamed(row)
            except UserError as error:
                yield UserError(f"{place}: {error}")

    def _parsed(self) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
        for place, text in self._located():
            try:
                yield place, json_object(text, place)
            except UserError as error:
                yield place, error

    def where(self, index: int) -> str:
        return next((place for place, _ in islice(self._located(), index, None)), f"row {index + 1} of {self}")

    def _located(self) -> Iterator[tuple[str, Any]]:
        """(file and place, unparsed line or list item). Skipping a row costs no parsing."""
        for file in self.files:
            yield from _json_list(file) if file.suffix == ".json" else _lines(file)


def json_object(text: Any, place: str) -> dict[str, Any]:
    """A line or an already parsed value as one row."""
    try:
        row = json.loads(text.decode()) if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text: {error.reason}. Convert the file to UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON: {error.msg} at column {error.colno}. Fix or remove it.") from error
    except (ValueError, RecursionError) as error:  # a number of very many digits, very deep nesting
        raise UserError(f"{place}: cannot be read as JSON: {error}. Fix or remove it.") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected a JSON object, got {type(row).__name__}. Each row is one object.")
    return row


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Lines as the file's newlines make them: JSON text may hold U+2028, where `str.splitlines` would cut."""
    opener = gzip.open if file.suffix == ".gz" else open
    number = 0
    try:
        with opener(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.removeprefix(BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield f"{file}:{number}", text
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}:{number + 1}: cannot be read: {error}. Is the file whole and readable?") from error


def _json_list(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        items = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _lines(file)
            return
        raise UserError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(items, list):
        raise UserError(f"{file}: expected a list of rows, got {type(items).__name__}. Use .jsonl for one row a line.")
    yield from ((f"{file}: item {number}", item) for number, item in enumerate(items, start=1))


class TextFileSource(FileSource):
    """Plain text files, one row `{"text": the whole file}` each.

    Args:
        paths: A file, a glob pattern, or a list of either, read in the given order. `*` leaves out hidden files.
    """

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        for file in self.files[start:]:
            try:
                yield {"text": file.read_bytes().decode("utf-8-sig")}  # as it is: text mode would change line ends
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: not UTF-8 text: {error.reason}. Convert the file to UTF-8.") from error
            except OSError as error:
                raise UserError(f"{file}: cannot be read: {error}.") from error

    def where(self, index: int) -> str:
        return str(self.files[index])


class ParquetSource(TableFileSource):
    """Rows of Parquet files, one row group in memory at a time."""

    def _table(self, start: int) -> Iterator[dict[str, Any]]:
        import pyarrow
        import pyarrow.parquet as parquet

        for file in self.files:
            try:
                with parquet.ParquetFile(file) as table:
                    for group in range(table.num_row_groups):
                        size = table.metadata.row_group(group).num_rows
                        if start >= size:
                            start -= size
                            continue
                        yield from table.read_row_group(group).slice(start).to_pylist()
                        start = 0
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{file}: cannot be read as Parquet: {error}") from error


class HuggingFaceSource(TableSource):
    """Rows of a dataset that `datasets.load_dataset` reads: a hub name or a local folder. Never runs a dataset's code.

    Args:
        path: Hub name (`owner/dataset`) or local folder.
        split: The split to read, e.g. `train` or `train[:1%]`.
        name: Configuration (subset) of the dataset, where it has several.
        revision: Commit or tag of a hub dataset; pin it for a repeatable run.
        streaming: Read from the hub as needed instead of downloading everything first.
        columns: New names of columns, e.g. `{question: prompt, answer: completion}`; null leaves a column out.
    """

    def __init__(
        self,
        path: str,
        split: str,
        name: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
        columns: dict[str, str | None] | None = None,
    ) -> None:
        self.columns = Columns(columns or {})
        self.path = path
        self.split = split
        self.name = name
        self.revision = revision
        self.streaming = streaming

    def __str__(self) -> str:
        return f"{self.path} ({self.split}){self.columns}"

    def _table(self, start: int) -> Iterator[dict[str, Any]]:
        from datasets import load_dataset

        try:
            data: Any = load_dataset(
                self.path, name=self.name, split=self.split, revision=self.revision, streaming=self.streaming
            )
        except Exception as error:  # datasets raises its own, hub and file errors alike
            message = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
            raise UserError(
                f"data: cannot load {self}: {message}. Check the name, the split and the network."
            ) from error
        if self.streaming or start < len(data):  # `skip` refuses to skip everything
            yield from (dict(row) for row in data.skip(start))

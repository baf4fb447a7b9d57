"""Rows that nobody can read are counted, or with `strict` are the end; a source that nobody can read always is."""

from __future__ import annotations

import gzip
import json

import pytest

from lnlit.curation.columns import Columns
from lnlit.curation.decontaminate import Decontaminate
from lnlit.data.sources import JsonlSource, ParquetSource, readable_rows
from lnlit.errors import UserError
from lnlit.interfaces import Source
from lnlit.stages.curate import curate

GOOD = {"prompt": "caf\u00e9 \u2028 and more", "answer": "1"}
#: lines of a file -> reasons of the rows dropped
BAD: dict[str, tuple[bytes, dict[str, int]]] = {
    "malformed": (b'{"prompt": "a"\n', {"unreadable": 1}),
    "no object": (b'["a"]\n3\nnull\n"text"\n', {"unreadable": 4}),
    "broken UTF-8": (b'{"prompt": "caf\xe9"}\n', {"unreadable": 1}),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16") + b"\n", {"unreadable": 1}),
    "NaN": (b'{"prompt": "a", "score": NaN}\n', {"no_json": 1}),
    "half a character": (b'{"prompt": "\\ud83d"}\n', {"no_json": 1}),
    "nested": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", {"unreadable": 1}),
    "a long number": (b'{"prompt": ' + b"9" * 5000 + b"}\n", {"unreadable": 1}),
    "cut off": (b'{"prompt": "a"}\n{"prom', {"unreadable": 1}),
}


def lines(*rows: dict, end: bytes = b"\n") -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + end for row in rows)


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("columns", [None, {"answer": "solution"}])
def test_a_bad_row_is_counted_and_all_others_go_on(curated, tmp_path, case, columns):
    text, reasons = BAD[case]
    (tmp_path / "rows.jsonl").write_bytes(lines(GOOD, GOOD) + text + b"\n" + lines(GOOD))
    kept, dropped = curated(JsonlSource(str(tmp_path / "rows.jsonl"), columns), [Columns(keep=["prompt"])])
    assert dropped["Read"] == reasons
    assert [row for row in kept if row != {"prompt": "a"}] == [{"prompt": GOOD["prompt"]}] * 3


@pytest.mark.parametrize("case", BAD)
def test_strict_stops_at_a_bad_row(tmp_path, case):
    (tmp_path / "rows.jsonl").write_bytes(lines(GOOD, GOOD) + BAD[case][0])
    with pytest.raises(UserError, match=r"Read: row \d.*rows.jsonl:[34]: ") as told:
        curate(JsonlSource(str(tmp_path / "rows.jsonl")), [], str(tmp_path / "out.jsonl"), strict=True)
    assert len(str(told.value)) < 400 and "\n" not in str(told.value)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + lines(GOOD, GOOD),
        lines(GOOD, GOOD, end=b"\r\n"),
        b"\xef\xbb\xbf" + lines(GOOD, GOOD, end=b"\r\n\r\n"),
        lines(GOOD, GOOD).rstrip(b"\n"),
    ],
    ids=["BOM", "CRLF", "both", "no last line end"],
)
def test_other_ways_to_write_a_file(curated, tmp_path, text):
    (tmp_path / "rows.jsonl").write_bytes(text)
    kept, dropped = curated(JsonlSource(str(tmp_path / "rows.jsonl")), [])
    assert kept == [GOOD, GOOD] and dropped == {"Read": {}}


def test_a_row_of_ten_megabytes(curated, rows_in):
    long = {"prompt": "word " * 2_000_000}
    kept, _ = curated(rows_in([GOOD, long, GOOD]), [Columns(required=["prompt"])])
    assert kept == [GOOD, long, GOOD]


def test_a_damaged_file_is_the_end(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(lines(*[GOOD] * 1000))[:-20])
    with pytest.raises(UserError, match=r"rows.jsonl.gz:\d+: cannot be read: .*Is the file whole"):
        curate(JsonlSource(str(file)), [], str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_source_without_lines_is_the_end_where_nothing_can_be_read(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        curate(ParquetSource(str(tmp_path / "rows.parquet")), [], str(tmp_path / "out.jsonl"))


def test_a_source_that_fails_at_some_rows_goes_on_behind_them():
    class Uneven(Source):
        def rows(self, start=0):
            for n in range(start, 6):
                if n in (0, 3, 4):
                    raise UserError(f"row {n}")
                yield {"n": n}

    found = [row for _, row in readable_rows(Uneven())]
    assert [str(row) if isinstance(row, UserError) else row["n"] for row in found] == [
        "row 0",
        1,
        2,
        "row 3",
        "row 4",
        5,
    ]


def test_columns_that_are_not_there_are_told(tmp_path, rows_in):
    source = JsonlSource(str(rows_in([GOOD]).files[0]), {"promt": "prompt"})
    with pytest.raises(UserError, match=r"no column 'promt'\. Did you mean 'prompt'"):
        curate(source, [], str(tmp_path / "out.jsonl"))


@pytest.mark.parametrize("value", ["", "  \n", None, [], {}])
def test_empty_answers_are_counted(curated, rows_in, value):
    kept, dropped = curated(
        rows_in([GOOD, {"prompt": "a", "answer": value}, {"prompt": "b"}]), [Columns(required=["answer"])]
    )
    assert kept == [GOOD] and dropped["Columns"] == {"no_answer": 2}


def test_rows_of_another_schema_are_counted(curated, rows_in):
    rows = [{"x": 1}, {"prompt": 3}, {"messages": "hello"}, {"prompt": "q"}]
    kept, dropped = curated(rows_in(rows), [Decontaminate({"b": rows_in([{"question": "other"}], "b")})])
    assert kept == [{"prompt": "q"}] and dropped["Decontaminate"] == {"no_text": 3}

"""A journal holds what was said to be on the disk, whatever came between, and belongs to one process and one run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lnlit.errors import UserError
from lnlit.journal import Journal, Lines, read_lines

HEADER = {"model": "a", "engine": {"class": "native", "rows": 4}, "seed": 0}
ENTRIES = [{"n": 0}, {"n": 1, "text": "ü"}, {"n": 2}]


def written(file, *entries) -> bytes:
    with Journal(file, HEADER, "rows") as journal:
        journal.append(*entries)
    return file.read_bytes()


def test_a_file_cut_anywhere_is_gone_on_with_to_the_same_bytes(tmp_path):
    file = tmp_path / "rows"
    whole = written(file, *ENTRIES)
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        with Journal(file, HEADER, "rows") as journal:
            assert [entry for _, entry in journal.numbered()] == ENTRIES[: len(journal)]
            journal.append(*ENTRIES[len(journal) :])
            assert len(journal) == 3
        assert file.read_bytes() == whole, cut


@pytest.mark.parametrize("kept", [0, 1, 3, 9])
def test_the_first_entries_can_be_kept(tmp_path, kept):
    file = tmp_path / "rows"
    written(file, *ENTRIES)
    with Journal(file, HEADER, "rows") as journal:
        journal.keep(kept)
        assert len(journal) == min(kept, 3)
        journal.append({"n": 7})
        assert [entry["n"] for _, entry in journal.numbered()] == [*[0, 1, 2][:kept], 7]


def test_what_differs_is_named_down_to_the_innermost_setting(tmp_path):
    file = tmp_path / "rows"
    before = written(file, *ENTRIES)
    other = {"model": "b", "engine": {"class": "native", "rows": 8}, "seed": 0, "k": 5}
    with pytest.raises(UserError) as refusal:
        Journal(file, other, "rows")
    assert str(refusal.value) == (
        f"{file}: holds rows with other settings: model is 'a', now 'b'; engine.rows is 4, now 8; k is None, now 5. "
        "Repeat those to go on with it, delete it to start anew, or write elsewhere."
    )
    assert file.read_bytes() == before
    with Journal(file, other, "rows", free=("model", "engine", "k")) as journal:
        assert len(journal) == 3
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["some notes", "some notes\n", "[1]\n", "5\n", '{"other": 1', "null\n"])
def test_another_file_is_refused_and_left_as_it_is(tmp_path, text):
    (tmp_path / "rows").write_text(text)
    with pytest.raises(UserError, match=r"not a file of rows: its first line is no header|other settings"):
        Journal(tmp_path / "rows", HEADER, "rows")
    assert (tmp_path / "rows").read_text() == text


def test_two_processes_cannot_write_one_file(tmp_path):
    file = tmp_path / "rows"
    code = "import sys; from pathlib import Path; from lnlit.journal import Lines; Lines(Path(sys.argv[1]), 'rows')"
    with Lines(file, "rows") as lines:
        done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
        assert f"UserError: {file}: another process is writing these rows." in done.stderr
        lines.append(ENTRIES[0])
    with Lines(file, "rows") as lines:
        assert len(lines) == 1
        file.unlink()
        with Lines(file, "rows") as another:  # not the one that its owner has finished and deleted
            another.append({})
        assert file.read_text() == "{}\n"


def test_a_disk_that_fills_up_leaves_whole_entries(tmp_path, monkeypatch):
    file = tmp_path / "rows"
    before = written(file, *ENTRIES)
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 12:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:10])

    with Journal(file, HEADER, "rows") as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(UserError, match=r"cannot be written: .*No space left on device. What it held is kept"):
            journal.append({"n": 3}, {"n": 4})
        monkeypatch.undo()
        assert file.read_bytes() == before and len(journal) == 3
        journal.append({"n": 5})
    assert [entry for _, entry in read_lines(file, "rows")] == [HEADER, *ENTRIES, {"n": 5}]


def test_entries_alone_become_the_result(tmp_path):
    out = tmp_path / "deep" / "rows.jsonl"
    with Journal.beside(out, HEADER, "rows") as journal:
        journal.append(*ENTRIES)
        journal.finish(out)
    assert [entry for _, entry in read_lines(out, "rows")] == ENTRIES
    assert [file.name for file in out.parent.iterdir()] == ["rows.jsonl"]


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "rows").write_text('{}\n{"a\n{}\n')
    with pytest.raises(UserError, match=r"rows:2: not a line of rows: .* Delete the line, or the file"):
        list(read_lines(tmp_path / "rows", "rows"))

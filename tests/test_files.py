"""Writing whole or not at all, whatever comes between."""

from __future__ import annotations

import os
import signal
import tempfile
from multiprocessing import get_context
from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.files import check_format, listed, replaced_file, replaced_folder


def fill(out: Path, text: str) -> None:
    with replaced_folder(out) as scratch:
        (scratch / "file").write_text(text)


@pytest.mark.parametrize(
    ("number", "moment", "stays"),
    [(1, "before", "old"), (1, "after", "old"), (2, "before", "old"), (2, "after", "new")],
)
def test_ctrl_c_around_the_renames_leaves_one_whole_folder(tmp_path, monkeypatch, number, moment, stays):
    out = tmp_path / "out"
    fill(out, "old")
    rename, calls = Path.rename, []

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == number and moment == "before":
            raise KeyboardInterrupt
        renamed = rename(path, target)
        if len(calls) == number:
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(out, "new")
    assert (out / "file").read_text() == stays
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("writer", [replaced_folder, replaced_file])
def test_an_error_that_is_not_about_writing_stays_as_it_is(tmp_path, writer):
    error = ValueError("not about writing")
    with pytest.raises(ValueError, match="not about writing") as caught, writer(tmp_path / "out"):
        raise error
    assert caught.value is error and error.__cause__ is None
    with pytest.raises(UserError, match="saving failed and nothing was changed") as caught, writer(tmp_path / "out"):
        raise OSError("no more")
    assert isinstance(caught.value.__cause__, OSError) and list(tmp_path.iterdir()) == []


WRITERS = (replaced_file, replaced_folder)


def die_while_writing(writer, out: Path) -> None:
    with writer(out) as scratch:
        (scratch / "file" if scratch.is_dir() else scratch).write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def killed(writer, out: Path) -> Path:
    """The scratch that a killed writer leaves."""
    before = {*out.parent.iterdir()}
    process = get_context("fork").Process(target=die_while_writing, args=(writer, out))
    process.start()
    process.join()
    (left,) = {*out.parent.iterdir()} - before
    return left


@pytest.mark.parametrize("writer", WRITERS)
def test_scratch_of_a_killed_writer_is_hidden_and_gone_after_the_next(tmp_path, writer):
    out = tmp_path / "out.jsonl"
    left, other = killed(writer, out), killed(writer, tmp_path / "out.jsonl.gz")
    assert left.name.startswith(".") and listed(tmp_path, "*") == listed(tmp_path, "**/*") == []
    with writer(out) as scratch:
        assert not left.exists() and scratch.exists()
    assert {*tmp_path.iterdir()} == {out, other}


@pytest.mark.parametrize("writer", WRITERS)
def test_scratch_of_a_living_writer_and_hidden_files_of_others_stay(tmp_path, writer):
    out, swap = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.swp"
    swap.touch()
    with writer(out) as first:
        with writer(out) as second:
            assert first.exists() and second.exists()
        assert first.exists() and not second.exists()
    assert {*tmp_path.iterdir()} == {out, swap}


def test_of_two_renames_that_a_kill_came_between_neither_folder_is_deleted(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, "old")
    rename = Path.rename

    def once(path: Path, target: Path) -> None:
        rename(path, target)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Path, "rename", once)
    process = get_context("fork").Process(target=fill, args=(out, "new"))
    process.start()
    process.join()
    monkeypatch.undo()
    assert not out.exists()
    fill(out, "newer")
    texts = {(folder / "file").read_text() for folder in tmp_path.iterdir()}
    assert texts == {"old", "new", "newer"}


def test_files_that_stay_move_into_the_new_folder(tmp_path):
    out = tmp_path / "out"
    fill(out, "old")
    (out / "notes.txt").write_text("mine")
    with replaced_folder(out, {"file"}.__contains__) as scratch:
        (scratch / "file").write_text("new")
    assert {file.name: file.read_text() for file in out.iterdir()} == {"file": "new", "notes.txt": "mine"}
    assert [*tmp_path.iterdir()] == [out]


def test_scratch_that_another_writer_deletes_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    made, mkdtemp = [], tempfile.mkdtemp

    def at_once_deleted(**settings):
        made.append(Path(mkdtemp(**settings)))
        if len(made) == 1:
            made[0].rmdir()
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", at_once_deleted)
    fill(tmp_path / "out", "whole")
    assert len(made) == 2 and (tmp_path / "out" / "file").read_text() == "whole"


def test_a_file_without_a_format_is_something_else_and_one_with_another_is_of_another_version(tmp_path):
    check_format({"format": 1}, 1, "costs.json", "a cost table")
    with pytest.raises(UserError, match=r"^costs.json: expected a cost table, which has the key 'format'; this has no"):
        check_format({}, 1, "costs.json", "a cost table")
    with pytest.raises(UserError, match=r"^costs.json: format 2; this lnlit reads format 1. Update lnlit.$"):
        check_format({"format": 2}, 1, "costs.json", "a cost table")

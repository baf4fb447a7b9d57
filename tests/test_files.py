"""Writing whole or not at all, whatever comes between."""

from __future__ import annotations

from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.files import replaced_file, replaced_folder


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

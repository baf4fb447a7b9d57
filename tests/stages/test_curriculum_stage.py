"""A picture of a curriculum, drawn before the run."""

from __future__ import annotations

import json

import pytest

from lnlit.data.difficulty import DifficultySource
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.sampling.curriculum import GaussianCurriculum
from lnlit.stages.curriculum import curriculum, follow


@pytest.fixture
def annotated(tmp_path) -> JsonlSource:
    rows = [{"input": str(n), "output": "", "pass_rate": n % 9 / 8} for n in range(90)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(str(tmp_path / "rows.jsonl"))


def test_a_picture_is_written_and_says_what_is_taken(annotated, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = curriculum(DifficultySource(annotated), str(tmp_path / "new" / "plan.png"), 10, 6)
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "10 rollouts take 60 prompts of 60; mean pass rate 0." in capsys.readouterr().err


def test_what_is_drawn_is_what_a_run_takes(annotated):
    rows = list(annotated.rows())
    first, second = GaussianCurriculum(), GaussianCurriculum()
    first.start(rows, 3, 8)
    second.start(rows, 3, 8)
    wanted, taken = follow(first, 9)
    for row in taken:
        batch = second.take(9)
        assert row == [sum(rows[index]["pass_rate"] == rate for index in batch) for rate in second.rates]
    assert all(sum(row) == pytest.approx(9) for row in wanted)


def test_rows_without_pass_rates_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "rows.jsonl").write_text('{"input": "a", "output": "b"}\n')
    with pytest.raises(UserError, match="lnlit rollout annotate"):
        curriculum(JsonlSource(str(tmp_path / "rows.jsonl")), str(tmp_path / "plan.png"), 10, 6)
    assert not (tmp_path / "plan.png").exists()

"""Rows by their pass rates: which are kept, what is said, and where a bad one stands."""

from __future__ import annotations

import json

import pytest

from lnlit.data.difficulty import DifficultySource
from lnlit.data.sources import JsonlSource, where
from lnlit.errors import UserError


@pytest.fixture
def annotated(tmp_path):
    def write(*rates, **keys) -> JsonlSource:
        rows = [{"input": str(n), "output": "", "pass_rate": rate} for n, rate in enumerate(rates)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | keys) + "\n" for row in rows))
        return JsonlSource(str(tmp_path / "rows.jsonl"))

    return write


EIGHTHS = [n / 8 for n in range(9)]


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({}, EIGHTHS[:6]),
        ({"pass_rate_above": 0.0}, EIGHTHS[1:6]),
        ({"pass_rate_below": None}, EIGHTHS),
        ({"pass_rate_below": 1.0, "pass_rate_above": 0.5}, EIGHTHS[5:8]),
        ({"pass_rate_below": 0.125}, [0.0]),
    ],
)
def test_rows_within_the_bounds_are_kept_in_order(annotated, bounds, kept):
    source = DifficultySource(annotated(*EIGHTHS), **bounds)
    assert [row["pass_rate"] for row in source.rows()] == kept
    assert [row["pass_rate"] for row in source.rows(1)] == kept[1:]


def test_what_is_left_out_is_said_once(annotated, caplog):
    source = DifficultySource(annotated(0.0, None, 0.5, 0.75, 1.0, None, 0.25), pass_rate_above=0.0)
    with caplog.at_level("INFO"):
        assert len(list(source.rows())) == len(list(source.rows())) == 2
    assert caplog.text.count("2 kept, 2 too easy, 1 too hard, 2 not judged") == 1
    assert "rows.jsonl (pass rate above 0 and below 0.75)" in caplog.text


def test_a_row_is_found_in_its_file(annotated, tmp_path):
    source = DifficultySource(annotated(1.0, 0.5, 1.0, 0.25))
    assert where(source, 1) == f"{tmp_path / 'rows.jsonl'}:4"


def test_a_row_without_a_pass_rate_is_named(annotated, tmp_path):
    file = tmp_path / "rows.jsonl"
    source = DifficultySource(annotated(0.5, 0.5))
    file.write_text(file.read_text().replace(', "pass_rate": 0.5', "", 2).replace("{", '{"pass_rate": 0.5, ', 1))
    with pytest.raises(UserError, match=r"rows\.jsonl:2: it has no pass_rate\. `lnlit rollout annotate`"):
        list(source.rows())
    with pytest.raises(UserError, match=r"rows\.jsonl:1: its pass_rate is 62\.5, expected 0 to 1"):
        list(DifficultySource(annotated(62.5)).rows())


def test_nothing_left_is_an_error(annotated):
    with pytest.raises(UserError, match=r"no row of .* is left \(0 kept, 2 too easy\)"):
        list(DifficultySource(annotated(0.75, 1.0)).rows())


@pytest.mark.parametrize(
    "bounds",
    [
        {"pass_rate_below": 75},
        {"pass_rate_above": -0.1},
        {"pass_rate_below": 0.5, "pass_rate_above": 0.5},
        {"pass_rate_below": 0.0},
    ],
)
def test_bounds_that_make_no_sense_are_refused(annotated, bounds):
    with pytest.raises(UserError, match="DifficultySource"):
        DifficultySource(annotated(0.5), **bounds)

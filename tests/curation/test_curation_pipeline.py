"""Rows through a pipeline: in order, counted, the same on any number of workers, and finished once."""

from __future__ import annotations

import json
import random

import pytest

from lnlit.curation.columns import Columns
from lnlit.curation.dedup import ExactDedup, MinHashDedup
from lnlit.curation.step import BatchStep, Dropped, GroupStep, Step
from lnlit.errors import UserError
from lnlit.stages.curate import curate

WORDS = ("ox", "fig", "oak", "elm", "ash", "yew", "bay", "fir", "sun", "dew", "ice", "fog")


def words(random_: random.Random, count: int) -> str:
    return " ".join(random_.choice(WORDS) for _ in range(count))


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """200 rows, of which 20 say what another one says, and 20 nearly."""
    draw = random.Random(0)
    found = [{"prompt": words(draw, 40), "number": n} for n in range(160)]
    found += [{"prompt": row["prompt"], "number": 160 + n} for n, row in enumerate(found[:20])]
    found += [{"prompt": f"{row['prompt']} rye", "number": 180 + n} for n, row in enumerate(found[20:40])]
    draw.shuffle(found)
    return found


def test_rows_stay_in_order_and_are_counted(rows_in, curated, rows):
    kept, dropped = curated(rows_in(rows), [Columns(only={"number": list(range(0, 200, 2))})])
    assert kept == [row for row in rows if row["number"] % 2 == 0]
    assert dropped == {"Read": {}, "Columns": {"other_number": 100}}


def test_no_steps_copy_the_rows(rows_in, curated, rows):
    assert curated(rows_in(rows), [])[0] == rows


@pytest.mark.parametrize("tasks", [1, 7])
def test_duplicates_go_once(rows_in, curated, rows, tasks):
    """All and only what was planted, whatever the number of tasks: by hand for exact ones, and random texts have no
    n-grams in common."""
    kept, dropped = curated(rows_in(rows), [ExactDedup(), MinHashDedup()], tasks=tasks)
    assert dropped == {"Read": {}, "ExactDedup": {"duplicate": 20}, "MinHashDedup": {"duplicate": 20}}
    assert len({row["prompt"].removesuffix(" rye") for row in kept}) == len(kept) == 160
    assert all("duplicate_count" not in row for row in kept)


def test_rows_without_a_text_are_no_duplicates(rows_in, curated):
    rows = [{"answer": "1"}, {"answer": "1"}, {"prompt": "a"}, {"prompt": "a"}, {"prompt": ""}, {"prompt": "A"}]
    kept, _ = curated(rows_in(rows), [ExactDedup(), MinHashDedup()])
    assert len(kept) == 5 and sum(row.get("prompt") == "a" for row in kept) == 1


def test_numbers_may_not_count(rows_in, curated):
    rows = [{"prompt": f"how many of the {n} apples that he had are left"} for n in range(5)]
    assert len(curated(rows_in(rows), [MinHashDedup()])[0]) == 5
    assert len(curated(rows_in(rows), [MinHashDedup(numbers=False)], name="b.jsonl")[0]) == 1


def test_one_worker_equals_two(rows_in, tmp_path, rows):
    for workers in (1, 2):
        steps = [Columns(required=["prompt"]), MinHashDedup(), ExactDedup("prompt")]
        curate(rows_in(rows), steps, str(tmp_path / f"{workers}.jsonl"), workers=workers, tasks=5)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    one, two = (json.loads((tmp_path / f"{workers}.counts.json").read_text()) for workers in (1, 2))
    assert one == two


class Doubled(Step):
    def each(self, row):
        return [{**row, "copy": copy} for copy in range(2)]


class OddOnes(GroupStep):
    """Keeps the second copy of each row."""

    def group(self, rows):
        assert len(rows) == 2 and rows[0]["number"] == rows[1]["number"]
        return [Dropped("first"), rows[1]]


class Batches(BatchStep):
    def __init__(self):
        super().__init__(rows_per_batch=3)

    def batch(self, documents):
        return [{**document.metadata, "batch": len(documents)} for document in documents]


def test_rows_that_are_made_of_a_row_stay_together(rows_in, curated, rows):
    kept, dropped = curated(rows_in(rows), [Doubled(), Batches(), OddOnes(), Doubled()])
    assert [row["number"] for row in kept] == [row["number"] for row in rows for _ in range(2)]
    assert dropped["OddOnes"] == {"first": 200} and {row["batch"] for row in kept} <= {1, 2, 3}


def test_a_finished_pipeline_is_not_run_again(rows_in, tmp_path, rows, monkeypatch, capsys):
    source, out = rows_in(rows), tmp_path / "out.jsonl"
    curate(source, [Columns()], str(out))
    made = out.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(Columns, "each", lambda *_: pytest.fail("run again"))
        curate(rows_in(rows), [Columns()], str(out))
    assert out.stat().st_mtime_ns == made and "there already" in capsys.readouterr().err
    curate(rows_in(rows[:10]), [Columns()], str(out))  # the file holds other rows now
    assert len(out.read_text().splitlines()) == 10
    curate(rows_in(rows[:10]), [Columns(keep=["number"])], str(out))
    assert "prompt" not in out.read_text() and sorted(p.name for p in tmp_path.iterdir()) == [
        "out.counts.json",
        "out.jsonl",
        "rows.jsonl",
    ]


class Stops(Step):
    """Fails at the row of a number, unless told to go on."""

    def __init__(self, at):
        super().__init__()
        self._at = at

    def each(self, row):
        if row["number"] == self._at:
            raise UserError("no further")
        return row


def test_an_error_keeps_what_was_done(rows_in, tmp_path, rows):
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="no further"):
        curate(rows_in(rows), [Stops(rows[150]["number"])], str(out), tasks=4)
    done = {file.name for file in (tmp_path / "out.jsonl.work" / "parts" / "01" / "completions").iterdir()}
    assert done == {"00000", "00001"} and not out.exists()  # row 150 is in the third shard
    with pytest.raises(UserError, match=r"other settings: steps is .*Repeat those"):
        curate(rows_in(rows), [Stops(-1), Columns()], str(out), tasks=4)
    curate(rows_in(rows), [Stops(-1)], str(out), tasks=4)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows


def test_a_datatrove_block_stands_between_ours(rows_in, curated, rows):
    from datatrove.pipeline.filters import LambdaFilter

    kept, dropped = curated(rows_in(rows), [LambdaFilter(lambda document: "rye" in document.text), Columns()])
    assert len(kept) == 20 and list(dropped.values())[1] == {"without a reason": 180}


def test_sources_by_name_become_categories(rows_in, curated):
    sources = {
        "math": rows_in([{"prompt": "1+1"}, {"prompt": "2+2", "category": "sums"}], "a"),
        "code": rows_in([{"prompt": "print"}], "b"),
    }
    assert [row["category"] for row in curated(sources, [])[0]] == ["math", "sums", "code"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"out": "rows.jsonl"}, "read by this very command"),
        ({"out": "out.json"}, r"ends with \.jsonl"),
        ({"tasks": 0}, "curate.tasks: expected a positive number"),
        ({"workers": 0}, "curate.workers: expected a positive number"),
    ],
)
def test_settings_that_make_no_sense(rows_in, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        curate(rows_in([{"prompt": "a"}]), [], **{"out": "out.jsonl", **options})

from collections.abc import Iterator

import numpy as np
import pytest

from lnlit.data.blend import BlendEntry, in_stages, interleave, next_source, row_counts
from lnlit.errors import UserError
from lnlit.interfaces import Source


class Numbers(Source):
    def rows(self, start: int = 0) -> Iterator[dict]:
        return iter(())


SOURCE = Numbers()


def test_interleaving_keeps_every_prefix_close_to_the_shares():
    counts = [700, 200, 100]
    order = interleave(counts)
    assert np.bincount(order).tolist() == counts
    for source, count in enumerate(counts):
        drift = np.cumsum(order == source) - count / 1000 * np.arange(1, 1001)
        assert abs(drift).max() < 1.5


def test_one_turn_at_a_time_gives_the_same_order():
    counts, taken, order = [7, 3, 2], [0, 0, 0], []
    for _ in range(12):
        order.append(next_source(taken, counts))
        taken[order[-1]] += 1
    assert order == interleave(counts).tolist()


def test_weights_are_proportions_and_repeat_no_row():
    stage = [BlendEntry(SOURCE, weight=3), BlendEntry(SOURCE, weight=1)]
    assert row_counts(stage, [600, 1000]) == [600, 200]
    assert row_counts(stage, [6000, 100]) == [300, 100]


def test_counts_rows_epochs_and_default():
    stage = [BlendEntry(SOURCE, rows=50), BlendEntry(SOURCE, epochs=4), BlendEntry(SOURCE)]
    assert row_counts(stage, [20, 10, 7]) == [50, 40, 7]


def test_stages_come_in_ascending_order():
    entries = [BlendEntry(SOURCE, stage=2), BlendEntry(SOURCE, stage=1, rows=3), BlendEntry(SOURCE, stage=1)]
    assert in_stages(entries) == [entries[1:], entries[:1]]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "the blend is empty"),
        ([BlendEntry(SOURCE, weight=1, rows=2)], r"train\[0\]: give one of weight, rows and epochs"),
        ([BlendEntry(SOURCE), BlendEntry(SOURCE, rows=0)], r"train\[1\]\.rows: expected a positive number, got 0"),
        ([BlendEntry(SOURCE, weight=float("inf"))], r"train\[0\]\.weight"),
        ([BlendEntry(SOURCE, weight=1), BlendEntry(SOURCE)], "1 of 2 sources have a weight"),
    ],
)
def test_amounts_that_make_no_sense_are_refused(entries, message):
    with pytest.raises(UserError, match=message):
        in_stages(entries)

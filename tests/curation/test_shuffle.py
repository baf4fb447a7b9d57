"""A file that is read in order has every domain everywhere, however many tasks made it."""

from __future__ import annotations

from collections import Counter

from lnlit.curation.blend import Blend
from lnlit.curation.columns import Columns
from lnlit.curation.shuffle import Shuffle


def test_domains_that_came_one_after_the_other_are_mixed(rows_in, curated):
    source = {name: rows_in([{"n": n} for n in range(300)], name) for name in ("math", "code")}
    rows, dropped = curated(source, [Blend({"math": 2, "code": 1}), Shuffle(), Columns(drop=["x"])], tasks=4)
    assert Counter(row["category"] for row in rows) == {"math": 300, "code": 150} and dropped["Shuffle"] == {}
    assert len({(row["category"], row["n"]) for row in rows}) == 450
    for start in range(0, 450, 90):  # 60 of math expected, with a deviation of 4
        assert 42 <= Counter(row["category"] for row in rows[start : start + 90])["math"] <= 78


def test_the_order_is_that_of_the_seed_alone(rows_in, curated):
    source = rows_in([{"n": n} for n in range(200)])
    orders = [
        [row["n"] for row in curated(source, [Shuffle(seed)], tasks=tasks, name=f"{seed}-{tasks}.jsonl")[0]]
        for seed, tasks in ((0, 1), (0, 7), (1, 1))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(200))
    assert sum(n == at for at, n in enumerate(orders[0])) < 10

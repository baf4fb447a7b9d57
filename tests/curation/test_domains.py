"""A blend has the shares that were asked for, and its table says what any file is made of."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lnlit.curation.blend import Blend, wanted_rows
from lnlit.curation.domains import TABLE_2, domain_table, share_of, tally
from lnlit.errors import UserError

#: Table 2 as it is printed: % of the total of each domain and mode.
PRINTED = {
    "math/on": 6.7, "math/off": 60.1, "code/on": 3.0, "code/off": 27.6, "science/on": 2.1, "chat/on": 0.03,
    "chat/off": 0.09, "instruction following": 0.17, "safety": 0.10,
}  # fmt: skip


def test_table_2_adds_up():
    assert sum(TABLE_2.values()) == 33_011_757
    for name, percent in PRINTED.items():
        assert TABLE_2[name] / 33_011_757 * 100 == pytest.approx(percent, abs=0.05)


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"category": "math", "reasoning": "on"}, "math/on"),
        ({"category": "Math", "system_prompt": "detailed thinking off"}, "math/off"),
        ({"domain": "science", "thinking": True}, "science/on"),
        ({"category": "code", "messages": [{"role": "system", "content": "detailed thinking on"}]}, "code/on"),
        ({"category": "IF", "reasoning": None}, "instruction following"),
        ({"category": "safety", "messages": [{"from": "system", "value": "x"}, "odd"]}, "safety"),
        ({"category": ""}, "without a domain"),
        ({"category": 3, "domain": "chat"}, "chat"),
        ({}, "without a domain"),
    ],
)
def test_the_domain_of_a_row(row, key):
    assert tally(row) == key


def test_a_share_may_hold_both_modes():
    assert share_of("math/on", {"math": 1, "math/on": 2}) == "math/on"
    assert share_of("math/off", {"math": 1, "math/on": 2}) == "math"
    assert share_of("code", {"math": 1}) is None


@pytest.mark.parametrize("seed", range(30))
def test_counts_are_the_shares_and_never_more_than_there_are(seed):
    """Against a search by hand for the largest blend of which there are enough rows."""
    draw = random.Random(seed)
    names = "abcde"[: draw.randint(1, 5)]
    shares = {name: draw.choice([1.0, 2.0, 0.5, 7.25]) for name in names}
    there = {name: draw.randint(1, 60) for name in names}
    found, whole = wanted_rows(there, shares, None), sum(shares.values())
    total = sum(found.values())
    largest = next(n for n in range(400, -1, -1) if all(n * shares[x] / whole <= there[x] for x in names))
    assert total == largest
    for name in names:
        assert 0 <= found[name] <= there[name] and abs(found[name] - total * shares[name] / whole) < 1


def rows(counts):
    found = []
    for key, count in counts.items():
        domain, _, mode = key.partition("/")
        found += [{"category": domain, "n": n, **({"reasoning": mode} if mode else {})} for n in range(count)]
    random.Random(0).shuffle(found)
    return found


@pytest.mark.parametrize("tasks", [1, 5])
def test_a_blend(rows_in, curated, tasks):
    source = rows_in(rows({"math/on": 300, "math/off": 500, "code/on": 400, "poems": 50}))
    shares = {"math/on": 1, "math/off": 2, "code": 1.5}
    kept, dropped = curated(source, [Blend(shares, rows=450)], tasks=tasks)
    assert Counter(tally(row) for row in kept) == {"math/on": 100, "math/off": 200, "code/on": 150}
    assert dropped["Blend"] == {"other_domain": 50, "beyond_its_share": 750}
    assert len({(tally(row), row["n"]) for row in kept}) == 450
    halves = Counter(tally(row) for row in kept[:225])  # spread evenly
    assert all(abs(halves[key] * 2 - count) <= 40 for key, count in Counter(map(tally, kept)).items())


def test_as_much_as_the_scarcest_allows(rows_in, curated):
    kept, _ = curated(rows_in(rows({"a": 10, "b": 100})), [Blend({"a": 1, "b": 3})])
    assert Counter(map(tally, kept)) == {"a": 10, "b": 30}


def test_table_2_is_the_default(rows_in, curated, capsys):
    kept, _ = curated(rows_in(rows({name: count // 3000 + 1 for name, count in TABLE_2.items()})), [Blend(rows=10_000)])
    found = Counter(map(tally, kept))
    for name, percent in PRINTED.items():
        assert found[name] / 100 == pytest.approx(percent, abs=0.1)
    table = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["math", "6,684", "66.84%", "66.84%"] in table and ["reasoning", "off", "6,010", "60.10%", "60.10%"] in table


@pytest.mark.parametrize(
    ("shares", "wanted", "told"),
    [
        ({"a": 1, "b": 1}, 30, r"b has 10 rows, of 15 that a blend of 30 needs"),
        ({"a": 1, "c": 1}, None, r"c has 0 rows"),
        ({"a": 0}, None, "expected positive numbers"),
        ({}, None, "expected positive numbers"),
        ({"a": 1}, 0, "Blend.rows: expected a positive number"),
    ],
)
def test_a_blend_that_cannot_be(rows_in, curated, shares, wanted, told):
    with pytest.raises(UserError, match=told):
        curated(rows_in(rows({"a": 100, "b": 10})), [Blend(shares, wanted)])


def test_the_table_of_any_file():
    lines = domain_table({"math/on": 1, "math": 2, "poems": 1})
    assert [line.split() for line in lines] == [
        ["domain", "samples", "%", "of", "total", "paper's", "%"],
        ["math", "3", "75.00%", "66.84%"],
        ["reasoning", "on", "1", "25.00%", "6.74%"],
        ["poems", "1", "25.00%"],
        ["total", "4", "100%", "100%"],
    ]

"""Data that fit a dataclass's annotations become it; all others are refused by place, expectation and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from lnlit.errors import UserError
from lnlit.schema import AtLeast, NotNegative, Size, check, is_finite, read


@dataclass(frozen=True)
class Leaf:
    kind: Literal["big", "small"]
    weight: Annotated[float, AtLeast(0, itself=False)] = 1.0


@dataclass(frozen=True)
class Tree:
    count: Size
    leaves: tuple[Leaf, ...]
    pair: tuple[int, str] = (0, "")
    costs: Mapping[str, NotNegative] = field(default_factory=dict)
    name: str | None = None
    either: int | str = 0
    flag: bool = False
    any: Any = None


GOOD = {"count": 2, "leaves": [{"kind": "big"}, {"kind": "small", "weight": 2}], "costs": {"m": 0}}


def test_data_become_the_dataclass_and_defaults_stay():
    assert read(Tree, GOOD, "tree") == Tree(2, (Leaf("big"), Leaf("small", 2)), costs={"m": 0})
    given = {**GOOD, "pair": [1, "a"], "name": "x", "either": "y", "flag": True, "any": [{}]}
    tree = read(Tree, given, "tree")
    assert (tree.pair, tree.name, tree.either, tree.flag, tree.any) == ((1, "a"), "x", "y", True, [{}])
    assert read(Tree, {**given, "name": None}, "tree").name is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 0}, "tree.count: expected a whole number, 1 or more, got 0."),
        ({"count": True}, "tree.count: expected a whole number, 1 or more, got True."),
        ({"count": 2.0}, "tree.count: expected a whole number, 1 or more, got 2.0."),
        ({"leaves": {}}, "tree.leaves: expected a list, got {}."),
        ({"leaves": "ab"}, "tree.leaves: expected a list, got 'ab'."),
        (
            {"leaves": [{"kind": "bgi"}]},
            "tree.leaves[0].kind: expected one of big, small, got 'bgi'. Did you mean",
        ),
        ({"leaves": [{"kind": 1}]}, "tree.leaves[0].kind: expected one of big, small, got 1."),
        ({"leaves": [3]}, "tree.leaves[0]: expected a mapping, got 3."),
        ({"leaves": [{}]}, "tree.leaves[0]: the key 'kind' is missing; required are kind."),
        ({"leaves": [{"kind": "big", "wieght": 1}]}, "tree.leaves[0]: unknown key 'wieght'. Did you mean 'weight'? "),
        (
            {"leaves": [{"kind": "big", "weight": 0}]},
            "tree.leaves[0].weight: expected a finite number, above 0, got",
        ),
        ({"pair": [1]}, "tree.pair: expected a list of 2, got [1]."),
        ({"pair": [1, 2]}, "tree.pair[1]: expected a text, got 2."),
        ({"costs": {"m": float("nan")}}, "tree.costs['m']: expected a finite number, 0 or more, got nan."),
        ({"costs": {"m": 10**400}}, "tree.costs['m']: expected a finite number, 0 or more, got 1000"),
        ({"costs": {1: 1.0}}, "tree.costs: the key: expected a text, got 1."),
        ({"name": 3}, "tree.name: expected a text, got 3."),
        ({"either": 1.5}, "tree.either: expected a whole number or a text, got 1.5."),
        ({"flag": 1}, "tree.flag: expected true or false, got 1."),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(change, says):
    with pytest.raises(UserError) as refusal:
        read(Tree, {**GOOD, **change}, "tree")
    assert str(refusal.value).startswith(says) and "\n" not in str(refusal.value)


def test_a_file_and_what_to_do_are_told():
    with pytest.raises(UserError) as refusal:
        read(Tree, {**GOOD, "count": -1}, "t.json:", then="Make it anew.")
    assert str(refusal.value) == "t.json: count: expected a whole number, 1 or more, got -1. Make it anew."
    with pytest.raises(UserError, match=r"\At\.json: expected a mapping, got 3\.\Z"):
        read(Tree, 3, "t.json:")


def test_others_are_let_through_where_they_are_expected_and_only_there():
    assert read(Tree, {**GOOD, "more": 1}, "tree", others=True).count == 2
    with pytest.raises(UserError, match="unknown key 'more'"):
        read(Tree, {**GOOD, "leaves": [{"kind": "big", "more": 1}]}, "tree", others=True)


def test_an_instance_is_checked_by_the_same_rules():
    check(Tree(2, (Leaf("big"),)), "tree")
    with pytest.raises(UserError, match=r"tree\.count: expected a whole number, 1 or more, got 0\."):
        check(Tree(0, ()), "tree")
    with pytest.raises(UserError, match=r"tree\.leaves\[0\]: expected a mapping, got 3\."):
        check(Tree(1, (3,)), "tree")  # type: ignore[arg-type]


def test_numbers_to_reckon_with():
    good, bad = (0, -1.5, 1e300, 10**300), (True, None, "1", float("nan"), float("-inf"), 1e301, 10**400)
    assert all(map(is_finite, good)) and not any(map(is_finite, bad))

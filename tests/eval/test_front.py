"""Fronts against all pairs of random points, and rules against what they say."""

from __future__ import annotations

import itertools
import random

import pytest

from lnlit.eval.front import beats_both, front, pick
from lnlit.eval.intervals import Mean
from lnlit.report.fronts import Point, front_chart
from lnlit.report.theme import LIGHT

ARC = [(0.2, 0.9), (0.5, 0.8), (0.7, 0.6), (0.9, 0.1)]


@pytest.mark.parametrize("seed", range(20))
def test_a_front_is_what_no_other_point_beats(seed):
    points = [
        (random.Random(seed * 100 + n).randint(0, 8) / 8, random.Random(n - seed).randint(0, 8) / 8) for n in range(9)
    ]
    found = front(points)
    assert found
    for place, (x, y) in enumerate(points):
        beaten = any(a >= x and b >= y and (a > x or b > y) for a, b in points)
        assert (place in found) != beaten
    for one, two in itertools.combinations(found, 2):  # along a front, what one task gains the other loses
        assert points[one] == points[two] or (points[one][0] - points[two][0]) * (points[one][1] - points[two][1]) < 0


def test_models_in_one_place_share_a_label():
    pytest.importorskip("matplotlib")
    same, other = (Mean(0.5, 0.4, 0.6, 10),) * 2, (Mean(0.6, 0.5, 0.7, 10),) * 2
    points = [Point(0.0, same, False), Point(0.5, same, False), Point(1.0, other, True, True)]
    figure = front_chart(LIGHT, points, ("one", "two"))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0, 0.5", "1"]


def test_rules_pick_what_they_say():
    assert pick(ARC, "balanced") == 2  # (0.7 - 0.2) / 0.7 = 0.71 and (0.6 - 0.1) / 0.8 = 0.63; the second has 0.43
    assert pick([(0.2, 0.9), (0.5, 0.7), (0.9, 0.1)], "mean") == 1
    assert pick([(0.1, 0.1), (0.1, 0.1)], "balanced") == 0
    assert pick([(0.5, 0.2), (0.5, 0.3)], "balanced") == 1


@pytest.mark.parametrize("rule", ["balanced", "mean"])
@pytest.mark.parametrize("seed", range(10))
def test_what_is_picked_is_on_the_front(seed, rule):
    draw = random.Random(seed)
    points = [(draw.random(), draw.random()) for _ in range(9)]
    assert pick(points, rule) in front(points)


def test_who_beats_both_ends_is_better_in_each_task():
    ends = [(0.2, 0.9), (0.9, 0.1)]
    assert beats_both((0.95, 0.95), ends)
    assert not any(beats_both(values, ends) for values in [(0.9, 0.95), (0.95, 0.5), (0.5, 0.5)])

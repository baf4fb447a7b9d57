"""The picture of a search by whole children."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from lnlit.report.picture import Picture, png
from lnlit.report.refined import Measured, kendall, refined_chart
from lnlit.report.theme import LIGHT

CHILDREN = [
    Measured("child", 1.0, 2.5),
    Measured("greedy", 1.5, 2.0),
    *(Measured(f"random {number}", 3.0 + number, 5.0 - number, is_plain=True) for number in range(3)),
]
PATH = [Measured("", 1.5, 2.0, 2.1), Measured("", 1.7, 1.6, 1.9)]


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys_with_and_without_ties(seed):
    draw = np.random.default_rng(seed)
    pairs = draw.normal(size=(20, 2)) if seed % 2 else draw.integers(4, size=(20, 2)).astype(float)
    assert kendall(pairs.tolist()) == pytest.approx(kendalltau(*pairs.T).statistic)


def test_tau_of_equal_values_is_no_number():
    assert math.isnan(kendall([(1.0, 2.0), (1.0, 3.0)]))
    assert math.isnan(kendall([(1.0, 2.0)]))


def test_ranks_and_rounds_are_drawn():
    figure = refined_chart(LIGHT, CHILDREN, PATH)
    left, right = figure.axes
    lines = [line for line in left.lines if line.get_linestyle() == "-"]
    assert [tuple(line.get_ydata()) for line in lines] == [(1, 2), (2, 1), (3, 5), (4, 4), (5, 3)]
    assert {text.get_text() for text in left.texts} == {"child", "greedy", "2.5", "2"}
    assert "tau" in left.get_title()
    drawn = [list(line.get_ydata()) for line in right.lines]
    assert (drawn[0], drawn[-1]) == ([2.0, 1.6], [2.1, 1.9])


def test_it_is_a_picture_like_any_other():
    assert png(lambda theme: refined_chart(theme, CHILDREN, PATH)).startswith(b"\x89PNG")
    svg = Picture("refined", "Refined", "a search", lambda theme: refined_chart(theme, CHILDREN, PATH)).svg()
    assert "child: sum 1, realised 2.5" in svg
    alone = [Measured("child", 1.0, 2.5)]
    assert png(lambda theme: refined_chart(theme, alone, alone)).startswith(b"\x89PNG")

"""The pictures of a search's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lnlit.search.charts import Frontier, Measured, budget_chart, cost_label, frontier_chart, measured_chart
from lnlit.search.figures import Draw, architecture_map, score_map
from lnlit.search.library import Library
from lnlit.search.report import Child, Search, strips

#: How many solutions the architecture map shows, the parent aside.
_MOST_MODELS = 4


@dataclass(frozen=True)
class Picture:
    """A figure: file name without ending, heading, what it shows in words, and how it is drawn."""

    name: str
    title: str
    caption: str
    draw: Draw


def pictures(
    search: Search, child: Child, library: Library | None = None, measured: Sequence[Measured] = ()
) -> list[Picture]:
    """Every picture that the data allow, in the order of the page."""
    found = [_architecture(search, child, library)]
    if chart := search.chart():
        found.append(_frontier(chart))
    ledger = search.ledger(child)
    if ledger:
        caption = "Each limit is the line at 100 %. The parent before the search, the child after it."
        found.append(Picture("budgets", "Budgets used", caption, lambda theme: budget_chart(theme, ledger)))
    if measured:
        caption = (
            "Costs predicted from the table of single blocks against those measured on the realized model. Crosses lie "
            "outside the band of 10 %."
        )
        found.append(
            Picture("measured", "Truth of the cost model", caption, lambda theme: measured_chart(theme, measured))
        )
    found.append(_scores(search, child))
    return found


def _architecture(search: Search, child: Child, library: Library | None) -> Picture:
    others = [each for each in search.solutions if each is not child][: _MOST_MODELS - 1]
    models = [each for each in (search.parent, child, *others) if each is not None]
    rows, label = strips(search, models, library)
    caption = "Every layer of the parent and the child. Pale cells were cut; the deeper the colour, the more is left."
    return Picture("architecture", "Architecture map", caption, lambda theme: architecture_map(theme, rows, label))


def _frontier(chart: Frontier) -> Picture:
    caption = f"Summed score against {cost_label(chart.cost)}: the best choice beside simpler ways to choose."
    if any(point.bound is not None for point in chart.best):
        caption += (
            " Nothing in the shaded area can be built from this library within the other budgets: the solver proved it."
        )
    return Picture("frontier", "Frontier", caption, lambda theme: frontier_chart(theme, chart))


def _scores(search: Search, child: Child) -> Picture:
    table = [{name: option.score for name, option in layer.items()} for layer in search.layers]
    caption = "The score of every candidate in every layer. A layer whose column is pale can be cut at little cost."
    return Picture(
        "scores",
        "Scores of the library",
        caption,
        lambda theme: score_map(theme, table, child.choice, "score", search.lower_is_better),
    )

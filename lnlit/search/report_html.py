"""The report as one page, its pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence

from lnlit.html import document, folded, listed, note, safe, section, table, tiles
from lnlit.search.charts import Measured, cost_label
from lnlit.search.figures import DARK, LIGHT, plain, png
from lnlit.search.report import Child, Search, trade_in_words
from lnlit.search.report_pictures import Picture

_STYLE = """
figure img { display: block; width: 100%; height: auto; }
section { break-inside: avoid; }
table { width: 100%; }
th, td { padding: .32rem .7rem; }
"""


def page(
    search: Search,
    child: Child,
    pictures: Sequence[Picture],
    measured: Sequence[Measured],
    facts: Mapping[str, str],
) -> str:
    """The whole document. `facts` say where everything came from, as label -> text."""
    sections = [
        section("What was traded", listed(trade_in_words(search, child, measured))),
        section("Budget ledger", _ledger(search, child)),
        *(section(picture.title, _figure(picture)) for picture in pictures),
    ]
    if search.baselines:
        sections.append(section("Against the baselines", _solutions([child, *search.baselines], search)))
    if len(search.solutions) > 1:
        sections.append(section("All solutions", _solutions(search.solutions, search)))
    if measured:
        sections.append(section("Predicted and measured", _measured(measured)))
    sections += [folded("Layer by layer", _layers(search, child)), section("Where this comes from", _facts(facts))]
    tab = f"Search report: {child.title} of {len(child.choice)} layers"
    return document(tab, "What the search found", _lead(search, child), [_tiles(search, child), *sections], _STYLE)


def _lead(search: Search, child: Child) -> str:
    proof = {
        "optimal": "The solver proved that this is the best choice.",
        "time_limit": "The solver ran out of time: the best choice found so far.",
        "feasible": "A valid choice, without proof that it is the best.",
    }
    candidates = sum(map(len, search.layers))
    return (
        f"{len(child.choice)} layers, chosen from {candidates:,} candidates. {proof.get(search.status, search.status)}"
    )


def _tiles(search: Search, child: Child) -> str:
    numbers = [(plain(child.score), "summed score")]
    if child.gap is not None:
        numbers.append((f"{child.gap:.2%}", "gap to the proven bound"))
    for row in search.ledger(child):
        name, _, unit = cost_label(row.cost).partition(", ")
        change = f", {row.used / row.parent - 1:+.0%}" if row.parent else ""
        numbers.append((f"{plain(row.used)} {unit}".strip(), f"{name}{change}"))
    return tiles(numbers)


def _ledger(search: Search, child: Child) -> str:
    rows, marks = [], []
    for row in search.ledger(child):
        before = "" if row.parent is None else plain(row.parent)
        limit = f"{'at least' if row.least else 'at most'} {plain(row.limit)}"
        share = f"{row.slack / row.limit:+.1%}" if row.limit else ""
        verdict = "kept" if row.is_kept else "broken"
        rows.append([cost_label(row.cost), before, plain(row.used), limit, plain(row.slack), share, verdict])
        marks.append("" if row.is_kept else "bad")
    head = ["cost", "parent", "child", "limit", "slack", "slack / limit", ""]
    return table(head, rows, marks) if rows else note("The problem has no budgets.")


def _solutions(solutions: Iterable[Child], search: Search) -> str:
    costs = search.limited_costs
    shown = list(solutions)
    rows = [
        [
            each.title,
            plain(each.score),
            "" if each.bound is None else plain(each.bound),
            "" if each.gap is None else f"{each.gap:.2%}",
            *(plain(each.costs[cost]) if cost in each.costs else "" for cost in costs),
            str(sum(a != b for a, b in zip(each.choice, shown[0].choice, strict=False))) if each.choice else "",
            "" if each.seconds is None else f"{each.seconds:.2f}",
        ]
        for each in shown
    ]
    head = ["", "score", "bound", "gap", *map(cost_label, costs), "layers that differ", "solved in, s"]
    return table(head, rows)


def _layers(search: Search, child: Child) -> str:
    costs = search.limited_costs
    before = search.parent.choice if search.parent else None
    rows, marks = [], []
    for index, name in enumerate(child.choice):
        option = search.layers[index].get(name)
        numbers = ["" if option is None or c not in option.costs else plain(option.costs[c]) for c in costs]
        rows.append(
            [str(index), before[index] if before else "", name, plain(option.score) if option else "", *numbers]
        )
        marks.append("changed" if before and before[index] != name else "")
    return table(["layer", "parent", "child", "score", *map(cost_label, costs)], rows, marks, text=3)


def _measured(measured: Sequence[Measured]) -> str:
    rows = [[p.name, cost_label(p.cost), plain(p.predicted), plain(p.measured), f"{p.error:+.1%}"] for p in measured]
    marks = ["" if abs(point.error) <= 0.1 else "bad" for point in measured]
    return table(["model", "cost", "predicted", "measured", "error"], rows, marks, text=2)


def _facts(facts: Mapping[str, str]) -> str:
    return table(["", ""], [[label, text] for label, text in facts.items()], text=2)


def _figure(picture: Picture) -> str:
    light, dark = (base64.b64encode(png(picture.draw, theme)).decode() for theme in (LIGHT, DARK))
    return (
        '<figure><picture><source media="screen and (prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark}" /><img src="data:image/png;base64,{light}" '
        f'alt="{safe(picture.caption)}" /></picture><figcaption>{safe(picture.caption)}</figcaption></figure>'
    )

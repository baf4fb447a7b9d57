"""The report as one page: no scripts, no network, pictures inside, light and dark, fit to print. Valid XML too."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from lnlit.search.charts import Measured, cost_label
from lnlit.search.figures import DARK, LIGHT, plain, png
from lnlit.search.report import Child, Search, trade_in_words
from lnlit.search.report_pictures import Picture

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1f2733; --muted: #5b6575; --line: #e3e7ee;
  --accent: #0b5fa5; --bad: #b54708; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #0c0f14; --card: #12161d; --ink: #e6eaf0;
  --muted: #98a2b3; --line: #2b323d; --accent: #6cb4ee; --bad: #ff9655; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 0 0 .8rem; }
p { margin: 0 0 .6rem; }
.lead, figcaption, .note { color: var(--muted); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1.3rem 1.5rem;
  margin-top: 1.25rem; break-inside: avoid; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.25rem; }
.tile { flex: 1 1 9rem; background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: .9rem 1.1rem; }
.tile b { display: block; font-size: 1.5rem; font-weight: 650; letter-spacing: -.01em; }
.tile span { color: var(--muted); font-size: .85rem; }
ul { margin: 0; padding-left: 1.1rem; } li { margin: .25rem 0; }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .9rem; margin-top: .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 550; } .text { text-align: left; }
tr.changed td { font-weight: 550; } tr.bad td { color: var(--bad); }
tbody tr:last-child td { border-bottom: 0; }
summary { cursor: pointer; font-weight: 650; font-size: 1.1rem; } details[open] summary { margin-bottom: .8rem; }
@media print { body { background: none; padding: 0; } section, .tile { border-color: #ccc; } }
"""
#: Keeps a browser from loading anything at all.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    search: Search,
    child: Child,
    pictures: Sequence[Picture],
    measured: Sequence[Measured],
    facts: Mapping[str, str],
) -> str:
    """The whole document. `facts` say where everything came from, as label -> text."""
    sections = [
        _section("What was traded", _list(trade_in_words(search, child, measured))),
        _section("Budget ledger", _ledger(search, child)),
        *(_section(picture.title, _figure(picture)) for picture in pictures),
    ]
    if search.baselines:
        sections.append(_section("Against the baselines", _solutions([child, *search.baselines], search)))
    if len(search.solutions) > 1:
        sections.append(_section("All solutions", _solutions(search.solutions, search)))
    if measured:
        sections.append(_section("Predicted and measured", _measured(measured)))
    sections += [_folded("Layer by layer", _layers(search, child)), _section("Where this comes from", _facts(facts))]
    title = f"{child.title} of {len(child.choice)} layers"
    return (
        '<!DOCTYPE html>\n<html lang="en" xmlns="http://www.w3.org/1999/xhtml">\n<head>\n<meta charset="utf-8" />\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        f"<title>Search report: {escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n"
        f'<h1>What the search found</h1>\n<p class="lead">{escape(_lead(search, child))}</p>\n</header>\n'
        f"{_tiles(search, child)}\n{chr(10).join(sections)}\n</body>\n</html>\n"
    )


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
    tiles = [(plain(child.score), "summed score")]
    if child.gap is not None:
        tiles.append((f"{child.gap:.2%}", "gap to the proven bound"))
    for row in search.ledger(child):
        name, _, unit = cost_label(row.cost).partition(", ")
        change = f", {row.used / row.parent - 1:+.0%}" if row.parent else ""
        tiles.append((f"{plain(row.used)} {unit}".strip(), f"{name}{change}"))
    cells = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    return f'<div class="tiles">{cells}</div>'


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
    return _table(head, rows, marks) if rows else '<p class="note">The problem has no budgets.</p>'


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
    return _table(head, rows)


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
    return _table(["layer", "parent", "child", "score", *map(cost_label, costs)], rows, marks, text=3)


def _measured(measured: Sequence[Measured]) -> str:
    rows = [[p.name, cost_label(p.cost), plain(p.predicted), plain(p.measured), f"{p.error:+.1%}"] for p in measured]
    marks = ["" if abs(point.error) <= 0.1 else "bad" for point in measured]
    return _table(["model", "cost", "predicted", "measured", "error"], rows, marks, text=2)


def _facts(facts: Mapping[str, str]) -> str:
    return _table(["", ""], [[label, text] for label, text in facts.items()], text=2)


def _figure(picture: Picture) -> str:
    light, dark = (base64.b64encode(png(picture.draw, theme)).decode() for theme in (LIGHT, DARK))
    return (
        '<figure><picture><source media="screen and (prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark}" /><img src="data:image/png;base64,{light}" '
        f'alt="{escape(picture.caption)}" /></picture><figcaption>{escape(picture.caption)}</figcaption></figure>'
    )


def _section(title: str, inside: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{inside}\n</section>"


def _folded(title: str, inside: str) -> str:
    return f"<section>\n<details>\n<summary>{escape(title)}</summary>\n{inside}\n</details>\n</section>"


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str] = (), text: int = 1) -> str:
    """A table whose first `text` columns are words and whose other columns are numbers."""

    def line(tag: str, cells: Sequence[str], mark: str = "") -> str:
        kind = [' class="text"' if at < text else "" for at in range(len(cells))]
        inside = "".join(f"<{tag}{k}>{escape(cell)}</{tag}>" for k, cell in zip(kind, cells, strict=True))
        return f'<tr class="{mark}">{inside}</tr>' if mark else f"<tr>{inside}</tr>"

    body = "".join(line("td", row, mark) for row, mark in zip(rows, marks or [""] * len(rows), strict=True))
    header = f"<thead>{line('th', head)}</thead>" if any(head) else ""
    return f'<div class="wide"><table>{header}<tbody>{body}</tbody></table></div>'

"""The page of a search: pictures, tables, and the trade-offs in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from lnlit.report.charts import BAND, Limit, Measured, budget_chart, cost_label, frontier_chart, measured_chart
from lnlit.report.maps import architecture_map, score_map
from lnlit.report.pages import Table, render
from lnlit.report.picture import Picture
from lnlit.report.search import Child, Search
from lnlit.report.theme import plain
from lnlit.search.choice import BlockChoice
from lnlit.search.library import Library
from lnlit.specs import NOOP

#: The number of solutions in the architecture map, besides the parent.
_MOST_MODELS = 4
_PROOF = {
    "optimal": "The solver proved that this is the best choice.",
    "time_limit": "The solver ran out of time: the best choice found so far.",
    "feasible": "A valid choice, without proof that it is the best.",
}


def page(
    search: Search,
    child: Child,
    pictures: Sequence[Picture],
    measured: Sequence[Measured],
    facts: Mapping[str, str],
) -> str:
    """The complete HTML page. `facts` maps labels to texts that say where the data came from."""
    ledger = search.ledger(child)
    tables = {}
    if search.baselines:
        tables["Against the baselines"] = _solutions([child, *search.baselines], search)
    if len(search.solutions) > 1:
        tables["All solutions"] = _solutions(search.solutions, search)
    if measured:
        tables["Predicted and measured"] = _measured(measured)
    candidates, proof = sum(map(len, search.layers)), _PROOF.get(search.status, search.status)
    return render(
        "search.html.j2",
        title="What the search found",
        lead=f"{len(child.choice)} layers, chosen from {candidates:,} candidates. {proof}",
        numbers=_numbers(child, ledger),
        child=child,
        words=trade_in_words(search, child, measured),
        ledger=_ledger(ledger),
        pictures=pictures,
        tables=tables,
        layers=_layers(search, child),
        facts=Table((), [("", pair) for pair in facts.items()], words=2),
    )


def pictures(
    search: Search, child: Child, library: Library | None = None, measured: Sequence[Measured] = ()
) -> list[Picture]:
    """All pictures for which there are data, in the order of the page."""
    others = [each for each in search.solutions if each is not child][: _MOST_MODELS - 1]
    rows, label = search.strips([each for each in (search.parent, child, *others) if each is not None], library)
    caption = "Every layer of the parent and the child. Faint cells were cut; strong colour means that much is left."
    drawn = partial(architecture_map, strips=rows, label=label)
    found = [Picture("architecture", "Architecture map", caption, drawn)]
    if chart := search.frontier():
        caption = f"Summed score against {cost_label(chart.cost)}: the best choice beside simpler ways to choose."
        if any(point.bound is not None for point in chart.best):
            caption += " Nothing in the shaded area can be built from this library within the other budgets: the solver"
            caption += " proved it."
        found.append(Picture("frontier", "Frontier", caption, partial(frontier_chart, data=chart)))
    if ledger := search.ledger(child):
        caption = "Each limit is the line at 100 %. The parent before the search, the child after it."
        found.append(Picture("budgets", "Budgets used", caption, partial(budget_chart, limits=ledger)))
    if predicted := [point for point in measured if point.is_predicted]:
        caption = "Costs predicted from the table of single blocks against those measured on the realized model. "
        caption += "Crosses lie outside the band of 10 %."
        found.append(Picture("measured", "Truth of the cost model", caption, partial(measured_chart, points=predicted)))
    table = [{name: option.score for name, option in layer.items()} for layer in search.layers]
    caption = "The score of every candidate in every layer. A layer whose column is faint can be cut at little cost."
    drawn = partial(score_map, scores=table, chosen=child.choice, lower_is_better=search.lower_is_better)
    return [*found, Picture("scores", "Scores of the library", caption, drawn)]


# tables


def _numbers(child: Child, ledger: Iterable[Limit]) -> Iterator[tuple[str, str]]:
    yield plain(child.score), "summed score"
    if child.gap is not None:
        yield f"{child.gap:.2%}", "gap to the proven bound"
    for row in ledger:
        name, used = row.amount
        yield used, f"{name}, {row.change:+.0%}" if row.parent else name


def _ledger(ledger: Iterable[Limit]) -> Table:
    rows = []
    for row in ledger:
        before = "" if row.parent is None else plain(row.parent)
        share = f"{row.slack / row.limit:+.1%}" if row.limit else ""
        verdict = "kept" if row.is_kept else "broken"
        cells = [cost_label(row.cost), before, plain(row.used), str(row), plain(row.slack), share, verdict]
        rows.append(("" if row.is_kept else "bad", cells))
    return Table(("cost", "parent", "child", "limit", "slack", "slack / limit", ""), rows)


def _solutions(solutions: Sequence[Child], search: Search) -> Table:
    costs = search.limited_costs
    rows = []
    for each in solutions:
        proof = ["" if each.bound is None else plain(each.bound), "" if each.gap is None else f"{each.gap:.2%}"]
        used = [plain(each.costs[cost]) if cost in each.costs else "" for cost in costs]
        differ = str(sum(a != b for a, b in zip(each.choice, solutions[0].choice, strict=True))) if each.choice else ""
        seconds = f"{each.seconds:.2f}" if each.choice else ""
        rows.append(("", [each.title, plain(each.score), *proof, *used, differ, seconds]))
    return Table(("", "score", "bound", "gap", *map(cost_label, costs), "layers that differ", "solved in, s"), rows)


def _layers(search: Search, child: Child) -> Table:
    costs = search.limited_costs
    before = search.parent.choice if search.parent else [""] * len(child.choice)
    rows = []
    for index, (own, name) in enumerate(zip(before, child.choice, strict=True)):
        option = search.layers[index][name]
        numbers = [plain(option.costs[cost]) if cost in option.costs else "" for cost in costs]
        rows.append(("changed" if own and own != name else "", [index, own, name, plain(option.score), *numbers]))
    return Table(("layer", "parent", "child", "score", *map(cost_label, costs)), rows, words=3)


def _measured(measured: Iterable[Measured]) -> Table:
    rows = []
    for point in measured:
        known = (plain(point.predicted), f"{point.error:+.1%}")
        promise, error = known if point.is_predicted else ("not in the table", "")
        numbers = [promise, plain(point.measured), error]
        rows.append(("bad" if abs(point.error) > BAND else "", [point.name, cost_label(point.cost), *numbers]))
    return Table(("model", "cost", "predicted", "measured", "error"), rows, words=2)


# words


def trade_in_words(search: Search, child: Child, measured: Sequence[Measured] = ()) -> list[str]:
    """The trade-offs as items of one or two plain sentences."""
    sentences = [*_changes(search, child), *_gains(search, child), *_losses(search, child)]
    if measured := [point for point in measured if point.is_predicted]:
        right = sum(abs(point.error) <= BAND for point in measured)
        worst = max(measured, key=lambda point: abs(point.error))
        sentences.append(
            f"{right} of {len(measured)} predicted costs are within 10 % of what was measured; "
            f"the worst is {worst.cost} of {worst.name}, {worst.error:+.0%} off."
        )
    return sentences


def _changes(search: Search, child: Child) -> Iterator[str]:
    if search.parent is None:
        return
    parent = search.parent.choice
    same = sum(mine == theirs for mine, theirs in zip(child.choice, parent, strict=True))
    yield f"{same} of {len(child.choice)} layers are the parent's own."
    halves = [[half for name in names if (half := BlockChoice.guess(name))] for names in (child.choice, parent)]
    if not all(len(found) == len(parent) for found in halves):
        return
    ends = {"removed": -1, "unchanged": 1}
    for at, slot in enumerate(("Attention", "FFN")):
        mine, own = ([half[at] for half in found] for found in halves)
        changes = sorted(Counter(map(_change, mine, own)).items(), key=lambda change: ends.get(change[0], 0))
        yield f"{slot}: {', '.join(f'{change} in {_layer_count(n)}' for change, n in changes)}."


def _gains(search: Search, child: Child) -> Iterator[str]:
    for row in search.ledger(child):
        name, used = row.amount
        if row.parent:
            used = f"{'down' if row.change < 0 else 'up'} {abs(row.change):.0%} to {used}"
        kept = "within" if row.is_kept else "OUTSIDE"
        yield f"{name[:1].upper()}{name[1:]}: {used}, {kept} the budget of {row}."


def _losses(search: Search, child: Child) -> Iterator[str]:
    better = "lower is better" if search.lower_is_better else "higher is better"
    yield f"The scores of the chosen blocks sum to {plain(child.score)} ({better})."
    if child.bound is not None:
        worse = abs(child.score - child.bound) / max(abs(child.score), 1e-12)
        exact = "this is the best choice" if worse <= 1e-6 else f"at most {worse:.2%} better is possible"
        yield f"Proof: no choice from this library within these budgets beats {plain(child.bound)}; {exact}."
    if search.baselines and child.score:
        told = (f"{o.title} {plain(o.score)} ({o.score / child.score:.2f} times that)" for o in search.baselines)
        yield f"At the same budgets: {', '.join(told)}."
    layers = [layer[name].score for layer, name in zip(search.layers, child.choice, strict=True)]
    top = sorted(range(len(layers)), key=lambda layer: -abs(layers[layer]))[:3]
    if sum(layers) and len(layers) > 3:
        share = sum(layers[layer] for layer in top) / sum(layers)
        yield f"Layers {', '.join(map(str, sorted(top)))} account for {share:.0%} of the score."


def _change(name: str, parent: str) -> str:
    return "unchanged" if name == parent else "removed" if name == NOOP.type else name


def _layer_count(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"

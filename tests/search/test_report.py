"""The report: a page that is well-formed, complete and needs no network, pictures, sentences that are true."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from lnlit.errors import UserError
from lnlit.interfaces.problem import Problem
from lnlit.report.charts import Frontier, Limit, Measured, Point, cost_label, frontier_chart, measured_chart
from lnlit.report.maps import Strip, architecture_map
from lnlit.report.picture import png
from lnlit.report.search import read_measured, read_search
from lnlit.report.search_page import page, pictures, trade_in_words
from lnlit.report.theme import DARK, LIGHT, plain
from lnlit.search.library import Library
from lnlit.specs import BlockSpec
from lnlit.testing.tiny import attention, swiglu, tiny_spec
from lnlit.testing.tiny_library import tiny_library

NAMES = ["kv2+i48", "kv1+i48", "noop+i24", "noop+noop"]
COSTS = [40.0, 30.0, 12.0, 0.0]


def problem(layers: int = 4, **changes) -> Problem:
    """Scores 0, 0.1, 0.3, 1.0 in layer 0, ten times less in the others."""
    rows = [
        [
            {
                "name": name,
                "score": score / (10 if layer else 1),
                "costs": {"memory_mib": cost, "latency_s": cost / 100},
            }
            for name, score, cost in zip(NAMES, (0.0, 0.1, 0.3, 1.0), COSTS, strict=True)
        ]
        for layer in range(layers)
    ]
    budgets = [{"cost": "memory_mib", "max": 110.0}, {"cost": "latency_s", "max": 2.0, "min": 0.5}]
    base = {"memory_mib": 20.0}
    return Problem.from_json({"layers": rows, "budgets": budgets, "base_costs": base, **changes})


def solved(asked: Problem, *choices: list[str], **changes) -> dict:
    solutions = []
    for choice in choices:
        score, costs = asked.totals(choice)
        solutions.append({"choice": choice, "score": score, "costs": costs, "bound": score, "gap": 0.0, "seconds": 0.1})
    return {"status": "optimal", "solutions": solutions, **changes}


BEST = ["kv2+i48", "noop+i24", "noop+i24", "noop+i24"]
SECOND = ["kv1+i48", "noop+i24", "noop+noop", "kv2+i48"]


def search_of(*choices: list[str], library: Library | None = None, **changes):
    asked = problem()
    return read_search(solved(asked, *(choices or (BEST, SECOND)), **changes), asked, library, "solution.json")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    spec = tiny_spec().replace(layers=(BlockSpec(attention(), swiglu()),) * 4)
    return tiny_library(tmp_path_factory.mktemp("report") / "library", "parent", spec)


def ids(root: ET.Element) -> list[str]:
    return [node.get("id", "") for node in root.iter() if "id" in node.attrib]


def text_of(html: str) -> str:
    return " ".join(" ".join(ET.fromstring(html.partition("\n")[2]).itertext()).split())


def test_the_ledger_counts_base_costs_and_knows_the_parent():
    search = search_of()
    assert search.parent is not None and search.parent.choice == ("kv2+i48",) * 4
    memory, most, least = search.ledger(search.child(0))
    assert (memory.parent, memory.used, memory.limit, memory.slack) == (180.0, 96.0, 110.0, 14.0)
    assert (most.cost, most.slack, least.slack) == ("latency_s", pytest.approx(1.24), pytest.approx(0.26))
    assert least.least and all(row.is_kept for row in (memory, most, least))
    assert not Limit("x", limit=1.0, used=1.1).is_kept and not Limit("x", limit=1.0, used=0.9, least=True).is_kept


def test_without_one_zero_score_per_layer_the_parent_is_unknown():
    asked = problem()
    rows = [[{**vars(choice), "score": choice.score + 1} for choice in layer] for layer in asked.layers]
    shifted = Problem.from_json({"layers": rows, "budgets": [{"cost": "memory_mib", "max": 110.0}]})
    search = read_search(solved(shifted, BEST), shifted, None, "solution.json")
    assert search.parent is None and search.ledger(search.child(0))[0].parent is None
    assert page(search, search.child(0), [], [], {})


def test_the_words_are_the_trade():
    words = trade_in_words(search_of(), search_of().child(0), [Measured("child", "latency_s", 1.2, 1.0)])
    assert words[0] == "1 of 4 layers are the parent's own."
    assert words[1] == "Attention: removed in 3 layers, unchanged in 1 layer."
    assert words[2] == "FFN: i24 in 3 layers, unchanged in 1 layer."
    assert "Memory: down 47% to 96 MiB, within the budget of at most 110." in words
    assert any("sum to 0.09 (lower is better)" in line for line in words)
    assert any(line.endswith("beats 0.09; this is the best choice.") for line in words)
    assert (
        words[-1]
        == "0 of 1 predicted costs are within 10 % of what was measured; the worst is latency_s of child, +20% off."
    )


def test_every_layer_and_budget_is_on_a_page_that_needs_no_network(library):
    search = search_of(library=library)
    shown = pictures(search, search.child(0), library)
    html = page(search, search.child(0), shown, [], {"block library": "a <b> & c"})
    text = text_of(html)  # parses as XML, so that every tag is closed and every text escaped
    assert [picture.name for picture in shown] == ["architecture", "frontier", "budgets", "scores"]
    for needed in ("memory, MiB", "latency, s", "at most 110", "at least 0.5", "a <b> & c", *BEST):
        assert needed in text, needed
    root = ET.fromstring(html.partition("\n")[2])
    tables = list(root.iter("{http://www.w3.org/1999/xhtml}tbody"))
    assert any([row[0].text for row in table] == ["0", "1", "2", "3"] for table in tables)
    drawings = [node for node in root.iter() if node.tag.endswith("}svg")]
    assert [node.get("aria-label") for node in drawings] == [picture.caption for picture in shown]
    links = re.findall(r'(?:src|srcset|href)="(.*?)"', html) + re.findall(r"url\((.*?)\)", html)
    assert links and {link[0] for link in links} == {"#"} and {link[1:] for link in links} <= set(ids(root))
    assert len(ids(root)) == len(set(ids(root)))
    assert not re.search(r"<script|<link|@import", html) and "default-src 'none'" in html


def test_a_name_is_text_wherever_it_stands():
    evil = """"><script>alert('$x^{')</script>\x1b"""
    rows = [{"name": evil, "score": 0.0, "costs": {evil: 2.0}}, {"name": "b", "score": 1.0, "costs": {evil: 1.0}}]
    asked = Problem.from_json({"layers": [rows] * 2, "budgets": [{"cost": evil, "max": 3.0}]})
    search = read_search(solved(asked, [evil, "b"]), asked, None, "solution.json")
    measured = [Measured(evil, evil, 1.0, 1.0)]
    shown = pictures(search, search.child(0), None, measured)
    html = page(search, search.child(0), shown, measured, {evil: evil})
    assert "<script" not in html and text_of(html).count("<script>alert('$x^{')</script>\u241b") > 10
    assert all(png(picture.draw) for picture in shown)


def test_shares_are_of_the_parents_part(library):
    search = search_of(["kv1+i48", "noop+i24", "noop+noop", "kv2+i48"], library=library)
    rows, label = search.strips([search.child(0)], library)
    assert label.endswith("parent's parameters") and [row.slot for row in rows] == ["attention", "FFN"]
    assert rows[0].labels == ["kv1", "noop", "noop", "kv2"] and rows[1].labels == ["i48", "i24", "noop", "i48"]


def test_without_a_library_shares_are_of_the_dearest_candidate():
    search = search_of()
    (row,), label = search.strips([search.child(0)], None)
    assert label.endswith("memory") and row.shares == [1.0, 0.3, 0.3, 0.3]


def test_a_colour_means_one_thing_in_every_theme():
    light, dark = LIGHT.variables(), DARK.variables()
    assert light.keys() == dark.keys()
    assert len(set(light.values())) == len(light) and len(set(dark.values())) == len(dark)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.filterwarnings("error")
def test_pictures_draw_in_both_themes_and_repeat_byte_for_byte(theme, library):
    search = search_of(library=library)
    measured = [Measured("child", "latency_s", 1.2, 1.0), Measured("child", "memory_mib", 90.0, 96.0)]
    for picture in pictures(search, search.child(0), library, measured):
        data = png(picture.draw, theme)
        assert data.startswith(b"\x89PNG"), picture.name
        assert theme is DARK or data == png(picture.draw, theme), picture.name


@pytest.mark.filterwarnings("error")
def test_extreme_data_draw_without_warnings():
    one = Frontier("throughput", [Point(5.0, 0.0)], {"uniform": [Point(5.0, 1.0)]}, is_sweep=False, side="min")
    png(lambda theme: frontier_chart(theme, one), LIGHT)
    same = [Measured("a", "latency_s", 1.0, 1.0), Measured("b", "latency_s", 1.0, 1.0)]
    png(lambda theme: measured_chart(theme, same), LIGHT)
    wide = search_of()
    rows, label = wide.strips([wide.child(0)], None)
    many = [Strip(row.model, row.slot, list(row.labels) * 40, list(row.shares) * 40) for row in rows]
    png(lambda theme: architecture_map(theme, many, label), LIGHT)


def test_the_proof_shades_what_its_limit_rules_out():
    points = [Point(10.0, 4.0, 3.5), Point(20.0, 2.0, 1.5)]

    def floor(side: str, cost: float) -> float:
        drawn = []
        data = Frontier("memory_mib", points, {}, is_sweep=True, side=side)
        png(lambda theme: drawn.append(frontier_chart(theme, data)) or drawn[0])
        (area,) = drawn[0].axes[0].collections
        path = area.get_paths()[0]
        return max(y / 100 for y in range(1000) if path.contains_point((cost, y / 100)))

    assert floor("max", 9.8) == floor("max", 9.99) == pytest.approx(3.5, abs=0.02)  # within 10 MiB: the bound at 10
    assert floor("max", 10.01) == floor("max", 19.9) == pytest.approx(1.5, abs=0.02)
    assert floor("min", 10.01) == floor("min", 19.9) == pytest.approx(3.5, abs=0.02)  # at least 10: the bound at 10
    assert floor("min", 20.1) == pytest.approx(1.5, abs=0.02)


@pytest.mark.parametrize(
    ("cost", "label"),
    [
        ("memory_mib", "memory, MiB"),
        ("latency_s", "latency, s"),
        ("latency_s @ 8x256+64", "latency @ 8x256+64, s"),
        ("throughput", "throughput, tokens/s"),
        ("parameters", "parameters"),
        ("cached_tokens", "cached, tokens"),
    ],
)
def test_costs_are_named_with_their_unit(cost, label):
    assert cost_label(cost) == label


def test_numbers_are_for_reading():
    values = (0.0, 0.00123456, 25.31, 366, 1500.4, 134_481_552, 7.055e10, 1.5e12, -2e6)
    assert [plain(v) for v in values] == ["0", "0.001235", "25.31", "366", "1,500", "134.5M", "70.55B", "1.5T", "-2M"]


def test_bad_files_are_told_in_one_line():
    asked = problem()
    with pytest.raises(UserError, match=r"holds no solution \(infeasible\). memory_mib cannot go below 20"):
        data = {"status": "infeasible", "solutions": [], "message": "memory_mib cannot go below 20"}
        read_search(data, asked, None, "solution.json")
    with pytest.raises(UserError, match="layer 1 has no choice 'kv9'"):
        read_search({**solved(asked, BEST), **_with_choice(asked, ["kv2+i48", "kv9", *BEST[2:]])}, asked, None, "s")
    with pytest.raises(UserError, match="there are 2 solutions, numbered from 0; got index 2"):
        search_of().child(2)
    with pytest.raises(UserError, match=r"measured.json: expected models with name.*KeyError 'latency_s'"):
        read_measured(
            {"models": [{"name": "a", "predicted": {"decode_s": 1}, "measured": {"latency_s": 1}}]}, "measured.json"
        )


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_cost_that_was_measured_as_nothing_has_no_error_and_is_refused(value):
    models = [{"name": "child", "predicted": {"decode_s": 0.1}, "measured": {"decode_s": value}}]
    with pytest.raises(UserError, match=r"measured.json: decode_s of child was measured as .* Leave that cost out"):
        read_measured({"models": models}, "measured.json")


def _with_choice(asked: Problem, choice: list[str]) -> dict:
    found = json.loads(json.dumps(solved(asked, BEST)["solutions"]))
    return {"solutions": [{**found[0], "choice": choice}]}

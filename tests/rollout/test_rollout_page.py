"""A page that shows samples whatever they say, and charts of whatever numbers."""

from __future__ import annotations

import math
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rollout_samples import add, prompt, sample

from lnlit.callbacks.rollouts import markdown
from lnlit.cli.main import main
from lnlit.errors import UserError
from lnlit.report.charts import Line, line_chart, stacked_bars, thinned
from lnlit.report.picture import Picture, png
from lnlit.report.rollouts import moments, page
from lnlit.report.theme import visible
from lnlit.rl.metrics import describe
from lnlit.sampling.history import Entry, History
from lnlit.stages.rollout_page import page as page_stage

EVIL = '</pre><script>alert("1")</script><!-- \x00\x1b[31m\u202e &amp; ]]> ```\n``` \ufffe'


# charts


def test_thinning_keeps_the_mean():
    points = [(float(n), float(n % 7)) for n in range(1050)]
    thin = thinned(points, 300)
    assert len(thin) == 300 and thin[0][0] < 4 and thin[-1][0] > 1045
    assert sum(y for _, y in thinned(points, 150)) / 150 == pytest.approx(sum(y for _, y in points) / 1050)
    assert thinned(points, 1050) == points


def drawn(lines, parts, unit="s") -> str:
    """Both kinds of chart, as SVG."""
    curves = Picture("curves", "", EVIL, lambda theme: line_chart(theme, EVIL, unit, lines))
    bars = Picture("bars", "", EVIL, lambda theme: stacked_bars(theme, EVIL, unit, parts))
    assert png(curves.draw) and png(bars.draw)
    return curves.svg() + bars.svg()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("points", [[(0.0, 0.0)], [(3.0, -2.0)] * 2, [(0.0, 1e-12), (1.0, 1e12)]])
def test_any_finite_points_make_a_chart(points):
    chart = drawn([Line("a <b>", points)], {"x": [(0.0, 0.0)]})
    assert_drawable(f"<html>{chart}</html>")
    assert "a &lt;b&gt;" in chart


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [EVIL, "_hidden", "$x^{$ \\frac", ""])
def test_any_name_makes_a_chart(name):
    points = [(0.0, 0.0), (1.0, 2.0)]
    chart = drawn([Line(name, points)], {name: points}, name)
    assert_drawable(f"<html>{chart}</html>")
    line = escape(visible(name.replace("\n", " ")), quote=False)
    assert len(re.findall(f"<text[^>]*> ?{re.escape(line)}: 2</text>", chart)) == 1


def assert_drawable(text: str) -> None:
    """Valid XML of which every coordinate is a number, and every mark of a curve inside of its drawing."""
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    for picture in (node for node in root.iter() if node.tag.endswith("svg")):
        _, _, width, height = map(float, picture.attrib["viewBox"].split())
        for node in picture.iter():
            assert not re.search(r"\b(nan|inf)", node.attrib.get("d", "")), node.attrib
            assert -1 <= float(node.attrib.get("x", 0)) <= width + 1, node.attrib
            assert -1 <= float(node.attrib.get("y", 0)) <= height + 1, node.attrib


# the page


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.open.append(tag)
        links = [value for name, value in attrs if name in ("src", "href", "srcset") or name.startswith("on")]
        self.links += [value for value in links if not value.startswith("#")]

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def filled(folder: Path) -> History:
    history = History(folder)
    asked = [prompt("say <b>it</b>", pass_rate=0.1), prompt("sing it", pass_rate=0.9)]
    for step in range(0, 12, 2):
        train = [
            sample(f"{EVIL} {step} {n}", n * step / 20, asked[n // 2], n, good=n / 4, brief=step / 9) for n in range(4)
        ]
        add(history, "train", step, train, generate=2.0 + step, reward=0.1, train=1.0)
    for step in (0, 4, 8):
        add(history, "val", step, [sample(f"answer at {step}", step / 8, each, good=1.0) for each in asked], size=1)
    return history


def test_the_page_shows_what_a_completion_says_and_does_none_of_it(tmp_path):
    text = page(filled(tmp_path))
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;" in text and "say &lt;b&gt;it&lt;/b&gt;" in text
    assert "<script" not in text and "\x1b" not in text and "\u241b[31m" in text
    tags = Tags()
    tags.feed(text)
    assert not tags.open and not tags.links
    assert not tags.seen & {"script", "img", "link", "iframe", "b"} - {"b"}
    assert_drawable(text)


def test_the_page_has_its_parts(tmp_path):
    text = page(filled(tmp_path))
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == [
        "The same questions, as the run goes on",
        "Reward",
        "Length of completions, tokens",
        "Reward by difficulty",
        "Where the time goes",
        "Best and worst of the latest rollout, step 10",
    ]
    first, second = re.findall(r"answer at \d", text)[:3], re.findall(r"answer at \d", text)[3:6]
    assert first == second == ["answer at 0", "answer at 4", "answer at 8"]
    assert "Mean reward of all: 0 at step 0, 0.5 at step 4, 1 at step 8" in text
    assert "pass rate 0.00-0.25" in text and "pass rate 0.75-1.00" in text
    for said in (
        "generate, step 10: 12 s of 13.1",
        "brief",
        "advantage +0.5",
        "6 rollouts of 24 samples in all and 3 validations, to step 10",
    ):
        assert said in text, said


def test_the_same_folder_gives_the_same_page(tmp_path):
    built = page(filled(tmp_path / "rollouts"))
    assert page_stage(str(tmp_path)).read_text(encoding="utf-8") == built
    out = tmp_path / "elsewhere" / "page.html"
    assert main(["rollout", "page", "--run", str(tmp_path), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == built


def test_without_held_out_prompts_those_that_come_again_are_shown(tmp_path):
    history = History(tmp_path)
    for step, asked in enumerate(["a", "b", "a", "b", "a"]):
        add(history, "train", step, [sample(f"{asked} at {step}", 1.0, asked), sample("worse", 0.5, asked)])
    text = page(history)
    assert re.findall(r"a at \d", text)[:3] == ["a at 0", "a at 2", "a at 4"] and "drawn again" in text


def test_an_empty_folder_is_no_page(tmp_path):
    with pytest.raises(UserError, match="there are no rollouts"):
        page_stage(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        page_stage(str(tmp_path / "nowhere"))


def test_prompts_that_could_not_be_judged_leave_the_page_whole(tmp_path):
    history = History(tmp_path)
    numbers = {name: value for name, value in describe([sample("a", math.nan)], 1).items() if not math.isnan(value)}
    history.add_samples("train", 0, [sample("a", math.nan, good=None)], keep=2)
    history.add_samples("val", 0, [sample("a", math.nan, good=None)], keep=2)
    history.add(Entry("train", 0, 1, 1, numbers))
    assert_drawable(page(history))
    assert "good not judged: too hard" in page(history)


def test_moments():
    assert moments([]) == [] and moments([3]) == [3] and moments([3, 9]) == [3, 9]
    assert moments([0, 10, 20, 70, 100]) == [0, 70, 100]


def test_a_code_block_holds_whatever_is_in_it():
    best, worst = sample("````\n# no title", 1.0, good=1.0), sample("plain", 0.0, good=0.0)
    text = markdown(best, worst)
    assert "`````\n````\n# no title\n`````" in text and "```\nplain\n```" in text
    assert "**best: reward 1** (good 1" in text and "**worst: reward 0**" in text

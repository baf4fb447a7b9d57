"""The site builds without a warning, and what its pages name, link and count is there."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify
from mkdocs.commands.build import build
from mkdocs.config import load_config
from pages import DOCS, PAGES, ROOT, said

import lnlit
from lnlit.cli.main import COMMANDS

WRITTEN = [page for page in PAGES if page.parent != ROOT]
#: Names of the table "coming from other tools" that `import lnlit` does not offer.
ELSEWHERE = {
    "Clip": "lnlit.objectives.policy",
    "KL": "lnlit.objectives.kl",
    "score": "lnlit.stages.score",
    "measure": "lnlit.stages.measure",
    "solve": "lnlit.stages.solve",
    "fuse": "lnlit.stages.fuse",
    "realize": "lnlit.stages.realize",
    "verify": "lnlit.stages.verify",
    "build_library": "lnlit.stages.library",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it; a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        patch.setattr(sys, "path", [*sys.path])  # plugins' folders are added, whose metadata other tests must not find
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out), strict=True))
    return out


def test_the_site_has_a_page_for_each_stage_with_its_file(site):
    stages = sorted((ROOT / "yaml" / "mini").glob("*.yaml"))
    assert {page.stem for page in (DOCS / "mini").glob("*.md")} - {"index"} == {stage.stem for stage in stages}
    for stage in stages:
        shown = re.sub(r"<[^>]+>", "", (site / "mini" / stage.stem / "index.html").read_text())
        assert all(line.split("#")[0].strip().replace("&", "&amp;") in shown for line in stage.read_text().splitlines())


def test_every_part_of_lnlit_has_its_arguments_in_the_reference(site):
    from lnlit.builtins import BUILTINS

    made = "".join(page.read_text() for page in (site / "reference").rglob("index.html"))
    targets = [target for parts in BUILTINS.values() for target in parts.values()]
    for file in (ROOT / "plugins").glob("*/pyproject.toml"):
        offered = tomllib.loads(file.read_text())["project"].get("entry-points", {})
        targets += [target for group in offered if group.startswith("lnlit.") for target in offered[group].values()]
    assert len(targets) > 80
    assert not [target for target in targets if target.replace(":", ".") not in made]
    parameters = inspect.signature(lnlit.ChatData).parameters
    assert all(f"<code>{name}</code>" in made for name in parameters)
    assert all(f"lnlit {command}" in made for command in COMMANDS)


def test_what_a_page_names_is_there():
    """A path in backticks is of a file or a folder of the repository."""
    for page in PAGES:
        for path in re.findall(r"`((?:yaml|tests|plugins|notebooks|docs|lnlit)/[\w./-]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_papers_table_has_files_and_tests_in_each_row():
    rows = [line for line in (DOCS / "paper.md").read_text().splitlines() if re.match(r"\| \d", line)]
    assert len(rows) >= 20
    for row in rows:
        _, section, _, files, tests, figure, _ = (cell.strip() for cell in row.split("|"))
        assert "`yaml/" in files and "`tests/" in tests, row
        assert "results.md#" in figure or figure == "not measured", row
        assert re.fullmatch(r"[\d., ]+", section)


def test_links_of_the_readme_lead_somewhere():
    for target, anchor in re.findall(r"\]\((?!http)([^)#]+)(#[^)]+)?\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / target).read_text(), re.M)
            assert anchor[1:] in {slugify(re.sub(r"[`*]", "", heading), "-") for heading in headings}, anchor


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:[.,]\d+)*", text))


def sections() -> dict[str, str]:
    """The sections of RESULTS.md by their anchor. Those of one name are taken together."""
    found: dict[str, str] = {}
    for section in re.split(r"^## ", (ROOT / "tests/benchmarks/RESULTS.md").read_text(), flags=re.M)[1:]:
        anchor = slugify(section.partition("\n")[0].strip(), "-")
        found[anchor] = found.get(anchor, "") + section
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_figure_stands_where_its_link_leads(page):
    """Of each row of a table and each paragraph that links a section of the results, all numbers of two digits or more
    are numbers of that section."""
    known = sections()
    for paragraph in re.split(r"\n\n|\n(?=\|)", said(page)):
        anchors = re.findall(r"(?:results\.md|RESULTS\.md)#([\w-]+)\)", paragraph)
        if not anchors:
            continue
        section = r"|^\| \d[\d., ]* \|" if page.name == "paper.md" else ""
        plain = re.sub(rf"\]\([^)]*\)|`[^`]*`|\[\d{{4}}-\d\d-\d\d|SmolLM2-135M{section}", " ", paragraph)
        there = set.union(*(numbers(known[anchor]) for anchor in anchors))
        there |= {number.rstrip("0").rstrip(".") for number in there if "." in number}
        missing = {number for number in numbers(plain) if len(number) > 1 and number not in there}
        assert not missing, f"{missing} in {paragraph!r}"


def test_keys_of_other_tools_are_told_as_keys_of_lnlit():
    sys.path.insert(0, str(DOCS))
    try:
        arguments = importlib.import_module("reference").arguments
    finally:
        sys.path.remove(str(DOCS))
    from lightning.pytorch import Trainer

    rows = re.findall(r"^\| .* \| (.*) \|$", (DOCS / "guide" / "coming-from.md").read_text(), re.M)
    keys = [key for row in rows for key in re.findall(r"`(\w+\.\w+)`", row)]
    assert len(keys) > 60
    for key in keys:
        owner, _, name = key.partition(".")
        if owner == "trainer":
            assert name in inspect.signature(Trainer).parameters, key
            continue
        found = getattr(importlib.import_module(ELSEWHERE.get(owner, "lnlit")), owner)
        assert name in {argument[0].partition(".")[0] for argument in arguments(found)}, key
    for command in (word for row in rows for word in re.findall(r"`lnlit (\w+)", row)):
        assert command in COMMANDS


def test_messages_that_troubleshooting_quotes_are_said_by_lnlit():
    table = (DOCS / "guide" / "troubleshooting.md").read_text().partition("| you see |")[2]
    code = "".join(path.read_text() for path in (ROOT / "lnlit").rglob("*.py"))
    quoted = [words for row in re.findall(r"^\| ([^|]+) \|", table, re.M) for words in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 6
    for words in quoted:
        said_by_us = words.replace("DISTRIBUTION:NAME", "{entry.distribution}:{entry.name}").replace("lnlit run", "")
        assert said_by_us in code, words

"""The page that `lnlit run` leaves: what each stage was, its time, curves, pictures and tables."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname
from xml.etree import ElementTree

import pytest
from torch.utils.tensorboard import SummaryWriter

from lnlit.cli.main import main
from lnlit.cli.processes import Processes
from lnlit.report.run_page import Ran, duration, page, scalars, tables_of

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
XHTML = "{http://www.w3.org/1999/xhtml}"


def words(root: ElementTree.Element) -> str:
    return " ".join(" ".join(root.itertext()).split())


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h 0 min"), (6120.0, "1 h 42 min")],
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_metrics_of_a_resumed_run_are_read_whole(tmp_path):
    assert scalars(tmp_path) == {}
    for first in (1, 4):
        with SummaryWriter(str(tmp_path)) as writer:
            for step in range(first, first + 3):
                writer.add_scalar("train/loss", 0.5 * step, step)
    assert scalars(tmp_path) == {"train/loss": [(float(step), 0.5 * step) for step in range(1, 7)]}


def test_tables_are_read_as_they_were_written():
    text = "# T\n\n| a | b |\n|---|---:|\n| x \\| y | 1 |\n|  | 2 |\n\nwords | more\n| c |\n| --- |\n"
    first, second = tables_of(text)
    assert (first.head, first.rows) == (["a", "b"], [("", ["x | y", "1"]), ("", ["", "2"])])
    assert (second.head, second.rows) == (["c"], [])


def test_a_page_shows_what_stages_left_and_needs_nothing_but_itself(tmp_path):
    root, results = tmp_path / "runs/fit", tmp_path / "runs/eval"
    with SummaryWriter(str(root / "logs")) as writer:
        for step, value in ((1, 2.0), (2, 1.0)):
            writer.add_scalar("train/loss", value, step)
            writer.add_scalar("train/rewards/answer/mean", value, step)
            writer.add_scalar("train/rewards/answer/mean/thinking_on", value, step)
            writer.add_scalar("perf/tokens_per_s", 100 * value, step)
    (root / "rollouts.html").write_text("<html/>")
    results.mkdir()
    (results / "results.md").write_text("| model | acc |\n|---|---|\n| <child> | 7 |\n")
    (results / "acc.png").write_bytes(PNG)
    stages = [
        Ran("1_fit", "Learns & forgets.", "fit", "finished, 3 s", 3.0, [str(tmp_path / "runs/model")], str(root)),
        Ran("2_eval", "", "eval", "finished, 61 s", 61.0, [str(results)]),
        Ran("3_more", "", "eval", "not started", None, [str(tmp_path / "runs/none")]),
    ]
    text = page("mini", stages, tmp_path / "runs")
    whole = ElementTree.fromstring(text.partition("\n")[2] if text.startswith("<!") else text)
    assert "2 of 3 stages have finished, in 1 min 4 s." in words(whole)
    sections = {words(each[0]): each for each in whole.iter(f"{XHTML}section")}
    assert list(sections) == ["Where the time went", "1_fit", "2_eval", "3_more"]
    fit = words(sections["1_fit"])
    assert "Learns & forgets." in fit and "lnlit fit: finished, 3 s; 150 tokens/s" in fit
    curves = [each.get("aria-label") for each in sections["1_fit"].iter("{http://www.w3.org/2000/svg}svg")]
    assert curves == [
        "Loss over optimizer steps: train/loss 2 to 1.",
        "Reward over optimizer steps: train/rewards/answer/mean 2 to 1.",
    ]
    assert [each.get("href") for each in sections["1_fit"].iter(f"{XHTML}a")] == ["fit/rollouts.html"]
    assert [words(each) for each in sections["2_eval"].iter(f"{XHTML}td")] == ["<child>", "7"]
    (image,) = sections["2_eval"].iter(f"{XHTML}img")
    assert base64.b64decode(image.get("src", "").partition(",")[2]) == PNG
    assert "<script" not in text and "default-src 'none'" in text and "img-src data:" in text


def test_nothing_on_a_page_goes_without_a_word(tmp_path):
    """A loss that is no number, more rewards than colours, and pictures of one name in two folders."""
    root, results = tmp_path / "runs", tmp_path / "runs/eval"
    with SummaryWriter(str(root / "logs")) as writer:
        for step, value in ((1, 2.0), (2, float("nan"))):
            writer.add_scalar("train/loss", value, step)
        for number in range(9):
            writer.add_scalar(f"train/rewards/r{number}/mean", 1.0, 1)
    (root / "mini.html").write_text("<html/>")
    (results / "fusion").mkdir(parents=True)
    for file in (results / "a.png", results / "fusion/a.png"):
        file.write_bytes(PNG)
    text = page("mini", [Ran("1_fit", "", "fit", "finished, 3 s", 3.0, [str(results)], str(root))], root)
    assert "train/loss 2 to 2; 1 values that are no finite number are not drawn" in text
    assert re.search(r"train/rewards/r0/mean 1 to 1; .*; \d more are not drawn", text)
    assert text.count("<img ") == 2 and "mini.html" not in text


@pytest.mark.parametrize("name", ["100%", "a#b", "a?b", "a b", "ü"])
def test_links_lead_to_folders_of_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "index.html").write_text("<html/>")
    text = page("mini", [Ran("1_eval", "", "eval", "finished, 3 s", 3.0, [str(tmp_path / name)])], tmp_path)
    (link,) = (each.get("href") for each in ElementTree.fromstring(text.partition("\n")[2]).iter(f"{XHTML}a"))
    assert (
        url2pathname(urlsplit(urljoin(tmp_path.as_uri() + "/mini.html", link)).path) == f"{tmp_path}/{name}/index.html"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_whose_numbers_are_none_says_so(tmp_path, value):
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for metric in ("train/loss", "val/loss", "perf/tokens_per_s", "memory/peak_gib"):
            writer.add_scalar(metric, value, 1)
    text = page("mini", [Ran("1_fit", "", "fit", "finished, 3 s", 3.0, [], str(tmp_path))], tmp_path)
    assert "finished, 3 s; train/loss, val/loss: no value is a finite number</p>" in text


def test_a_run_leaves_its_page_when_it_ends_and_when_a_stage_fails(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    problem = '{"layers": [[{"name": "a", "score": 1.0, "costs": {"c": 1}}]], "budgets": [{"cost": "c", "max": 2}]}'
    Path("problem.json").write_text(problem)
    Path("mini").mkdir()
    first = "# Solves it.\nstage: solve\nproblem: problem.json\nsolver: greedy\nout: runs/first.json\n"
    Path("mini/1_solve.yaml").write_text(first)
    assert main(["run", "mini"]) == 0, capfd.readouterr().err
    assert "1 of 1 stages have finished" in Path("runs/mini.html").read_text()
    assert "runs/mini.html: what has run" in capfd.readouterr().err
    Path("mini/2_solve.yaml").write_text(
        first.replace("first", "second") + "deployment: {targets: [{cost: c, max: 0.5}]}\n"
    )
    assert main(["run", "mini"]) == 2
    text = Path("runs/mini.html").read_text()
    assert "1 of 2 stages have finished" in text and "lnlit search solve: started, not finished" in text
    Path("mini/2_solve.yaml").unlink()
    Path("runs/mini.html").write_text("a page of somebody else")
    assert main(["run", "mini", "--again", "1"]) == 2
    assert "runs/mini.html is there already, and is no earlier result" in capfd.readouterr().err
    assert Path("runs/mini.html").read_text() == "a page of somebody else"


def test_a_page_is_written_too_when_a_stage_ends_without_its_result(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("mini").mkdir()
    Path("mini/1_solve.yaml").write_text("stage: solve\nproblem: mini/1_solve.yaml\nsolver: greedy\nout: runs/a.json\n")
    monkeypatch.setattr(Processes, "run", lambda *_: (0, 0))
    assert main(["run", "mini"]) == 2
    assert "has ended, but runs/a.json is not there" in capfd.readouterr().err
    assert "0 of 1 stages have finished" in Path("runs/mini.html").read_text()

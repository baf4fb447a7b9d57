"""`lnlit recipes`: a wheel has them too, what is copied leads where it led, and no file of the user's is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from lnlit.cli.main import main
from lnlit.cli.pipeline import stages_of

ROOT = Path(__file__).parents[2]
NAMES = {path.relative_to(ROOT / "yaml").with_suffix("").as_posix() for path in (ROOT / "yaml").rglob("*.yaml")}


def said(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["recipes", *map(str, words)])
    return code, *capsys.readouterr()


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_each_recipe_is_listed_with_what_it_does(capsys):
    code, out, _ = said(capsys)
    rows = dict(line.split(maxsplit=1) for line in out.partition("\n\n")[0].splitlines())  # dict() needs two words each
    assert code == 0 and rows.keys() == NAMES
    assert rows["mini/4_distill"].startswith("Healing: the child learns from the parent's")
    assert max(map(len, out.splitlines())) <= 150


def test_a_recipe_is_shown_as_it_is(capsys):
    text = (ROOT / "yaml/mini/6_grpo.yaml").read_text()
    for name in ("mini/6_grpo", "yaml/mini/6_grpo.yaml"):
        assert said(capsys, "show", name) == (0, text, "")


def test_a_copied_folder_is_one_that_runs_in_order(tmp_path, capsys):
    assert said(capsys, "copy", "mini", tmp_path / "yaml")[0] == 0
    assert files(tmp_path / "yaml/mini") == files(ROOT / "yaml/mini") and [*tmp_path.iterdir()] == [tmp_path / "yaml"]
    assert len(stages_of(tmp_path / "yaml/mini")) == len(stages_of(ROOT / "yaml/mini")) > 10


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.startswith("ablations")))
def test_what_a_recipe_names_is_copied_with_it(name, tmp_path, capsys):
    assert said(capsys, "copy", name, tmp_path)[0] == 0
    copied = tmp_path / f"{name}.yaml"
    base = yaml.safe_load(copied.read_text()).get("base", [])
    for named in [base] if isinstance(base, str) else base:
        assert (copied.parent / named).resolve().is_relative_to(tmp_path) and (copied.parent / named).is_file()
    assert files(tmp_path).items() <= files(ROOT / "yaml").items()


def test_a_file_that_is_there_stays(tmp_path, capsys):
    assert said(capsys, "copy", "ablations/kd_loss", tmp_path)[0] == 0
    code, out, _ = said(capsys, "copy", "ablations/kd_tokens", tmp_path)  # the same ln-super/4_distill
    assert code == 0 and out == f"{tmp_path}/ablations/kd_tokens.yaml\n"
    assert said(capsys, "copy", "ablations/kd_tokens", tmp_path)[:2] == (0, "all of it is there already\n")
    (tmp_path / "ln-super/4_distill.yaml").write_text("mine: 1\n")
    (tmp_path / "ablations/kd_loss.yaml").unlink()
    before = files(tmp_path)
    code, _, err = said(capsys, "copy", "ablations/kd_loss", tmp_path)
    assert code == 2 and "ln-super/4_distill.yaml: is there already with other content. Nothing was written" in err
    (tmp_path / "mini").write_text("a file")
    assert said(capsys, "copy", "mini", tmp_path)[0] == 2
    assert files(tmp_path) == before | {"mini": "a file"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "mini/6_grop"), "there is no recipe 'mini/6_grop'. Did you mean 'mini/6_grpo'?"),
        (("copy", "mni", "x"), "there is no recipe 'mni'. Did you mean 'mini'?"),
        (("show", "sft"), "there is no recipe 'sft'. It is a folder of sft/gsm8k."),
        (("copy", "../lnlit", "x"), "there is no recipe '../lnlit'."),
        (("copy", "mini"), "the following arguments are required: DIR"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, *words)
    assert code == 2 and message in err and err.count("\n") == 1 and not [*tmp_path.iterdir()]


def test_a_wheel_has_every_recipe_and_no_package_of_them(tmp_path):
    source = tmp_path / "source"
    for name in ("lnlit", "yaml"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    found = {name for name in zipfile.ZipFile(wheel).namelist() if "recipes/" in name or name.startswith("yaml")}
    assert found == {f"lnlit/recipes/{name}.yaml" for name in NAMES}
    assert all(path.suffix == ".yaml" for path in (ROOT / "yaml").rglob("*") if path.is_file()), "the wheel has these"


def test_python_has_them_too(capsys, tmp_path):
    import lnlit

    _, out, _ = said(capsys)
    listed = [tuple(line.split(maxsplit=1)) for line in out.partition("\n\n")[0].splitlines()]
    assert list(lnlit.recipes().items()) == listed
    assert lnlit.recipes_show("mini/6_grpo") == (ROOT / "yaml/mini/6_grpo.yaml").read_text()
    written = lnlit.recipes_copy("mini", tmp_path)
    stages = {stage.file for stage in stages_of(tmp_path / "mini")}
    assert stages <= set(written) and lnlit.recipes_copy("mini", tmp_path) == []
    with pytest.raises(lnlit.UserError, match=r"there is no recipe 'mini/6_grop'. Did you mean 'mini/6_grpo'"):
        lnlit.recipes_show("mini/6_grop")


def test_a_run_of_a_folder_that_is_not_there_says_how_to_have_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "yaml/mini"]) == 2
    said_so = capsys.readouterr().err
    assert "yaml/mini: there is no such folder" in said_so and "`lnlit recipes copy mini DIR` writes one" in said_so
    assert main(["run", "mine"]) == 2
    assert "`lnlit recipes copy NAME DIR` writes one" in capsys.readouterr().err

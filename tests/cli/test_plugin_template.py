"""What `lnlit plugins new` writes is built into a wheel, installed into a fresh environment and used there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lnlit.cli.new_plugin import write_plugin

ROOT = Path(__file__).parents[2]


def run(*command: object, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that holds the plugin's wheel and sees this one's packages, torch above all."""
    folder = tmp_path_factory.mktemp("stranger")
    source = write_plugin("ffn", "geglu", folder / "source")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, source)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    new = folder / "env" / "bin" / "python"
    packages = Path(run(new, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    here = f"import site, sys; sys.path.insert(0, {str(ROOT)!r}); site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "beside.pth").write_text(here)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", packages, wheel)
    return new


@pytest.fixture(scope="module")
def geglu_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one FFN of the plugin's type; its weights have the same names and shapes."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("geglu") / "model")
    record = json.loads((folder / "lnlit.json").read_text())
    record["spec"]["layers"][1]["ffn"]["type"] = "geglu"
    (folder / "lnlit.json").write_text(json.dumps(record))
    return folder


def test_it_is_listed_with_its_distribution(python):
    lines = run(python, "-m", "lnlit.cli.main", "plugins").splitlines()
    assert [line.split() for line in lines if "geglu" in line] == [
        ["ffn", "geglu", "lnlit-geglu", "0.1.0", "available"]
    ]


def test_find_prints_where_it_lives(python):
    location, doc = run(python, "-m", "lnlit.cli.main", "plugins", "find", "ffn", "geglu").splitlines()
    assert location.startswith(str(python.parents[1])) and "lnlit_geglu.py:" in location
    assert doc == "`down(gelu(gate(x)) * up(x))` of any width (Shazeer 2020, eq. 6)."


def test_its_own_tests_pass(python):
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", python.parents[2] / "source" / "tests")


def test_a_model_folder_that_names_it_trains(python, geglu_model, config, tiny_model, tmp_path):
    path = config((f"model: {tiny_model}", f"model: {geglu_model}"))
    run(python, "-m", "lnlit.cli.main", "fit", "--config", path, cwd=tmp_path)


def test_without_it_the_model_folder_is_refused_in_one_line(lnlit, geglu_model, config, tiny_model):
    code, _, err = lnlit("fit", "--config", config((f"model: {tiny_model}", f"model: {geglu_model}")))
    assert code == 2 and "layers[1].ffn.type: unknown ffn 'geglu'" in err.splitlines()[-1], err

"""On a cluster, datatrove submits the same phases; what runs there writes the same file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lnlit.curation.columns import Columns
from lnlit.curation.dedup import MinHashDedup
from lnlit.curation.executors import Local, Ray, Slurm
from lnlit.errors import UserError
from lnlit.stages.curate import curate

ROOT = Path(__file__).parents[2]
#: Runs a batch script at once, once for each task of its array, and fails if a job before it has failed.
SBATCH = f"""#!{sys.executable}
import os, re, subprocess, sys
here = os.path.dirname(os.path.abspath(__file__))
script = sys.argv[-1]
text = open(script).read()
number = len(os.listdir(here + "/jobs")) + 1
ended = [a.rpartition(":")[2] for a in sys.argv if a.startswith("--dependency=afterok")]
failed = any(open(here + "/jobs/" + job).read() != "0" for job in ended)
code, last = 1, re.search(r"--array=0-(\\d+)", text)
given = [pair for a in sys.argv if a.startswith("--export=") for pair in a[9:].split(",")]
export = dict(pair.split("=", 1) for pair in given if "=" in pair)
if not failed:
    code = 0
    for task in range(int(last[1]) + 1 if last else 1):
        env = os.environ | export | {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "n1"}}
        log = open(here + "/log.txt", "a")
        code = code or subprocess.run(["bash", script], env=env, stdout=log, stderr=log).returncode
open(here + f"/jobs/{{number}}", "w").write(str(code))
print("Submitted batch job", number)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine that believes itself a cluster of Slurm."""
    (tmp_path / "bin" / "jobs").mkdir(parents=True)
    programs = {
        "sbatch": SBATCH,
        "srun": '#!/bin/bash\nshift; shift; shift; exec "$@"\n',
        "scontrol": "#!/bin/bash\necho n1\n",
    }
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


ROWS = [
    {"prompt": f"what is the sum of {n // 2} and of all the numbers that come before it", "n": n} for n in range(12)
]


def test_slurm_writes_what_this_machine_writes(slurm, rows_in, capsys):
    steps = [Columns(required=["prompt"]), MinHashDedup(ngram=3, buckets=2)]
    curate(rows_in(ROWS), steps, str(slurm / "local.jsonl"), Local(), tasks=2)
    capsys.readouterr()
    cluster = Slurm(time="1:00:00", partition="cpu", settings={"qos": None})
    curate(rows_in(ROWS), steps, str(slurm / "out.jsonl"), cluster, tasks=2)
    log = (slurm / "bin" / "log.txt").read_text()
    assert (slurm / "out.jsonl").exists(), log[-3000:]
    assert (slurm / "out.jsonl").read_bytes() == (slurm / "local.jsonl").read_bytes()
    assert "MinHashDedup" in capsys.readouterr().err.splitlines()[-1]
    assert not (slurm / "out.jsonl.work").exists()


def test_slurm_goes_on_where_it_failed(slurm, rows_in, monkeypatch):
    (slurm / "bin" / "launch_pickled_pipeline").write_text("#!/bin/bash\nexit 1\n")
    (slurm / "bin" / "launch_pickled_pipeline").chmod(0o755)
    cluster = Slurm(time="1:00:00", partition="cpu")
    out = slurm / "out.jsonl"
    curate(rows_in(ROWS), [Columns()], str(out), cluster, tasks=2)
    assert not out.exists() and (slurm / "out.jsonl.work").exists()
    (slurm / "bin" / "launch_pickled_pipeline").unlink()
    curate(rows_in(ROWS), [Columns()], str(out), cluster, tasks=2)
    assert len(out.read_text().splitlines()) == 12


def test_ray_that_is_not_there_is_told(rows_in, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed; run: pip install 'ray\[default\]'"):
        curate(rows_in(ROWS), [], str(tmp_path / "out.jsonl"), Ray())

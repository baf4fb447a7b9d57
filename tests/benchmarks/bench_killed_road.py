"""Does a road that is killed again and again end where an undisturbed one ends?

    python tests/benchmarks/bench_killed_road.py [--kills 10] [--seed 0]

Runs `lnlit run` over all stages of yaml/mini before the evaluation, in their small form (tests/tiny_road.py): first
undisturbed, then with SIGKILL to `lnlit run` after times drawn at random, which add up to no more than the first run
took. Compares every file of weights and of generated rows byte by byte, and appends what it found to RESULTS.md. Times
of a tiny model are noise, so the budget of its search is parameters. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_road import RECIPES, learning, searching, write_parent, write_preferences, write_texts

RESULTS = Path(__file__).with_name("RESULTS.md")
_OF_THE_RUN = re.compile(rb', "seconds": [\d.e-]+|"library_sha256": "[0-9a-f]+"')
COMMAND = [sys.executable, "-m", "lnlit.cli.main", "run", "mini", "--until", "8b"]


def write_road(folder: Path) -> None:
    """The stages and all that they read."""
    for write in (write_parent, write_texts, write_preferences):
        write(folder)
    (folder / "mini").mkdir()
    for recipe in RECIPES.glob("*.yaml"):
        text = (searching if recipe.name < "5" else learning)(recipe)
        (folder / "mini" / recipe.name).write_text(text)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every model's weights and of all rows that were written, by path; not of checkpoints. Left out is what
    scores say of the folder's own path, of the library's digest, which knows that path, and of seconds."""
    runs = folder / "runs" / "mini"
    files = [*runs.glob("*/model*.safetensors"), *runs.glob("*.jsonl")]
    contents = {str(file.relative_to(runs)): file.read_bytes().replace(bytes(folder), b"") for file in sorted(files)}
    return {name: hashlib.sha256(_OF_THE_RUN.sub(b"", content)).hexdigest() for name, content in contents.items()}


def run(folder: Path, kill_after_s: float | None = None) -> tuple[int, float]:
    """(exit code, seconds) of one `lnlit run`."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    begin = time.monotonic()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(COMMAND, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        return process.wait(), time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as scratch:
        calm, killed = Path(scratch) / "calm", Path(scratch) / "killed"
        for folder in (calm, killed):
            folder.mkdir()
            write_road(folder)
        code, seconds = run(calm)
        if code:
            raise SystemExit((calm / "log").read_text()[-2000:])
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        moments = sorted(draw.uniform(0, seconds) for _ in range(asked.kills))
        kills, spent = 0, 0.0
        for before, moment in zip([0.0, *moments], moments, strict=False):
            code, took = run(killed, moment - before)
            kills, spent = kills + (code == -signal.SIGKILL), spent + took
            print(f"killed after {took:.1f} s, exit code {code}", flush=True)
        code, took = run(killed)
        if code:
            raise SystemExit((killed / "log").read_text()[-2000:])
        expected, found = digests(calm), digests(killed)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    others = f"; others: {', '.join(differing)}" if differing else ""
    text = (
        f"\n## {date.today()}: the road killed at random moments, tiny\n\n"
        f"`python tests/benchmarks/bench_killed_road.py --kills {asked.kills} --seed {asked.seed}`: {kills} SIGKILLs "
        f"of `lnlit run` over all stages of yaml/mini before the evaluation, {seconds:.0f} s undisturbed and "
        f"{spent + took:.0f} s killed. {len(expected) - len(differing)} of {len(expected)} files of weights and rows "
        f"are the same, byte by byte{others}.\n"
    )
    print(text)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()

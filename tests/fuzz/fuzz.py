"""Thousands of command lines that a user may have got wrong: none ends in a traceback, none loses a file.

    python tests/fuzz/fuzz.py [--tries 2000] [--seed 0] [--only SEED] [--time_limit_s 60]

Each try has its own copy of a small world (world.py), a command line that works on it, and one to three mistakes
(mutate.py), all of them drawn from its seed: `--only SEED` shows one try again with all it prints. An exit code is 0, 2, or that
of a signal; a try that takes longer than its limit is counted, not judged.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import warm
from mutate import bad_files, mutate
from world import COMMANDS, build

#: What a command may write into beside the folders that it is told to write: its own caches.
_WRITABLE = ("new", "run", "runs")


def snapshot(root: Path) -> dict[str, str]:
    """Digest of each file outside what commands write to."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and not path.is_symlink() and name.parts[0] not in _WRITABLE:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def attempt(seed: int, world: Path, report, shown: bool, right: list[str] | None = None) -> None:
    """One try, in a process of its own: (words, mistakes, outcome, what it said). `right`: a line without mistakes."""
    os.setsid()
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "world"
        shutil.copytree(world, root, symlinks=True)
        os.chdir(root)
        words = rng.choices([line for line, _ in COMMANDS], [weight for _, weight in COMMANDS])[0]
        words, mistakes = mutate(rng, words, root) if right is None else (right, "none")
        before = snapshot(root)
        from lnlit.cli.main import main

        sys.stdin = io.StringIO("")
        printed = Path(scratch) / "printed"
        printed.touch()
        if not shown:
            with printed.open("wb") as stream:  # of the processes that it starts, too
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
        try:
            code = main(words)
            outcome = f"exit {code}" if code in (0, 2, 130, 141, 143) else f"FAULT: exit {code}"
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"FAULT: {type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        said = printed.read_text(encoding="utf-8", errors="replace")
        if "Traceback (most recent call last)" in said and not outcome.startswith("FAULT"):
            outcome = f"FAULT: a traceback, and {outcome}"
        if not outcome.startswith("FAULT"):
            after = snapshot(root)
            lost = [name for name, digest in before.items() if after.get(name) != digest]
            if lost:
                outcome = f"FAULT: {outcome}, changed or lost: {', '.join(lost[:3])}"
        if outcome == "exit 2" and "error: " not in said and "usage: " not in said and not shown:
            outcome = "FAULT: exit 2 without a word"
        report.put((words, mistakes, outcome, said[-1500:]))


def one(context, seed: int, world: Path, time_limit_s: float, shown: bool = False, right: list[str] | None = None):
    queue = context.SimpleQueue()
    process = context.Process(target=attempt, args=(seed, world, queue, shown, right))
    process.start()
    begun = time.monotonic()
    while process.is_alive() and time.monotonic() - begun < time_limit_s and queue.empty():
        time.sleep(0.02)
    found = ("?", "?", f"over {time_limit_s:.0f} s", "") if queue.empty() and process.is_alive() else None
    if found is None:
        process.join(5)
        found = queue.get() if not queue.empty() else ("?", "?", f"FAULT: died with {process.exitcode}", "")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return found


def fuzz(tries: int, first: int, world: Path, time_limit_s: float) -> tuple[Counter[str], list[tuple[int, tuple]]]:
    """(how often each outcome was, the tries at fault with their seeds)."""
    context = multiprocessing.get_context("fork")
    outcomes: Counter[str] = Counter()
    faults = []
    for line, _ in COMMANDS:  # what is refused without a mistake would be refused with any
        found = one(context, 0, world, 600.0, right=line)
        if found[2] != "exit 0":
            faults.append((-1, found))
            print(f"without a mistake: lnlit {' '.join(line)}\n  {found[2]}\n  {found[3][-500:]}", flush=True)
    for seed in range(first, first + tries):
        found = one(context, seed, world, time_limit_s)
        kind = found[2] if found[2].startswith(("exit", "over")) else "FAULT"
        outcomes[kind] += 1
        if kind == "FAULT":
            faults.append((seed, found))
            print(f"seed {seed}: lnlit {' '.join(map(repr, found[0]))}\n  {found[1]}\n  {found[2]}", flush=True)
        if (seed - first + 1) % 100 == 0:
            print(f"{seed - first + 1} tries: {dict(outcomes)}", flush=True)
    return outcomes, faults


def make_world(folder: Path) -> Path:
    """The world, made in a process of its own: this one is forked for each try and has to stay without threads."""
    import torch

    import lnlit.stages.annotate
    import lnlit.stages.score
    import lnlit.stages.solve  # noqa: F401

    warm.import_all(warm.MOST)
    torch.set_num_threads(1)
    folder.mkdir(parents=True)

    def make() -> None:
        from lnlit.cli.main import main

        os.chdir(folder)
        build(folder, main)
        bad_files(folder)

    process = multiprocessing.get_context("fork").Process(target=make)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("the world could not be made")
    return folder


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first try; each further one has the next")
    parser.add_argument("--only", type=int, help="this seed alone, with all that it prints")
    parser.add_argument("--time_limit_s", type=float, default=60.0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        world = make_world(Path(scratch) / "world")
        if options.only is not None:
            found = one(multiprocessing.get_context("fork"), options.only, world, 600.0, shown=True)
            print(f"lnlit {' '.join(map(repr, found[0]))}\n{found[1]}\n{found[2]}")
            return 0
        outcomes, faults = fuzz(options.tries, options.seed, world, options.time_limit_s)
    print(f"seeds {options.seed} to {options.seed + options.tries - 1}: {dict(outcomes)}")
    print(f"faults: {len(faults)}")
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(run(sys.argv[1:]))

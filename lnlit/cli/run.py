"""`lnlit run FOLDER`: a folder of numbered YAML files, one stage each, in order; finished ones are skipped.

A file with a `stage:` key is a stage of `lnlit search` or `lnlit rollout`; any other is a configuration of `lnlit fit`.
Each stage is a process of its own, so that Lightning can start it once per GPU and its memory is free for the next.

The record of stages says which were finished, and of which the output was not there when they were started. When one of
these is found without its end noted, but with its output whole, `lnlit run` itself was killed in between: the stage
counts as finished.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lnlit.cli.arguments import CommandParser
from lnlit.cli.rollout import STAGES as ROLLOUT
from lnlit.errors import UserError
from lnlit.files import read_json, write_json

#: The index of a block library and that of a model folder.
COME_LAST = ("library.json", "lnlit.json")
_NUMBER = re.compile(r"(\d+)([a-z]?)_")


def main(argv: list[str]) -> int:
    """Run a pipeline. Interrupted, the same command goes on where it stopped."""
    parser = CommandParser(prog="lnlit run", description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds 1_name.yaml, 2_name.yaml, ...")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where finished stages are noted")
    options = parser.parse_args(argv)
    files = numbered(options.folder)
    ledger = _Ledger(options.runs, options.folder)
    above = ""
    for file in files:
        above = hashlib.sha256(above.encode() + file.read_bytes()).hexdigest()
        if (seconds := ledger.seconds(file, above)) is not None:
            print(f"{file}: finished, {seconds:.0f} s", file=sys.stderr)
            continue
        recipe = _recipe(file)
        outs = list(_outs(recipe))
        if ledger.was_started(file, above) and outs and all(map(_is_whole, outs)):
            ledger.note(file, above, 0.0)
            print(f"{file}: finished, {' and '.join(outs)} is there", file=sys.stderr)
            continue
        if not any(map(_is_whole, outs)):
            ledger.note(file, above, None)
        started = time.monotonic()
        code, signalled = _run(file, recipe)
        if code == 0:
            ledger.note(file, above, time.monotonic() - started)
        if code or signalled:
            return code or 128 + signalled
    return 0


class _Ledger:
    """Which stages of a folder were started and finished: `<runs>/<folder's name>.stages.json`."""

    def __init__(self, runs: Path, folder: Path) -> None:
        self.file = runs / f"{folder.resolve().name}.stages.json"
        place = os.path.relpath(folder.resolve(), runs.resolve())  # both may be moved together
        self._stages: dict[str, Any] = {"folder": place}
        if self.file.is_file():
            self._stages |= read_json(self.file, "a record of finished stages")
        if self._stages["folder"] != place:
            raise UserError(
                f"{self.file}: is the record of another folder of this name, {runs / self._stages['folder']}. Choose "
                "another place with --runs, or rename the folder."
            )

    def seconds(self, file: Path, sha256: str) -> float | None:
        """What a stage took when it was finished. Raises `UserError` when it was another then."""
        seen = self._stages.get(file.stem, {})
        if "seconds" in seen and seen["sha256"] != sha256:
            raise UserError(
                f"{file}: this stage or one before it has changed since it ran. Delete what it wrote and its entry in "
                f"{self.file} to run it again, or give the changed pipeline another folder and other outputs."
            )
        return seen.get("seconds")

    def was_started(self, file: Path, sha256: str) -> bool:
        return self._stages.get(file.stem, {}).get("sha256") == sha256

    def note(self, file: Path, sha256: str, seconds: float | None) -> None:
        """Started, with nothing at its output; or finished."""
        took = {} if seconds is None else {"seconds": round(seconds, 1)}
        self._stages[file.stem] = {"sha256": sha256, **took}
        write_json(self.file, self._stages)


def numbered(folder: Path) -> list[Path]:
    """The stages of a folder, `1_name.yaml` before `1b_name.yaml` before `2_name.yaml`. `UserError` when there are none
    or two share a number."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give one that holds 1_name.yaml, 2_name.yaml, ...")
    stages: dict[tuple[int, str], Path] = {}
    for file in sorted(folder.glob("*.yaml")):
        match = _NUMBER.match(file.name)
        if match is None:
            continue
        place = (int(match[1]), match[2])
        if place in stages:
            raise UserError(f"{folder}: {stages[place].name} and {file.name} have the same number")
        stages[place] = file
    if not stages:
        raise UserError(f"{folder}: no file is named like 1_name.yaml, so there is nothing to run")
    return [stages[place] for place in sorted(stages)]


def _recipe(file: Path) -> dict[str, Any]:
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: is not valid YAML: {str(error).partition(chr(10))[0]}") from error
    return written if isinstance(written, dict) else {}


def _outs(recipe: Any) -> Iterator[str]:
    """Everything that a recipe calls `out`, at any depth."""
    items = recipe.items() if isinstance(recipe, dict) else enumerate(recipe) if isinstance(recipe, list) else ()
    for key, value in items:
        if key == "out" and isinstance(value, str):
            yield value
        yield from _outs(value)


def _is_whole(out: str) -> bool:
    """Whether there is a block library or a model folder: each has a file that comes last or with all others."""
    return any((Path(out).expanduser() / name).is_file() for name in COME_LAST)


def _run(file: Path, recipe: dict[str, Any]) -> tuple[int, int]:
    """Exit code of one stage, and the signal that this process got meanwhile, or 0.

    Ctrl-C and SIGTERM are passed on to the stage and its end is waited for: it saves what it has. It has a process
    group of its own, or Ctrl-C in a terminal would reach it twice.
    """
    stage = recipe.get("stage")
    command = ["rollout" if stage in ROLLOUT else "search", str(stage)] if stage else ["fit"]
    print(f"{file}: lnlit {' '.join(command)}", file=sys.stderr, flush=True)
    options = ["--config", str(file), *([] if stage else ["--ckpt_path", "last"])]
    process: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def forward(number: int, frame: Any) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    forwarded = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, forward) for number in forwarded}
    try:
        process = subprocess.Popen([sys.executable, "-m", "lnlit.cli.main", *command, *options], process_group=0)
        for number in received:  # before there was a process
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return (code if code >= 0 else 128 - code), (received[0] if received else 0)

"""`lnlit run FOLDER`: a folder of numbered YAML files, one stage each, in order; finished ones are skipped.

A file with a `stage:` key is a stage of `lnlit search`; any other is a configuration of `lnlit fit`.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from lnlit.cli.arguments import CommandParser
from lnlit.errors import UserError
from lnlit.files import read_json, write_json

_NUMBER = re.compile(r"(\d+)([a-z]?)_")


def main(argv: list[str]) -> int:
    """Run a pipeline. Interrupted, the same command goes on where it stopped."""
    parser = CommandParser(prog="lnlit run", description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds 1_name.yaml, 2_name.yaml, ...")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where finished stages are noted")
    options = parser.parse_args(argv)
    files = numbered(options.folder)
    ledger = options.runs / f"{options.folder.resolve().name}.stages.json"
    finished: dict[str, Any] = read_json(ledger, "a record of finished stages") if ledger.is_file() else {}
    above = ""
    for file in files:
        above = hashlib.sha256(above.encode() + file.read_bytes()).hexdigest()
        seen = finished.get(file.stem)
        if seen is not None and seen["sha256"] == above:
            print(f"{file}: finished, {seen['seconds']:.0f} s", file=sys.stderr)
            continue
        if seen is not None:
            raise UserError(
                f"{file}: this stage or one before it has changed since it ran. Delete what it wrote and its entry in "
                f"{ledger} to run it again, or give the changed pipeline another folder and other outputs."
            )
        code, seconds = _run(file)
        if code:
            return code
        finished[file.stem] = {"sha256": above, "seconds": round(seconds, 1)}
        write_json(ledger, finished)
    return 0


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


def _run(file: Path) -> tuple[int, float]:
    """Exit code and seconds of one stage, in this process."""
    started = time.monotonic()
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: is not valid YAML: {str(error).partition(chr(10))[0]}") from error
    stage = written.get("stage") if isinstance(written, dict) else None
    print(f"{file}: {f'lnlit search {stage}' if stage else 'lnlit fit'}", file=sys.stderr)
    if stage is None:
        from lnlit.cli.stages import fit

        code = fit(["--config", str(file), "--ckpt_path", "last"])
    else:
        from lnlit.cli.search import main as search

        code = search([str(stage), "--config", str(file)])
    return code, time.monotonic() - started

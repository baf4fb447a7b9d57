"""Keeps `<runs>/<folder's name>.stages.json` under a lock: for each stage of a folder, whether it was started or
finished, and a digest of everything that it was made from."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from lnlit.cli.made_by import Digests, changes, made_by, other_versions
from lnlit.cli.pipeline import Stage
from lnlit.errors import UserError
from lnlit.files import expanded, listed, read_json, write_json

#: The index files of block libraries and model folders.
COME_LAST = ("library.json", "lnlit.json")
#: Seconds that the remaining processes of a killed `lnlit run` may take to end.
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Verdict:
    """The state of a stage and the reason for it. `text` is for people."""

    state: Literal["finished", "changed", "gone", "again", "started", "new"]
    text: str
    made_by: dict[str, Any]


class Ledger:
    """The record of one folder's stages.

    Each stage has a record of what it was made by, `seconds` when it is finished, and then `outs`, the names in each of
    its results. A stage without `seconds` was started when no results existed; one with `again` is to be run again.
    `known` holds digests of files that were read earlier.
    """

    def __init__(self, runs: Path, folder: Path, known: Mapping[str, list[Any]] | None = None) -> None:
        self.runs, self.folder = runs, folder
        self.file = runs / f"{folder.resolve().name}.stages.json"
        place = os.path.relpath(folder.resolve(), runs.resolve())  # both may be moved together
        self._stages: dict[str, Any] = {"folder": place}
        if self.file.is_file():
            self._stages |= read_json(self.file, "a record of finished stages")
        for name, about in self._stages.items():
            if not isinstance(about, str if name == "folder" else dict):
                raise UserError(f"{self.file}: {name}: is no record of a stage: {about!r}. Delete this entry.")
        if self._stages["folder"] != place:
            raise UserError(
                f"{self.file}: is the record of another folder of this name, {runs / self._stages['folder']}. Choose "
                "another place with --runs, or rename the folder."
            )
        self.digests = Digests({**self._stages.get("digests", {}), **(known or {})})

    def verdict(self, stage: Stage, stages: Sequence[Stage]) -> Verdict:
        """The state of a stage now, among all stages of the folder."""
        index = stages.index(stage)
        now = made_by(stage, stages[index + 1 :], self.digests)
        then = self._stages.get(stage.name)
        if then is None:
            return Verdict("new", "not started", now)
        if then.get("again"):
            return Verdict("again", "to be run again", now)
        changed = changes(then, now)
        if "seconds" not in then:
            hint = f"; changed since: {' and '.join(changed)}" if changed else ""
            return Verdict("started", f"started, not finished{hint}", now)
        if changed:
            return Verdict("changed", f"changed since it ran: {' and '.join(changed)}", now)
        if gone := list(_gone(then.get("outs", {}))):
            return Verdict("gone", f"finished, but {' and '.join(gone)} is gone", now)
        made = other_versions(then.get("made_with", {}), now["made_with"])
        return Verdict("finished", f"finished, {then['seconds']:.0f} s{', ' if made else ''}{made}", now)

    def is_whole(self, stage: Stage, verdict: Verdict) -> bool:
        """True if a stage that was only recorded as started has all its results, because `lnlit run` was killed before
        recording the end. Only model folders and block libraries show whether they are complete."""
        same = not changes(self._stages.get(stage.name, {}), verdict.made_by)
        return verdict.state == "started" and same and bool(stage.outs) and all(map(has_index, stage.outs))

    def note(self, stage: Stage, made_by: dict[str, Any], seconds: float | None) -> None:
        """Records that a stage was started without results, or that it has finished."""
        took: dict[str, Any] = {}
        if seconds is not None:
            took = {"seconds": round(seconds, 1), "outs": {out: _names(out) for out in stage.outs if _names(out)}}
            if not took["outs"] and stage.root is not None:
                took["outs"] = {stage.root: []}
        self._stages[stage.name] = {**made_by, **took}
        self._write()

    @property
    def page(self) -> Path:
        """The page that shows the stages."""
        return self.runs / f"{self.folder.resolve().name}.html"

    def seconds(self, stage: Stage) -> float | None:
        """How long a stage took, None if it has not finished."""
        return self._stages.get(stage.name, {}).get("seconds")

    def damaged(self, stage: Stage) -> list[str]:
        """The results of a finished stage of which only a part is left."""
        outs = self._stages.get(stage.name, {}).get("outs", {})
        return [out for out, names in outs.items() if expanded(out).exists() and list(_gone({out: names}))]

    def ask_again(self, stages: Sequence[Stage]) -> None:
        """Marks stages that were started or finished to be run again."""
        for stage in stages:
            if stage.name in self._stages:
                self._stages[stage.name] = {**self._stages[stage.name], "again": True}
        self._write()

    def _write(self) -> None:
        self._stages["digests"] = {**self._stages.get("digests", {}), **self.digests.used}
        write_json(self.file, self._stages)

    def holder(self) -> str | None:
        """A description of the process that holds the lock, or None."""
        file = self._lock_file()
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            return None if _taken(stream) else _told(_read_holder(file))

    @contextmanager
    def locked(self) -> Iterator[int]:
        """The file descriptor of the lock. Raises `UserError` naming the process that holds it; waits for a stage that
        is about to end because its `lnlit run` was killed."""
        file = self._lock_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            end = time.monotonic() + _PATIENCE_S
            while not _taken(stream):
                holder = _read_holder(file)
                if _is_alive(holder) or time.monotonic() > end:
                    raise UserError(
                        f"{self.folder}: is being run already, by {_told(holder)}. Wait for it, or stop it."
                    )
                time.sleep(0.05)
            stream.truncate(0)
            command = shlex.join(["lnlit", *sys.argv[1:]])
            about = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
            stream.write(json.dumps({**about, "since": datetime.now().isoformat(" ", "seconds")}).encode())
            stream.flush()
            yield stream.fileno()

    def _lock_file(self) -> Path:
        return self.file.with_suffix(".lock")


def has_index(out: str) -> bool:
    """True if there is a block library or a model folder. Each has a file that is written last or together with all
    others."""
    return any((expanded(out) / name).is_file() for name in COME_LAST)


def _names(out: str) -> list[str]:
    """The names in a result that is a folder, or the name of the file."""
    path = expanded(out)
    if path.is_dir():
        return [file.relative_to(path).as_posix() for file in listed(path, "**/*") if file.is_file()]
    return [path.name] if path.exists() else []


def _gone(outs: dict[str, list[str]]) -> Iterator[str]:
    """The names that existed when the stage had finished and no longer exist."""
    for out, names in outs.items():
        path = expanded(out)
        if not path.exists():
            yield out
        elif path.is_dir():
            yield from (f"{out}/{name}" for name in names if not (path / name).exists())


def _taken(stream: Any) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read_holder(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _told(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"


def _is_alive(holder: dict[str, Any]) -> bool:
    """True if the process that took the lock is running. A zombie is not."""
    if holder.get("host") != socket.gethostname():
        return bool(holder)
    status = Path(f"/proc/{holder['pid']}/stat")
    if Path("/proc/self/stat").is_file():
        try:
            return status.read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False
    try:
        os.kill(holder["pid"], 0)
    except OSError:
        return False
    return True

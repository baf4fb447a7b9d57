"""`lnlit eval MODEL ... --tasks NAME,NAME`: benchmarks of models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePath

from lnlit.cli.stage_commands import EVAL

#: Options that take several words with commas between them.
_LISTS = ("--tasks", "--thinking")

#: The source that reads a file of this suffix, if it holds no JSON lines.
_SOURCES = {".txt": "text", ".parquet": "parquet"}


def main(argv: list[str]) -> int:
    """Evaluate models; prints the table and the folder written."""
    return EVAL(list(_with_lists(argv)))


def _with_lists(argv: list[str]) -> Iterator[str]:
    """The arguments with `--tasks gsm8k,math500` as a list. A task that is read from a file of rows is
    `gsm8k=FILE.jsonl`, or from a `.txt` or `.parquet`. Values that are YAML lists or mappings stay as they are."""
    waiting = iter(argv)
    for word in waiting:
        option, equals, value = word.partition("=")
        if option not in _LISTS:
            yield word
            continue
        if not equals and (value := next(waiting, None)) is None:  # the parser tells that it is missing
            yield option
            continue
        if not value.lstrip().startswith(("[", "{")):
            items = [item.strip() for item in value.split(",") if item.strip()]
            value = json.dumps([_task(item) if option == "--tasks" else item for item in items])
        yield f"{option}={value}"


def _task(item: str) -> object:
    name, equals, file = item.partition("=")
    if not equals:
        return item
    source = _SOURCES.get(PurePath(file).suffix, "jsonl")
    return {"class_path": name, "init_args": {"source": {"class_path": source, "init_args": {"paths": file}}}}

"""BFCL's right answers in every form that calls are written in, and every way of making one of their parts wrong."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BFCL = Path(__file__).parents[3] / "shared/data/bfcl"
CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_multiple",
              "live_parallel", "live_parallel_multiple")  # fmt: skip
Row = dict[str, Any]
Calls = list[tuple[str, dict[str, Any]]]
ABSENT = object()


def files(categories: tuple[str, ...] = CATEGORIES) -> tuple[list[str], list[str]]:
    """The files of the questions and of the answers."""
    found = [next(BFCL.glob(f"{name}.jsonl*")) for name in categories]
    return list(map(str, found)), [str(BFCL / f"{name}.answers.jsonl") for name in categories]


def rows(categories: tuple[str, ...] = CATEGORIES) -> Iterator[Row]:
    """The questions with their answers, as `ground_truth`."""
    for question, answer in zip(*files(categories), strict=True):
        expected = {row["id"]: row["ground_truth"] for row in _read(answer)}
        for row in _read(question):
            yield {**row, "ground_truth": expected[row["id"]]}


def _read(file: str) -> list[Row]:
    with (gzip.open if file.endswith(".gz") else open)(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def right(row: Row, take: int = 0) -> Calls:
    """The row's calls, each argument with its value number `take`, or with the last one if it has fewer."""
    return [
        (name, {key: found for key, values in arguments.items() if (found := _one(values, take)) is not ABSENT})
        for call in row["ground_truth"]
        for name, arguments in call.items()
    ]


def _one(values: list[Any], take: int) -> Any:
    if not values:  # an empty list is meant
        return []
    if values == [""]:
        return ABSENT
    listed = [value for value in values if value != ""]
    return _plain(listed[min(take, len(listed) - 1)], take)


def _plain(value: Any, take: int) -> Any:
    if isinstance(value, dict):
        inner = {key: _one(each, take) if isinstance(each, list) else each for key, each in value.items()}
        return {key: each for key, each in inner.items() if each is not ABSENT}
    return [_plain(each, take) for each in value] if isinstance(value, list) else value


def forms(calls: Calls) -> dict[str, str]:
    """The calls as text, by the name of the form."""
    named = [{"name": name, "arguments": arguments} for name, arguments in calls]
    listed = json.dumps(named, ensure_ascii=False)
    python = ", ".join(
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})" for name, arguments in calls
    )
    return {
        "json": listed,
        "python": f"[{python}]",
        "decilm": f"<TOOLCALL>{listed}</TOOLCALL>",
        "llama_nemotron": f"<TOOLCALL>[{python}]</TOOLCALL>",
        "hermes": "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in named),
        "mistral": f"[TOOL_CALLS] {listed}",
        "llama": "; ".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in calls),
        "fenced": f"I call:\n```python\n[{python}]\n```",
        "openai": json.dumps(
            [{"type": "function", "function": {"name": n, "arguments": json.dumps(a)}} for n, a in calls]
        ),
        "other_order": json.dumps(named[::-1]),
    }


def wrong(row: Row) -> Iterator[tuple[str, Calls]]:
    """The row's calls with one part made wrong, each with what was done."""
    calls = right(row)
    yield "no call", []
    yield "one call too few", calls[1:]
    yield "one call too many", [*calls, calls[0]]
    for at, (name, arguments) in enumerate(calls):
        listed = dict(row["ground_truth"][at][name])

        def changed(new: dict[str, Any], at: int = at, name: str = name) -> Calls:
            return [*calls[:at], (name, new), *calls[at + 1 :]]

        yield "another function", [*calls[:at], (f"{name}_", arguments), *calls[at + 1 :]]
        yield "an unknown argument", changed({**arguments, "unknown_argument": 1})
        for key, value in arguments.items():
            others = {other: each for other, each in arguments.items() if other != key}
            if "" not in listed[key]:
                yield f"without {key}", changed(others)
            yield f"{key} under another name", changed({**others, f"{key}_x": value})
            for bad in _bad(value, listed[key]):
                yield f"{key} = {bad!r:.60}", changed({**arguments, key: bad})


def _bad(value: Any, listed: list[Any]) -> Iterator[Any]:
    """Values that are none of those listed: others, those of another type, and those with something inside changed."""
    yield from ("no such value", 987654321, 0.123, {"no": "such"}, ["no such value"])
    if isinstance(value, bool):
        yield str(value).lower()
        if not any(each is (not value) for each in listed):
            yield not value
    elif isinstance(value, int | float):
        yield str(value)
    elif isinstance(value, list):
        yield [*value, "no such value"]
        if value:
            yield value[:-1] if value[:-1] not in listed else "no such value"
    elif isinstance(value, dict):
        yield {**value, "unknown_key": 1}
        for key in value:
            other = copy.deepcopy(value)
            other[key] = "no such value"
            yield other

"""Writes a rollout's samples to Parquet files and reads them: prompts, completions and rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.errors import UserError
from lnlit.files import replaced_file
from lnlit.interfaces import RewardResult, Rollout
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import Sample
from lnlit.thinking import mode

if TYPE_CHECKING:
    import pyarrow

_REWARD, _ERROR = "rewards/", "/error"


def write_table(file: Path, stage: str, step: int, samples: Sequence[Sample]) -> None:
    """Writes `file` atomically, with a row per sample, in order. Equal samples give equal bytes.

    Columns: `prompt` holds the messages and `row` the rest of the prompt's row, both as JSON. `logprobs` are the
    engine's log-probs of `token_ids`, in nats. `reward` is the weighted sum of the parts `rewards/<name>`; both are
    null without a verdict, for the reason in `rewards/<name>/error`. `learned` is true if the tokens are learned from.
    `group` is the number of the prompt in the file. Log-probs of the policy and of the reference are not kept.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    types = _types(pyarrow)
    columns = {name: [] for name in types}
    for name in samples[0].rewards:
        types |= {f"{_REWARD}{name}": pyarrow.float64(), f"{_REWARD}{name}{_ERROR}": pyarrow.string()}
        columns |= {f"{_REWARD}{name}": [], f"{_REWARD}{name}{_ERROR}": []}
    group, previous = -1, None
    for sample in samples:
        group, previous = group + (sample.prompt is not previous), sample.prompt
        for name, value in _row(stage, step, group, sample).items():
            columns[name].append(value)
    arrays = {name: pyarrow.array(values, types[name]) for name, values in columns.items()}
    with replaced_file(file) as scratch:
        parquet.write_table(pyarrow.table(arrays), scratch, compression="zstd")


def read_table(file: Path) -> list[Sample]:
    """The samples in a file that `write_table` wrote. Raises `UserError` for any other file."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        rows = parquet.read_table(file).to_pylist()
        return list(_samples(rows))
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as samples of a rollout: {error}") from error


def read_prompts(file: Path) -> list[str]:
    """The `prompt_key`s of the samples in a file."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return list(dict.fromkeys(parquet.read_table(file, columns=["prompt"])["prompt"].to_pylist()))
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{file}: cannot be read as samples of a rollout: {error}") from error


def prompt_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """The key that identifies equal prompts: their messages as JSON."""
    return _json(list(messages))


def _types(arrow: Any) -> dict[str, pyarrow.DataType]:
    integers = arrow.list_(arrow.int32())
    return {
        "stage": arrow.string(),
        "step": arrow.int64(),
        "group": arrow.int32(),
        "prompt": arrow.string(),
        "completion": arrow.string(),
        "reward": arrow.float64(),
        "advantage": arrow.float64(),
        "learned": arrow.bool_(),
        "finish_reason": arrow.string(),
        "thinking": arrow.string(),
        "task": arrow.string(),
        "pass_rate": arrow.float64(),
        "weight_version": arrow.int64(),
        "seed": arrow.int64(),
        "prompt_ids": integers,
        "token_ids": integers,
        "logprobs": arrow.list_(arrow.float64()),
        "row": arrow.string(),
    }


def _row(stage: str, step: int, group: int, sample: Sample) -> dict[str, Any]:
    prompt, rollout = sample.prompt, sample.rollout
    task, rate = prompt.row.get("task"), prompt.row.get("pass_rate")
    own = {"task": isinstance(task, str), "pass_rate": isinstance(rate, int | float) and not isinstance(rate, bool)}
    values = {
        "stage": stage,
        "step": step,
        "group": group,
        "prompt": prompt_key(prompt.messages),
        "completion": _text(sample.text),
        "reward": None if math.isnan(sample.reward) else sample.reward,
        "advantage": sample.advantage,
        "learned": sample.learned,
        "finish_reason": rollout.finish_reason,
        "thinking": mode(prompt.messages),
        "task": None if task is None else _text(str(task)),
        "pass_rate": rate if own["pass_rate"] else None,
        "weight_version": rollout.weight_version,
        "seed": rollout.seed,
        "prompt_ids": rollout.prompt_ids,
        "token_ids": rollout.token_ids,
        "logprobs": rollout.logprobs,
        "row": _json({key: value for key, value in prompt.row.items() if not own.get(key)}),
    }
    for name, result in sample.rewards.items():
        values[f"{_REWARD}{name}"] = result.value
        values[f"{_REWARD}{name}{_ERROR}"] = None if result.error is None else _text(result.error)
    return values


def _samples(rows: Iterable[Mapping[str, Any]]) -> Iterable[Sample]:
    group, prompt = -1, None
    for row in rows:
        if prompt is None or row["group"] != group:
            group, prompt = row["group"], _prompt(row)
        names = [
            key.removeprefix(_REWARD).removesuffix(_ERROR)
            for key in row
            if key.startswith(_REWARD) and key.endswith(_ERROR)
        ]
        yield Sample(
            prompt,
            Rollout(
                prompt.token_ids,
                tuple(row["token_ids"]),
                tuple(row["logprobs"]),
                row["finish_reason"],
                row["weight_version"],
                row["seed"],
            ),
            row["completion"],
            {name: RewardResult(row[f"{_REWARD}{name}"], row[f"{_REWARD}{name}{_ERROR}"]) for name in names},
            math.nan if row["reward"] is None else row["reward"],
            row["advantage"],
            row["learned"],
        )


def _prompt(row: Mapping[str, Any]) -> Prompt:
    columns = {name: row[name] for name in ("task", "pass_rate") if row[name] is not None}
    return Prompt(json.loads(row["prompt"]), tuple(row["prompt_ids"]), columns | json.loads(row["row"]))


def _json(value: Any) -> str:
    """A source's value as strict JSON: numbers that are not finite become null, and other objects become text."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if "NaN" in text or "Infinity" in text:
        text = json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)
    return _text(text)


def _text(text: str) -> str:
    """The text as valid Unicode: unpaired surrogates, which JSON rows may hold, are escaped."""
    return text.encode(errors="backslashreplace").decode()

"""`lnlit rollout annotate`: how often a model solves each prompt (Llama-Nemotron section 5.1)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.folder import hf_config
from lnlit.checkpoint.formats import open_checkpoint, read_spec, resolve
from lnlit.data.chat import ChatEncoder
from lnlit.data.sources import where
from lnlit.data.tokenizer import load_tokenizer
from lnlit.errors import UserError
from lnlit.files import expanded
from lnlit.interfaces import (
    PolicyWeights,
    Reward,
    RewardRequest,
    RewardResult,
    Rollout,
    RolloutEngine,
    RolloutRequest,
    RolloutSampling,
    Source,
)
from lnlit.journal import Journal
from lnlit.progress import track
from lnlit.rewards.pool import RewardPool, why_not
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import request_seed
from lnlit.thinking import Thinking, on_or_off

_REWARD = "reward"


def annotate(
    model: str,
    prompts: Source,
    reward: Reward,
    out: str,
    engine: RolloutEngine | None = None,
    samples: int = 8,
    max_new_tokens: int = 1024,
    temperature: float = 1.0,
    thinking: Thinking | bool | None = None,
    pass_at: float = 1.0,
    seed: int = 0,
    workers: int = 2,
    prompts_per_round: int = 64,
) -> Path:
    """Write the prompts' rows with the share of completions that pass, for `difficulty` and `GaussianCurriculum`.

    Each row gets `pass_rate`, null where nothing could be judged; `samples`, how many were judged; `mean_tokens` of a
    completion; `truncated`, the share of completions cut off. Interrupted, the same command goes on where it stopped,
    with the result that it would have had.

    Args:
        model: Model folder with a tokenizer and a chat template.
        prompts: Rows of any form that chat rows have; their answers are left out.
        reward: What completions are judged by.
        out: The JSONL file to write.
        engine: Generates the completions; lnlit's own decoder when not given.
        samples: Completions of each prompt. The paper takes 8.
        max_new_tokens: Length limit of a completion.
        temperature: Of sampling.
        thinking: Toggle for rows that have none.
        pass_at: The lowest reward that counts as solved.
        seed: Other seeds, other completions.
        workers: Processes that judge.
        prompts_per_round: Prompts between two savings. An engine works best on many.
    """
    numbers = {"samples": samples, "max_new_tokens": max_new_tokens, "prompts_per_round": prompts_per_round}
    for name, value in {**numbers, "temperature": temperature}.items():
        if not value > 0:
            raise UserError(f"annotate.{name}: expected a positive number, got {value}")
    path, engine = resolve(model), engine or NativeEngine()
    encoder = ChatEncoder(load_tokenizer(path), None if thinking is None else on_or_off(thinking))
    found = _read(prompts, encoder, read_spec(path).context_length - max_new_tokens, reward)
    settings = {"model": fingerprint(model), "prompts": _digest(found), "samples": samples, "pass_at": pass_at}
    settings |= {"engine": _settings(engine), "reward": _settings(reward)}
    settings |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    sampling = RolloutSampling(max_new_tokens, temperature, tuple(encoder.end_ids()))
    file, pool = expanded(out), RewardPool({_REWARD: reward}, workers)
    with Journal.beside(file, settings, "annotated rows") as work, closing(engine), closing(pool):
        _Annotator(encoder, engine, pool, sampling, samples, pass_at, seed).run(work, found, path, prompts_per_round)
        lines = summary([row for _, row in work.numbered()], samples, pool.outcomes)
        work.finish(file)
    for line in lines:
        print(f"annotate: {line}", file=sys.stderr)
    return file


@dataclass(frozen=True)
class _Annotator:
    encoder: ChatEncoder
    engine: RolloutEngine
    pool: RewardPool
    sampling: RolloutSampling
    samples: int
    pass_at: float
    seed: int

    def run(self, work: Journal, prompts: Sequence[Prompt], model: Path, prompts_per_round: int) -> None:
        """Append what is missing in `work`, round by round."""
        if len(work) < len(prompts):
            work.keep(len(work) // prompts_per_round * prompts_per_round)  # a round is batched as it was before
            spec, weights = read_spec(model), open_checkpoint(model).weights(model)
            self.engine.load_weights(PolicyWeights(spec, hf_config(spec), weights, version=0))
        starts = range(len(work), len(prompts), prompts_per_round)
        rounds = [(first, prompts[first : first + prompts_per_round]) for first in starts]
        done, total = len(work), len(prompts)
        for first, part in track(rounds, "annotate", "prompt", total=total, done=done, size=lambda one: len(one[1])):
            work.append(*self.rows(first, part, is_rest=first > 0 and len(part) < prompts_per_round))

    def rows(self, first: int, prompts: Sequence[Prompt], is_rest: bool = False) -> list[dict[str, Any]]:
        """The annotated rows of `prompts`, of which the first has the number `first` among all. That none can be judged
        is a fault of the reward, unless they are but the rest after whole rounds.
        """
        owners = [prompt for prompt in prompts for _ in range(self.samples)]
        places = (divmod(at, self.samples) for at in range(len(owners)))
        seeds = [request_seed(self.seed, 0, first + prompt, sample) for prompt, sample in places]
        requests = [RolloutRequest(owner.token_ids, seed) for owner, seed in zip(owners, seeds, strict=True)]
        rollouts = self.engine.generate(requests, self.sampling)
        texts = [self.encoder.completion(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]
        judged = self.pool.score(
            [
                RewardRequest(owner.messages, text, rollout.finish_reason == "length", owner.row)
                for owner, text, rollout in zip(owners, texts, rollouts, strict=True)
            ]
        )
        results = [rewards[_REWARD] for rewards in judged]
        if len(prompts) > 1 and not is_rest and all(result.value is None for result in results):
            raise UserError(
                f"reward: none of {len(results)} completions could be judged; the first: {results[0].error}. What was "
                "annotated before is kept."
            )
        groups = [slice(at, at + self.samples) for at in range(0, len(owners), self.samples)]
        return [
            self._row(prompt, rollouts[group], results[group]) for prompt, group in zip(prompts, groups, strict=True)
        ]

    def _row(self, prompt: Prompt, rollouts: Sequence[Rollout], results: Sequence[RewardResult]) -> dict[str, Any]:
        values = [result.value for result in results if result.value is not None]
        return {
            **prompt.row,
            "pass_rate": fmean(value >= self.pass_at for value in values) if values else None,
            "samples": len(values),
            "mean_tokens": fmean(len(rollout.token_ids) for rollout in rollouts),
            "truncated": fmean(rollout.finish_reason == "length" for rollout in rollouts),
        }


def summary(rows: Sequence[Mapping[str, Any]], samples: int, outcomes: Mapping[str, int]) -> list[str]:
    """The annotated rows in a few lines, with a histogram. `outcomes` counts why samples could not be judged."""
    rates = [row["pass_rate"] for row in rows if row["pass_rate"] is not None]
    missing = samples * len(rows) - sum(row["samples"] for row in rows)
    truncated = fmean(row["truncated"] for row in rows)
    mean = f"mean pass rate {fmean(rates):.3f}" if rates else "none judged"
    lines = [f"{len(rows)} prompts, {samples} completions each: {mean}, {truncated:.1%} truncated"]
    if missing:
        why = ", ".join(f"{kind.rpartition('/')[2]} {count}" for kind, count in outcomes.items())
        why = f" (in this run: {why})" if why else ""
        lines.append(f"{missing} completions could not be judged{why}, nor {len(rows) - len(rates)} prompts at all")
    levels = min(samples, 10)
    counts = Counter(int(rate * levels + 0.5) for rate in rates)
    widest = max(counts.values(), default=1)
    for level in range(levels + 1):
        bar = "#" * round(40 * counts[level] / widest)
        lines.append(f"pass rate {f'{level}/{levels}':>5} {counts[level]:>7}  {bar}".rstrip())
    return lines


def _read(source: Source, encoder: ChatEncoder, room: int, reward: Reward) -> list[Prompt]:
    """Every prompt, as tokens. Raises `UserError` for one that leaves a completion no room, and for rows that JSON
    cannot hold.
    """
    found: list[Prompt] = []
    for index, row in enumerate(source.rows()):
        try:
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
            messages, tokens = encoder.prompt(row)
            if not messages:
                raise UserError("there is nothing to answer: no turn but the assistant's")
        except (UserError, TypeError, ValueError) as error:
            raise UserError(f"{where(source, index)}: {error}") from error
        if len(tokens) > room:
            raise UserError(
                f"{where(source, index)}: a prompt of {len(tokens)} tokens; the model's context has room for "
                f"{max(room, 0)} in front of max_new_tokens. Lower max_new_tokens, or leave the row out."
            )
        found.append(Prompt(messages, tuple(tokens), row))
    if not found:
        raise UserError(f"prompts: {source} has no rows")
    _name_unjudged(source, found, reward)
    return found


def _name_unjudged(source: Source, prompts: Sequence[Prompt], reward: Reward) -> None:
    """Before anything is sampled: what rows will have no pass rate, as far as the reward can tell."""
    if unjudged := {at: why for at, prompt in enumerate(prompts) if (why := why_not([reward], prompt.row))}:
        named = "; ".join(f"{where(source, at)}: {why}" for at, why in list(unjudged.items())[:3])
        said = f"annotate: no completion can be judged by {len(unjudged)} of {len(prompts)} rows: {named}"
        print(said, file=sys.stderr)


def _digest(prompts: Sequence[Prompt]) -> str:
    """A fingerprint of what the model reads and of what the reward may."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.token_ids, prompt.row], sort_keys=True).encode())
    return digest.hexdigest()


def _settings(part: object) -> dict[str, Any]:
    """Class and settings of a part, as far as they are plain. What else it holds may differ from process to process."""
    public = {name: _plain(value) for name, value in vars(part).items() if not name.startswith("_")}
    plain = {name: value for name, value in public.items() if value is not _NOT_PLAIN}
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", **plain}


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """As JSON holds it, or `_NOT_PLAIN`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return _NOT_PLAIN

"""`lnlit rollout annotate`: how often a model solves each prompt (Llama-Nemotron section 5.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from lnlit.errors import check_positive
from lnlit.files import expanded
from lnlit.interfaces import Reward, RolloutEngine, Source
from lnlit.journal import Journal
from lnlit.progress import say
from lnlit.sampling.model import SampledModel, settings_of
from lnlit.sampling.prompt import digest
from lnlit.sampling.sample import Judged
from lnlit.sampling.sampler import Phases, Sampler, Weighted, asked, sample_into
from lnlit.sampling.settings import Sampling
from lnlit.stages.prompts import read_all
from lnlit.thinking import Thinking, on_or_off

_REWARD = "reward"


def annotate(
    model: str | None,
    prompts: Source,
    reward: Reward,
    out: str,
    engine: RolloutEngine | None = None,
    sampling: Sampling = Sampling(),
    thinking: Thinking | bool | None = None,
    pass_threshold: float = 1.0,
    reward_workers: int = 2,
    prompts_per_round: int = 64,
) -> Path:
    """Write the prompts' rows with the share of completions that pass, for `difficulty` and `GaussianCurriculum`.

    Each row gets `pass_rate`, null where nothing could be judged; `samples`, how many were judged; `mean_tokens` of a
    completion; `truncated`, the share of completions cut off. Interrupted, the same command goes on where it stopped,
    with the result that it would have had.

    Args:
        model: Model folder with a tokenizer and a chat template. Null for an engine with a model of its own.
        prompts: Rows of any form that chat rows have; their answers are left out.
        reward: The reward that judges completions.
        out: The JSONL file to write.
        engine: Generates the completions; lnlit's own decoder when not given.
        sampling: How completions are sampled. The paper takes 8 of each prompt.
        thinking: Toggle for rows that have none.
        pass_threshold: The lowest reward that counts as solved.
        reward_workers: The number of processes that judge.
        prompts_per_round: The number of prompts between two writes to disk. Engines work best on many prompts at once.
    """
    check_positive("annotate", prompts_per_round=prompts_per_round)
    sampled, samples = SampledModel(model, engine), sampling.samples_per_prompt
    mode, advice = None if thinking is None else on_or_off(thinking), "Leave the row out, or lower max_new_tokens."
    found = read_all(prompts, sampled, [mode], sampling.max_new_tokens, [reward], "annotate", advice)
    encoder = sampled.encoder(mode)
    settings = {
        **sampled.identity,
        "prompts": digest(found),
        "reward": settings_of(reward),
        "pass_threshold": pass_threshold,
        "sampling": asdict(sampling),
    }
    drawing = sampling.rollout(encoder.end_ids())
    sampler = Sampler(sampled.engine, [Weighted(reward, name=_REWARD)], reward_workers, encoder, drawing, Phases())
    file = expanded(out)
    with Journal.beside(file, settings, "annotated rows", b'"pass_rate"') as work, closing(sampler):
        if len(work) < len(found):
            sampled.load(sampler)
        told = partial(_row, pass_threshold=pass_threshold)
        sample_into(work, sampler, asked(found, samples, sampling.seed, rollout=0), prompts_per_round, told, "annotate")
        lines = summary([row for _, row in work.numbered()], samples, sampler.counts())
        work.finish(file)
    for line in lines:
        say(f"annotate: {line}")
    return file


def _row(samples: Sequence[Judged], pass_threshold: float) -> dict[str, Any]:
    """The prompt's row with the statistics of its completions."""
    verdicts = [sample.rewards[_REWARD].value for sample in samples]
    values = [value for value in verdicts if value is not None]
    return {
        **samples[0].prompt.row,
        "pass_rate": fmean(value >= pass_threshold for value in values) if values else None,
        "samples": len(values),
        "mean_tokens": fmean(sample.rollout.length for sample in samples),
        "truncated": fmean(sample.truncated for sample in samples),
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

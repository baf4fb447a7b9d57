"""`lnlit rollout generate`: prompts become rows with a model's completions (Llama-Nemotron section 4)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from lnlit.data.rows import answers, beside
from lnlit.data.sources import FileSource
from lnlit.errors import UserError, check_positive
from lnlit.files import check_output, expanded, replaced_file
from lnlit.interfaces import Reward, RolloutEngine, Source
from lnlit.journal import Journal, line
from lnlit.progress import say, track
from lnlit.sampling.model import SampledModel, settings_of
from lnlit.sampling.prompt import digest
from lnlit.sampling.sample import Judged
from lnlit.sampling.sampler import Asked, Phases, Sampler, Weighted, asked, sample_into
from lnlit.sampling.settings import Sampling
from lnlit.stages.keep import Keep, Kept, kept
from lnlit.stages.prompts import read_all
from lnlit.thinking import Thinking, mode, on_or_off

_ADVICE = "Without strict, such rows are left out and counted."
#: Keys of which a prompt's row has a list, with one item for each completion.
_LISTS = ("completions", "rewards", "reward_parts", "finish_reasons", "tokens")


@dataclass(frozen=True)
class Rounds:
    """How the work is divided. It does not change the result, but for what rounding does to batches in half precision.

    Args:
        prompts: The number of prompts between two writes to disk. Engines work best on many prompts at once.
        reward_workers: The number of processes that judge.
    """

    prompts: int = 64
    reward_workers: int = 2

    def __post_init__(self) -> None:
        check_positive("rounds", **vars(self))


def generate(
    model: str | None,
    prompts: Source,
    out: str,
    rewards: list[Weighted] | None = None,
    engine: RolloutEngine | None = None,
    sampling: Sampling = Sampling(),
    thinking: Thinking | bool | list[Thinking | bool] | None = None,
    keep: Kept | Keep = "all",
    strict: bool = False,
    rounds: Rounds = Rounds(),
) -> Path:
    """Write rows with a model's completions of prompts, to learn from.

    A row has the prompt's `messages`, its other keys, `pass_rate` (the share of right completions), and under
    `generated` what it was made by: digests of model and tokenizer, engine, sampling, seeds. What the prompt's row had
    as its answer is under `replaced`. All completions stay in OUT.completions: interrupted, the same command goes on
    where it stopped, with the result that it would have had, and another `keep` generates nothing again. Completions
    that an engine could not give, as when an endpoint was down, are asked for again by the same command.

    Args:
        model: Model folder with a tokenizer and a chat template. Null for an engine with a model of its own.
        prompts: Rows of any form that chat rows have; their answers are left out.
        out: The JSONL file to write.
        rewards: The rewards that judge completions, with their weights in the sum. Null judges nothing.
        engine: Generates the completions; lnlit's own decoder when not given.
        sampling: How completions are sampled.
        thinking: Toggle for rows that have none. A list, [on, off], answers each row in both modes.
        keep: Which completions become rows: all, best, right, pairs or majority.
        strict: Stop at the first row that cannot be read or answered and at the first missing completion. By default
            they are left out and counted.
        rounds: How the work is divided.
    """
    keep = Keep(keep) if isinstance(keep, str) else keep
    weighted = [Weighted(reward) if isinstance(reward, Reward) else reward for reward in rewards or ()]
    file = _checked(expanded(out), prompts, keep, weighted)
    sampled, modes = SampledModel(model, engine), _modes(thinking)
    judges = [each.reward for each in weighted]
    found = read_all(prompts, sampled, modes, sampling.max_new_tokens, judges, "generate", _ADVICE, strict)
    made_by = {**sampled.identity, "sampling": asdict(sampling)}
    judged_by = [vars(each) | {"reward": settings_of(each.reward)} for each in weighted]
    encoder = sampled.encoder(modes[0])
    parts = (sampled.engine, weighted, rounds.reward_workers, encoder, sampling.rollout(encoder.end_ids()), Phases())
    header = made_by | {"prompts": digest(found), "rewards": judged_by, "end_ids": encoder.end_ids()}
    place = file.with_name(f"{file.name}.completions")
    with Journal(place, header, "completions") as work, closing(Sampler(*parts)) as sampler:
        drawn = asked(found, sampling.samples_per_prompt, sampling.seed, rollout=0)
        if len(work) < len(found):  # an interrupted round is repeated as a whole
            work.keep(len(work) // rounds.prompts * rounds.prompts)
        lacking = _lacking(work, drawn)
        if lacking or len(work) < len(found):
            sampled.load(sampler)
        row = partial(_row, made_by=made_by, strict=strict)
        sample_into(work, sampler, drawn, rounds.prompts, row, "generate")
        _ask_again(work, sampler, lacking, rounds.prompts, row)
        for told in _write(file, work, len(found), keep):
            say(f"generate: {told}")
    return file


def _checked(out: Path, prompts: Source, keep: Keep, rewards: Sequence[Weighted]) -> Path:
    """`out`, if it can be written and the rewards tell completions apart."""
    if not rewards and keep.what in ("best", "right", "pairs"):
        raise UserError(f"generate.keep: {keep.what} needs a reward to tell completions apart; got no rewards.")
    inputs = [str(path) for path in prompts.files] if isinstance(prompts, FileSource) else []
    return check_output(out, inputs=inputs, mark=b'"generated"')


def _modes(thinking: Thinking | bool | list[Thinking | bool] | None) -> list[Thinking | None]:
    if thinking is None:
        return [None]
    if thinking == []:
        raise UserError("generate.thinking: the list is empty; expected on, off, [on, off] or null")
    return [on_or_off(each) for each in (thinking if isinstance(thinking, list) else [thinking])]


def _row(samples: Sequence[Judged], made_by: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """A prompt's row with all of its completions, as the journal keeps it."""
    prompt = samples[0].prompt
    missing = [str(sample.rollout.error) for sample in samples if sample.rollout.error]
    if missing and strict:
        raise UserError(f"engine: a completion is missing: {missing[0]}. Without strict, it is left out and counted.")
    there = [sample for sample in samples if not sample.rollout.error]
    found: dict[str, Any] = {
        "completions": [sample.text for sample in there],
        "finish_reasons": [sample.rollout.finish_reason for sample in there],
        "tokens": [_tokens(sample) for sample in there],
    }
    if names := list(samples[0].rewards):
        found["rewards"] = [None if math.isnan(sample.reward) else sample.reward for sample in there]
        if len(names) > 1:
            found["reward_parts"] = {name: [sample.rewards[name].value for sample in there] for name in names}
    generated = {
        **made_by,
        "thinking": mode(prompt.messages),
        "prompt": digest([prompt])[:16],
        "seeds": [sample.rollout.seed for sample in there],
    }
    if missing:
        generated["missing"] = missing
    if unjudged := [str(each.error) for sample in there for each in sample.rewards.values() if each.value is None]:
        generated["unjudged"] = unjudged
    rest, ours = beside(prompt.row), {*_LISTS, *_OURS}
    replaced = answers(prompt.row) | {key: value for key, value in rest.items() if key in ours and value is not None}
    found |= {"replaced": replaced} if replaced else {}
    return {
        "messages": list(prompt.messages),
        **{key: value for key, value in rest.items() if key not in ours},
        **found,
        "generated": generated,
    }


#: Keys of rows that this stage writes, beside lists.
_OURS = ("pass_rate", "reward", "finish_reason", "generated", "replaced", "votes")


def _tokens(sample: Judged) -> int | None:
    """The number of tokens, or None if the engine did not count them."""
    rollout = sample.rollout
    return rollout.counted if rollout.text is not None else rollout.length


def _lacking(work: Journal, drawn: Sequence[Asked]) -> dict[int, Asked]:
    """The completions that an earlier run did not get, as when an endpoint was down, by the number of their prompt."""
    lacking: dict[int, Asked] = {}
    for number, row in _numbered(work, len(drawn)):
        there = row["generated"]["seeds"]
        lacking.pop(number, None)
        if seeds := [seed for seed in drawn[number].seeds if seed not in there]:
            lacking[number] = Asked(drawn[number].prompt, seeds)
    return lacking


def _ask_again(
    work: Journal,
    sampler: Sampler,
    lacking: Mapping[int, Asked],
    prompts_per_round: int,
    row: Callable[[Sequence[Judged]], dict[str, Any]],
) -> None:
    """Asks for completions that an earlier run did not get. What comes is appended, with the number of its prompt."""
    numbers = list(lacking)
    rounds = [numbers[first : first + prompts_per_round] for first in range(0, len(numbers), prompts_per_round)]
    for part in track(rounds, "generate again", "prompt", total=len(numbers), size=len):
        groups = sampler.draw([lacking[number] for number in part])
        work.append(*({_AGAIN: number, **row(group)} for number, group in zip(part, groups, strict=True)))


#: The key of an entry that adds completions to an earlier one: the number of its prompt.
_AGAIN = "again"


def _numbered(work: Journal, prompts: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(the number of its prompt, row) of each entry, first of all `prompts` and then those with completions that were
    asked for again, which hold what was there before."""
    before: dict[int, dict[str, Any]] = {}
    for number, (_, row) in enumerate(work.numbered()):
        if number < prompts:
            if row["generated"].get("missing"):
                before[number] = row
            yield number, row
        else:
            place = row.pop(_AGAIN)
            before[place] = _together(before[place], row)
            yield place, before[place]


def _together(row: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt's row with the completions of another, which were asked for later: lists grow, at any depth. What is
    missing now is what the other one lacks."""
    found = {**row, **{name: row[name] + more[name] for name in _LISTS if isinstance(row.get(name), list)}}
    if parts := row.get("reward_parts"):
        found["reward_parts"] = {name: values + more["reward_parts"][name] for name, values in parts.items()}
    before, after = row["generated"], more["generated"]
    unjudged = before.get("unjudged", []) + after.get("unjudged", [])
    found["generated"] = {
        **after,
        "seeds": before["seeds"] + after["seeds"],
        **({"unjudged": unjudged} if unjudged else {}),
    }
    return found


def _write(file: Path, work: Journal, prompts: int, keep: Keep) -> Iterator[str]:
    """Writes what is kept of the completions, and tells about all of them in a few lines."""
    again = {number: row for at, (number, row) in enumerate(_numbered(work, prompts)) if at >= prompts}
    why: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    rates: list[float] = []
    with replaced_file(file) as scratch, scratch.open("wb") as stream:
        for number, (_, first) in enumerate(islice(work.numbered(), prompts)):
            row: Any = again.get(number, first)
            rewards = [reward for reward in row.get("rewards", ()) if reward is not None]
            if "rewards" in row:
                row["pass_rate"] = fmean(reward >= keep.pass_threshold for reward in rewards) if rewards else None
                rates += [row["pass_rate"]] if rewards else []
                counts["unjudged"] += len(row["rewards"]) - len(rewards)
            counts["prompts"] += 1
            counts["completions"] += len(row["completions"])
            counts["truncated"] += row["finish_reasons"].count("length")
            counts["tokens"] += sum(count or 0 for count in row["tokens"])
            missing.update(str(error).partition(":")[0] for error in row["generated"].get("missing", ()))
            rows, reason = kept(row, keep)
            why.update([reason] if reason else [])
            counts["rows"] += len(rows)
            counts["equal"] += sum(each["generated"].get("times", 1) - 1 for each in rows)
            stream.writelines(map(line, rows))
    told = f"{counts['prompts']} prompts, {counts['completions']} completions of {counts['tokens']} tokens"
    told += f", {counts['truncated']} truncated"
    if rates:
        told += f"; mean pass rate {fmean(rates):.3f}"
    yield told
    if counts["unjudged"]:
        yield f"{counts['unjudged']} completions could not be judged"
    if missing:
        yield f"{missing.total()} completions missing: {_counted(missing)}"
    equal = f", {counts['equal']} more completions equal to one of them" if counts["equal"] else ""
    yield f"kept ({keep.what}): {counts['rows']} rows in {file}{equal}"
    if why:
        yield f"{why.total()} prompts without a row: {_counted(why)}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())

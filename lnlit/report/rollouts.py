"""The page of a run's rollouts: whether the policy is learning, from what, and how its answers change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean

from lnlit.errors import UserError
from lnlit.files import write_file
from lnlit.report.charts import Line, Points, line_chart, stacked_bars
from lnlit.report.pages import Table, render
from lnlit.report.picture import Picture
from lnlit.report.side_by_side import Asked, Side
from lnlit.report.theme import LIGHT, percent, plain
from lnlit.sampling.history import Entry, History
from lnlit.sampling.sample import Sample
from lnlit.sampling.table import prompt_key

#: Prompts that are shown with their answers.
_PROMPTS = 4
#: The phases of a rollout, in order.
_VALIDATION = "validation"
_PHASES = ("sync", "generate", "reward", "score", "train", _VALIDATION)
_KINDS = {"pass_rate": "Reward by difficulty", "thinking": "Reward by thinking mode", "task": "Reward by task"}
#: (heading, pictures, note).
Section = tuple[str, list[Picture], str]


def write_page(file: Path, history: History) -> None:
    """Writes the page atomically."""
    text = page(history)
    write_file(file, text)


def page(history: History) -> str:
    """The complete HTML page. Equal folders give equal pages. Raises `UserError` if there is nothing to show."""
    train, val = history.entries("train"), history.entries("val")
    if not train and not val:
        raise UserError(
            f"{history.folder}: there are no rollouts in it. The callback `RolloutLog` of a run with rollouts writes "
            "them, into the folder `rollouts` of its trainer.default_root_dir."
        )
    last = max(entry.step for entry in (*train, *val))
    drawn = _count(sum(entry.samples for entry in train), "sample")
    steps = history.steps("train")
    note, same = _over_time(history) if history.steps("val") else _repeated(history)
    return render(
        "rollouts.html.j2",
        title="Rollouts",
        lead=f"{_count(len(train), 'rollout')} of {drawn} in all and {_count(len(val), 'validation')}, "
        f"to step {last:,}",
        numbers=_tiles(train, val),
        same=same,
        same_note=note,
        sections=[section for section in sections(train, val) if section[1]],
        latest=_latest(history.samples("train", steps[-1])) if steps else (),
        latest_step=steps[-1] if steps else 0,
        all_numbers=_numbers(train, val),
    )


# numbers


def _tiles(train: Sequence[Entry], val: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    if held_out := _points(val, "reward"):
        first, last = held_out[0], held_out[-1]
        yield f"{plain(first[1])} → {plain(last[1])}", f"held-out reward, step {first[0]:,.0f} and {last[0]:,.0f}"
    tenth = max(len(train) // 10, 1)
    early, late = train[:tenth], train[-tenth:]
    which = "first and latest rollout" if tenth == 1 else f"first and latest {tenth} rollouts"
    for name, said, number in (
        ("reward", "training reward", plain),
        ("completions/mean_length", "tokens of a completion", plain),
        ("completions/clipped_ratio", "completions cut off", percent),
        ("frac_reward_zero_std", "prompts that teach nothing", percent),
    ):
        before, after = ([y for _, y in _points(entries, name)] for entries in (early, late))
        if before and after:
            yield f"{number(fmean(before))} → {number(fmean(after))}", f"{said}, {which}"


def sections(train: Sequence[Entry], val: Sequence[Entry]) -> Iterator[Section]:
    """Yields (title, pictures, note) of each section with charts, in the order of the page. A section without data has
    no pictures."""

    def of(where: str, name: str, label: str = "", dashed: bool = False) -> Line:
        is_val = where == "held out"
        return Line(label or where, _points(val if is_val else train, name), dots=is_val, dashed=dashed)

    names = [name for name in _named(train or val, "rewards/") if name.endswith("/mean")]
    parts = names if len(names) > 1 else []  # one part is the reward, but for its weight
    dashed = [of("training", name, name.split("/", 1)[1].removesuffix("/mean"), True) for name in parts]
    nothing = [of("training", "frac_reward_zero_std", "prompts whose samples are all equally good")]
    unjudged = of("training", "rewards/unscorable", "samples that could not be judged")
    nothing += [unjudged] if any(y for _, y in unjudged.points) else []
    drawn = [
        *_curves("Mean reward", "reward", [of("training", "reward"), of("held out", "reward"), *dashed]),
        *_curves("Share from which nothing can be learned", "share", nothing),
    ]
    yield "Reward", drawn, "Dashed: the parts of the training reward, before they are weighted." if parts else ""
    mean, ended, cut = "completions/mean_length", "completions/mean_terminated_length", "completions/clipped_ratio"
    uncut = of("training", ended, "training, those that were not cut off", True)
    drawn = [
        *_curves("Mean length", "tokens", [of("training", mean), of("held out", mean), uncut]),
        *_curves("Share that was cut off", "share", [of("training", cut), of("held out", cut)]),
    ]
    yield "Length of completions, tokens", drawn, ""
    for kind, title in _KINDS.items():
        prefix = f"reward/{kind}_"
        label = "pass rate " if kind == "pass_rate" else ""
        drawn, most = [], 0
        for where, entries in (("training", train), ("held out", val)):
            lines = [of(where, name, label + name.removeprefix(prefix)) for name in sorted(_named(entries, prefix))]
            drawn += _curves(f"{title}, {where}", "reward", lines)
            most = max(most, len(lines))
        left_out = most - len(LIGHT.accents)
        yield title, drawn, f"{left_out} more are in the table at the end." if left_out > 0 else ""
    about = "Training and validation are those between one rollout and the next."
    yield "Where the time goes", list(_times(train, val)), about


def _curves(title: str, unit: str, lines: Sequence[Line]) -> Iterator[Picture]:
    """One chart of these lines, or none if no line has a point. Lines beyond the number of colours are left out."""
    number = percent if unit == "share" else plain
    lines = [line for line in lines[: len(LIGHT.accents)] if line.points]
    told = [
        f"{line.name} {number(line.points[0][1])} at step {line.points[0][0]:g}, "
        f"{number(line.points[-1][1])} at step {line.points[-1][0]:g}"
        for line in lines
    ]
    if told:
        caption = f"{title} over optimizer steps: {'; '.join(told)}."
        yield Picture(title.lower(), title, caption, partial(line_chart, title=title, unit=unit, lines=lines))


def _times(train: Sequence[Entry], val: Sequence[Entry]) -> Iterator[Picture]:
    """A chart of seconds by phase. A validation counts towards the rollout before it."""
    spent = {entry.rollout: dict(entry.seconds) for entry in train}
    for entry in val:
        if phases := spent.get(entry.rollout):
            phases[_VALIDATION] = phases.get(_VALIDATION, 0.0) + sum(entry.seconds.values())
    there = {name for phases in spent.values() for name in phases}
    names = [*(name for name in _PHASES if name in there), *sorted(there - set(_PHASES))]
    parts = {name: [(float(entry.step), spent[entry.rollout].get(name, 0.0)) for entry in train] for name in names}
    title = "Seconds of each rollout"
    if parts:
        caption = f"{title}, divided into {', '.join(parts)}."
        yield Picture(title.lower(), title, caption, partial(stacked_bars, title=title, unit="s", parts=parts))


def _numbers(train: Sequence[Entry], val: Sequence[Entry]) -> Table:
    shown = [*train[:1], *train[1:][-1:], *val[:1], *val[1:][-1:]]
    names = sorted({name for entry in shown for name in entry.numbers})
    cells = ([plain(entry.numbers[name]) if name in entry.numbers else "" for entry in shown] for name in names)
    head = ["", *(f"{entry.stage}, step {entry.step:,}" for entry in shown)]
    return Table(head, [("", [name, *row]) for name, row in zip(names, cells, strict=True)])


def _named(entries: Sequence[Entry], prefix: str) -> list[str]:
    """The names of all numbers with this prefix in any of the entries, in order of appearance."""
    return list(dict.fromkeys(name for entry in entries for name in entry.numbers if name.startswith(prefix)))


def _points(entries: Sequence[Entry], name: str) -> Points:
    return [(float(entry.step), entry.numbers[name]) for entry in entries if name in entry.numbers]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# samples


def _over_time(history: History) -> tuple[str, list[Asked]]:
    """(note, prompts with their answers at the first, the middle and the latest validation)."""
    rollouts = {step: by_prompt(history.samples("val", step)) for step in moments(history.steps("val"))}
    first, *later = rollouts.values()
    everywhere = (key for key in first if all(key in rollout for rollout in later))
    means = (f"{plain(_mean_reward(rollout))} at step {step:,}" for step, rollout in rollouts.items())
    note = f"The first of the held-out prompts. Mean reward of all: {', '.join(means)}."
    return note, [_asked(key, rollouts) for key in islice(everywhere, _PROMPTS)]


def _repeated(history: History) -> tuple[str, list[Asked]]:
    """(note, prompts of the first rollout that were drawn again, with their answers), for a run without held-out
    prompts."""
    asked = {step: history.prompts("train", step) for step in history.steps("train")}
    first = next(iter(asked.values()), [])
    again = {key: moments([step for step in asked if key in asked[step]]) for key in first}
    shown = dict(islice(((key, steps) for key, steps in again.items() if len(steps) > 1), _PROMPTS))
    if not shown:
        return "No prompt was asked twice. Set data.held_out to see some answered again and again.", []
    drawn = {step: by_prompt(history.samples("train", step)) for step in {s for steps in shown.values() for s in steps}}
    about = (
        "Prompts of the first rollout that were drawn again. Set data.held_out to ask some that are not learned from"
    )
    return f"{about}.", [_asked(key, {step: drawn[step] for step in steps}) for key, steps in shown.items()]


def _asked(key: str, rollouts: Mapping[int, Mapping[str, Sequence[Sample]]]) -> Asked:
    """A prompt and its first completion in each of the rollouts."""
    answers = [(f"step {step:,}", rollout[key][0]) for step, rollout in rollouts.items()]
    return Asked(_turns(answers[0][1]), [_side(*answer) for answer in answers])


def _latest(samples: Sequence[Sample]) -> list[Asked]:
    """The prompts whose samples differ most in reward, each with its best and its worst sample."""
    return [
        Asked(
            _turns(best),
            [_side("best", best), _side("worst", worst)] if best.reward > worst.reward else [_side("any", best)],
        )
        for best, worst in widest(samples)[:_PROMPTS]
    ]


def _side(name: str, sample: Sample) -> Side:
    return Side(name, *in_words(sample), sample.text)


def _turns(sample: Sample) -> list[tuple[str, str]]:
    turns = [(str(message.get("role", "")), _content(message)) for message in sample.prompt.messages]
    expected = sample.prompt.row.get("answer")
    return [*turns, ("expected", str(expected))] if isinstance(expected, str | int | float) else turns


def _content(message: Mapping[str, object]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(dict(message), ensure_ascii=False, default=str)


def in_words(sample: Sample) -> tuple[str, str]:
    """(the sample's reward as text, its other results as text)."""
    parts = [
        f"{part} {plain(result.value)}" if result.value is not None else f"{part} not judged: {result.error}"
        for part, result in sample.rewards.items()
    ]
    parts += [_count(len(sample.rollout.token_ids), "token") + (", cut off" if sample.truncated else "")]
    if sample.advantage:
        parts += [f"advantage {sample.advantage:+.3g}"]
    return "no reward" if math.isnan(sample.reward) else f"reward {plain(sample.reward)}", " · ".join(parts)


def moments(steps: Sequence[int]) -> list[int]:
    """The first step, the one nearest to the middle, and the latest."""
    if len(steps) < 3:
        return list(steps)
    middle = min(steps[1:-1], key=lambda step: abs(2 * step - steps[0] - steps[-1]))
    return [steps[0], middle, steps[-1]]


def widest(samples: Iterable[Sample]) -> list[tuple[Sample, Sample]]:
    """(best, worst) of each prompt that has a reward, in descending order of the difference."""
    pairs = []
    for group in by_prompt(samples).values():
        judged = sorted((s for s in group if not math.isnan(s.reward)), key=lambda sample: -sample.reward)
        if judged:
            pairs.append((judged[0], judged[-1]))
    return sorted(pairs, key=lambda pair: pair[1].reward - pair[0].reward)


def by_prompt(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The samples grouped by prompt, in their order."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(prompt_key(sample.prompt.messages), []).append(sample)
    return groups


def _mean_reward(groups: Mapping[str, Sequence[Sample]]) -> float:
    rewards = [sample.reward for group in groups.values() for sample in group if not math.isnan(sample.reward)]
    return fmean(rewards) if rewards else math.nan

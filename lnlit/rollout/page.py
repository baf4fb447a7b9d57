"""The page of a run's rollouts: is it learning, from what, and what does it say now that it did not say before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from lnlit.errors import UserError
from lnlit.files import replaced_file
from lnlit.html import document, folded, note, section, table, tiles
from lnlit.rollout.history import Entry, History
from lnlit.rollout.line_chart import COLOURS, Line, Points, line_chart, number_text, stacked_bars
from lnlit.rollout.page_html import STYLE, answers, charts
from lnlit.rollout.sample import Sample
from lnlit.rollout.table import prompt_key

#: Prompts that are shown with their answers.
_PROMPTS = 4
#: In the order of a rollout.
_VALIDATION = "validation"
_PHASES = ("sync", "generate", "reward", "score", "train", _VALIDATION)
_KINDS = {"pass_rate": "Reward by difficulty", "thinking": "Reward by thinking mode", "task": "Reward by task"}


def write_page(file: Path, history: History) -> None:
    """Write the page, atomically. The same folder gives the same page."""
    text = page(history)
    with replaced_file(file) as scratch:
        scratch.write_text(text, encoding="utf-8")


def page(history: History) -> str:
    """The whole document. Raises `UserError` where there is nothing to show."""
    train, val = history.entries("train"), history.entries("val")
    if not train and not val:
        raise UserError(
            f"{history.folder}: there are no rollouts in it. The callback `RolloutLog` of a run with rollouts writes "
            "them, into the folder `rollouts` of its trainer.default_root_dir."
        )
    last = max(entry.step for entry in (*train, *val))
    drawn = _count(sum(entry.samples for entry in train), "sample")
    lead = f"{_count(len(train), 'rollout')} of {drawn} in all and {_count(len(val), 'validation')}, to step {last:,}"
    body = [
        tiles(_tiles(train, val)),
        _side_by_side(history),
        _rewards(train, val),
        _lengths(train, val),
        *(section(title, *_by_kind(kind, train, val)) for kind, title in _KINDS.items()),
        _times(train, val),
        _latest(history),
        folded("All numbers", _numbers(train, val)),
    ]
    return document("Rollouts", "Rollouts", lead, filter(None, body), STYLE)


# numbers


def _tiles(train: Sequence[Entry], val: Sequence[Entry]) -> Iterable[tuple[str, str]]:
    if held_out := _points(val, "reward"):
        first, last = held_out[0], held_out[-1]
        yield _change(first[1], last[1]), f"held-out reward, step {first[0]:,.0f} and {last[0]:,.0f}"
    tenth = max(len(train) // 10, 1)
    early, late = train[:tenth], train[-tenth:]
    which = "first and latest rollout" if tenth == 1 else f"first and latest {tenth} rollouts"
    for name, said, percent in (
        ("reward", "training reward", False),
        ("completions/mean_length", "tokens of a completion", False),
        ("completions/clipped_ratio", "completions cut off", True),
        ("frac_reward_zero_std", "prompts that teach nothing", True),
    ):
        before, after = (_mean(entries, name) for entries in (early, late))
        if before is not None and after is not None:
            yield _change(before, after, percent), f"{said}, {which}"


def _rewards(train: Sequence[Entry], val: Sequence[Entry]) -> str:
    names = _named(train or val, lambda name: name.startswith("rewards/") and name.endswith("/mean"))
    parts = names if len(names) > 1 else []  # one part is the reward, but for its weight
    lines = [Line("training", _points(train, "reward")), Line("held out", _points(val, "reward"), dots=True)]
    lines += [
        Line(name.removeprefix("rewards/").removesuffix("/mean"), _points(train, name), dashed=True)
        for name in parts[: COLOURS - 2]
    ]
    unjudged = _points(train, "rewards/unscorable")
    shares = [
        Line("prompts whose samples are all equally good", _points(train, "frac_reward_zero_std")),
        Line("samples that could not be judged", unjudged if any(y for _, y in unjudged) else ()),
    ]
    about = "Dashed: the parts of the training reward, before they are weighted." if parts else ""
    return section(
        "Reward",
        charts(
            ("Mean", line_chart(lines)),
            ("Share from which nothing can be learned", line_chart(shares, (0.0, 1.0), percent=True)),
        ),
        note(about) if about else "",
    )


def _lengths(train: Sequence[Entry], val: Sequence[Entry]) -> str:
    mean, ended, cut = "completions/mean_length", "completions/mean_terminated_length", "completions/clipped_ratio"
    lengths = [
        Line("training", _points(train, mean)),
        Line("held out", _points(val, mean), dots=True),
        Line("training, those that were not cut off", _points(train, ended), dashed=True),
    ]
    shares = [Line("training", _points(train, cut)), Line("held out", _points(val, cut), dots=True)]
    return section(
        "Length of completions, tokens",
        charts(("Mean", line_chart(lengths)), ("Share that was cut off", line_chart(shares, (0.0, 1.0), percent=True))),
    )


def _by_kind(kind: str, train: Sequence[Entry], val: Sequence[Entry]) -> Iterable[str]:
    prefix = f"reward/{kind}_"
    drawn, left_out = [], 0
    for entries, title, dots in ((train, "Training", False), (val, "Held out", True)):
        names = sorted(_named(entries, lambda name: name.startswith(prefix)))
        label = "pass rate " if kind == "pass_rate" else ""
        lines = [Line(label + name.removeprefix(prefix), _points(entries, name), dots) for name in names[:COLOURS]]
        drawn.append((title, line_chart(lines)))
        left_out = max(left_out, len(names) - COLOURS)
    yield charts(*drawn)
    if left_out > 0:
        yield note(f"{left_out} more are in the table at the end.")


def _times(train: Sequence[Entry], val: Sequence[Entry]) -> str:
    about = "Training and validation are those between one rollout and the next."
    drawn = charts(("Seconds of each rollout", stacked_bars(_seconds(train, val), "s")))
    return section("Where the time goes", drawn, note(about)) if drawn else ""


def _seconds(train: Sequence[Entry], val: Sequence[Entry]) -> dict[str, Points]:
    """By phase. A validation counts to the rollout before it."""
    spent = {entry.rollout: dict(entry.seconds) for entry in train}
    for entry in val:
        if entry.rollout in spent:
            phases = spent[entry.rollout]
            phases[_VALIDATION] = phases.get(_VALIDATION, 0.0) + sum(entry.seconds.values())
    there = {name for phases in spent.values() for name in phases}
    names = [*(name for name in _PHASES if name in there), *sorted(there - set(_PHASES))]
    return {name: [(float(entry.step), spent[entry.rollout].get(name, 0.0)) for entry in train] for name in names}


def _numbers(train: Sequence[Entry], val: Sequence[Entry]) -> str:
    shown = [*_ends(train), *_ends(val)]
    names = sorted({name for entry in shown for name in entry.numbers})
    rows = [[name, *(_cell(entry, name) for entry in shown)] for name in names]
    return table(["", *(f"{entry.stage}, step {entry.step:,}" for entry in shown)], rows)


def _ends(entries: Sequence[Entry]) -> Sequence[Entry]:
    return entries if len(entries) < 2 else (entries[0], entries[-1])


def _cell(entry: Entry, name: str) -> str:
    return number_text(entry.numbers[name]) if name in entry.numbers else ""


def _named(entries: Sequence[Entry], fits: Callable[[str], bool]) -> list[str]:
    """Names of numbers that any of the entries has, in their order."""
    return list(dict.fromkeys(name for entry in entries for name in entry.numbers if fits(name)))


def _points(entries: Sequence[Entry], name: str) -> Points:
    return [(float(entry.step), entry.numbers[name]) for entry in entries if name in entry.numbers]


def _mean(entries: Sequence[Entry], name: str) -> float | None:
    values = [entry.numbers[name] for entry in entries if name in entry.numbers]
    return fmean(values) if values else None


def _change(before: float, after: float, percent: bool = False) -> str:
    return f"{number_text(before, percent)} \u2192 {number_text(after, percent)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# samples


def _side_by_side(history: History) -> str:
    """The same prompts at the first, the middle and the latest validation."""
    steps = moments(history.steps("val"))
    if not steps:
        return _repeated(history)
    rollouts = {step: by_prompt(history.samples("val", step)) for step in steps}
    first, *later = rollouts.values()
    everywhere = [key for key in first if all(key in rollout for rollout in later)]
    means = ((step, _mean_reward(s for group in rollout.values() for s in group)) for step, rollout in rollouts.items())
    said = ", ".join(f"{number_text(mean)} at step {step:,}" for step, mean in means)
    return section(
        "The same questions, as the run goes on",
        note(f"The first of the held-out prompts. Mean reward of all: {said}."),
        *(
            answers(first[key][0], [(f"step {step:,}", rollout[key][0]) for step, rollout in rollouts.items()])
            for key in everywhere[:_PROMPTS]
        ),
    )


def _repeated(history: History) -> str:
    """Without held-out prompts: those of the first rollout that came again."""
    steps = history.steps("train")
    asked = {step: history.prompts("train", step) for step in steps}
    shown = []
    for key in asked[steps[0]] if steps else ():
        again = moments([step for step in steps if key in asked[step]])
        if len(again) > 1 and len(shown) < _PROMPTS:
            shown.append((key, again))
    rollouts = {step: by_prompt(history.samples("train", step)) for step in {s for _, again in shown for s in again}}
    about = (
        "Prompts of the first rollout that were drawn again. Set data.held_out to ask some that are not learned from."
    )
    return section(
        "The same questions, as the run goes on",
        note(about if shown else "No prompt was asked twice. Set data.held_out to see some answered again and again."),
        *(
            answers(rollouts[again[0]][key][0], [(f"step {step:,}", rollouts[step][key][0]) for step in again])
            for key, again in shown
        ),
    )


def moments(steps: Sequence[int]) -> list[int]:
    """The first, the one nearest to the middle, and the latest."""
    if len(steps) < 3:
        return list(steps)
    middle = min(steps[1:-1], key=lambda step: abs(2 * step - steps[0] - steps[-1]))
    return [steps[0], middle, steps[-1]]


def _latest(history: History) -> str:
    """Best and worst samples of the prompts from which the latest rollout had most to learn."""
    steps = history.steps("train")
    if not steps:
        return ""
    found = widest(history.samples("train", steps[-1]))[:_PROMPTS]
    return section(
        f"Best and worst of the latest rollout, step {steps[-1]:,}",
        note("The prompts whose samples differ most in reward."),
        *(
            answers(best, [("best", best), ("worst", worst)] if best.reward > worst.reward else [("any", best)])
            for best, worst in found
        ),
    )


def widest(samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """(best, worst) of each prompt that has a reward, the largest difference first."""
    pairs = []
    for group in by_prompt(samples).values():
        judged = sorted((s for s in group if not math.isnan(s.reward)), key=lambda sample: -sample.reward)
        if judged:
            pairs.append((judged[0], judged[-1]))
    return sorted(pairs, key=lambda pair: pair[1].reward - pair[0].reward)


def by_prompt(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """All samples of each prompt, in their order."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(prompt_key(sample.prompt.messages), []).append(sample)
    return groups


def _mean_reward(samples: Iterable[Sample]) -> float:
    rewards = [sample.reward for sample in samples if not math.isnan(sample.reward)]
    return fmean(rewards) if rewards else math.nan

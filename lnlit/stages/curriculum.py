"""`lnlit rollout curriculum`: a picture of which prompts a curriculum takes when, before a run pays for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.errors import UserError
from lnlit.files import check_output, expanded, replaced_file
from lnlit.interfaces import Source
from lnlit.rollout.curriculum import GaussianCurriculum
from lnlit.search.figures import Theme, check_matplotlib, new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: [rollout][pool]: how many prompts.
Table = Sequence[Sequence[float]]


def curriculum(
    prompts: Source,
    out: str,
    rollouts: int,
    prompts_per_rollout: int,
    order: GaussianCurriculum | None = None,
    seed: int = 0,
) -> Path:
    """Draw what a run would take of each pass rate, rollout by rollout, beside what its curriculum wants.

    Args:
        prompts: Annotated rows, as the run gets them.
        out: The PNG file to write.
        rollouts: How many the run takes: its optimizer steps by the updates per rollout.
        prompts_per_rollout: As in the run.
        order: The curriculum; its default settings when not given.
        seed: As in the run.
    """
    file = check_output(expanded(out))
    if file.suffix != ".png":
        raise UserError(f"curriculum.out: expected the name of a .png file, got {out!r}")
    if prompts_per_rollout < 1:
        raise UserError(f"curriculum.prompts_per_rollout: expected a positive number, got {prompts_per_rollout}")
    check_matplotlib()
    order = order or GaussianCurriculum()
    order.start(list(prompts.rows()), seed, rollouts)
    wanted, taken = follow(order, prompts_per_rollout)
    with replaced_file(file) as scratch:
        save_png(scratch, lambda theme: curriculum_map(theme, order.rates, wanted, taken))
    used, there = len(taken) * prompts_per_rollout, sum(map(len, order.pools))
    means = [_mean(order.rates, row) for row in (taken[0], taken[-1])]
    line = f"{rollouts} rollouts take {used} prompts of {there}; mean pass rate {means[0]:.3f} to {means[1]:.3f}"
    print(f"curriculum: {line}", file=sys.stderr)
    return file


def follow(order: GaussianCurriculum, prompts_per_rollout: int) -> tuple[list[list[float]], list[list[int]]]:
    """(wanted, taken) of a run with a started curriculum: prompts of each pool in each rollout."""
    pool_of = {prompt: pool for pool, prompts in enumerate(order.pools) for prompt in prompts}
    wanted, taken = [], []
    for rollout in range(order.rollouts):
        counts = [0] * len(order.pools)
        for prompt in order.take(prompts_per_rollout):
            counts[pool_of[prompt]] += 1
        taken.append(counts)
        wanted.append([share * prompts_per_rollout for share in order.target(rollout)])
    return wanted, taken


def curriculum_map(theme: Theme, rates: Sequence[float], wanted: Table, taken: Table) -> Figure:
    """Rollout x pass rate, wanted over taken, the mean as a line."""
    from matplotlib.colors import LinearSegmentedColormap

    figure = new_figure(9, 6.4)
    axes = figure.subplots(2, 1, sharex=True)
    most = max(value for table in (wanted, taken) for row in table for value in row)
    mesh: Any = None
    for axis, table, title in zip(axes, (wanted, taken), ("Wanted", "Taken"), strict=True):
        cells = [[row[pool] for row in table] for pool in range(len(rates))]
        ramp = LinearSegmentedColormap.from_list(f"lnlit-{theme.name}", theme.ramp)
        mesh = axis.pcolormesh(cells, cmap=ramp, vmin=0, vmax=most, edgecolors=theme.page, linewidth=0.3)
        at = [rollout + 0.5 for rollout in range(len(table))]
        heights = [_height(rates, _mean(rates, row)) for row in table]
        axis.plot(at, heights, color=theme.accents[1], label="mean pass rate")
        axis.set_yticks([pool + 0.5 for pool in range(len(rates))], [f"{rate:.3g}" for rate in rates])
        axis.set(ylabel="pass rate", xlim=(0, len(table)), ylim=(0, len(rates)))
        axis.set_title(f"{title}, by difficulty")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[-1].set_xlabel("rollout")
    axes[0].legend(loc="upper right")
    figure.colorbar(mesh, ax=list(axes), shrink=0.8, aspect=30, pad=0.02).set_label("prompts")
    return figure


def _mean(rates: Sequence[float], counts: Sequence[float]) -> float:
    return sum(rate * count for rate, count in zip(rates, counts, strict=True)) / sum(counts)


def _height(rates: Sequence[float], rate: float) -> float:
    """Where a rate is on an axis that gives each pool a row: rows may stand for unequal steps."""
    above = next((pool for pool, own in enumerate(rates) if own >= rate), len(rates) - 1)
    if above == 0:
        return 0.5
    low, high = rates[above - 1], rates[above]
    return above - 0.5 + min((rate - low) / (high - low), 1.0)

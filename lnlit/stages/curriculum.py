"""`lnlit rollout curriculum`: a picture of the prompts that a curriculum takes in each rollout, drawn before the
run."""

from __future__ import annotations

from pathlib import Path

from lnlit.errors import UserError, check_positive
from lnlit.files import check_output, expanded, write_file
from lnlit.interfaces import Source
from lnlit.progress import say
from lnlit.report.maps import curriculum_map, mean_rate
from lnlit.report.picture import png
from lnlit.sampling.curriculum import GaussianCurriculum


def curriculum(
    prompts: Source,
    out: str,
    rollouts: int,
    prompts_per_rollout: int,
    prompt_order: GaussianCurriculum | None = None,
    seed: int = 0,
) -> Path:
    """Draws how many prompts of each pass rate a run would take in each rollout, beside what its curriculum wants.

    Args:
        prompts: Annotated rows, as in the run.
        out: The PNG file to write.
        rollouts: The number of rollouts of the run: its optimizer steps divided by the updates per rollout.
        prompts_per_rollout: The number of prompts per rollout, as in the run.
        prompt_order: The curriculum, by default with its default settings.
        seed: The seed, as in the run.
    """
    file = check_output(expanded(out), mark=b"PNG")
    if file.suffix != ".png":
        raise UserError(f"curriculum.out: expected the name of a .png file, got {out!r}")
    check_positive("curriculum", prompts_per_rollout=prompts_per_rollout)
    prompt_order = prompt_order or GaussianCurriculum()
    prompt_order.start(list(prompts.rows()), seed, rollouts)
    wanted, taken = follow(prompt_order, prompts_per_rollout)
    write_file(file, png(lambda theme: curriculum_map(theme, prompt_order.rates, wanted, taken)))
    used, there = len(taken) * prompts_per_rollout, sum(map(len, prompt_order.pools))
    means = [mean_rate(prompt_order.rates, row) for row in (taken[0], taken[-1])]
    line = f"{rollouts} rollouts take {used} prompts of {there}; mean pass rate {means[0]:.3f} to {means[1]:.3f}"
    say(f"curriculum: {line}")
    return file


def follow(order: GaussianCurriculum, prompts_per_rollout: int) -> tuple[list[list[float]], list[list[int]]]:
    """(wanted, taken) of a run with a started curriculum: the number of prompts of each pool in each rollout."""
    pool_of = {prompt: pool for pool, prompts in enumerate(order.pools) for prompt in prompts}
    wanted, taken = [], []
    for rollout in range(order.rollouts):
        counts = [0] * len(order.pools)
        for prompt in order.take(prompts_per_rollout):
            counts[pool_of[prompt]] += 1
        taken.append(counts)
        wanted.append([share * prompts_per_rollout for share in order.target(rollout)])
    return wanted, taken

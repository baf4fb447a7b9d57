"""A curriculum from easy to hard prompts: batches around a pass rate that falls during a run (Llama-Nemotron section
5.1).

The paper's rule is a Gaussian over pass rates whose centre falls, with leftovers going to the largest pool. Its width,
the path of the centre and the rounding are choices made here. So is rationing: if a run takes most of its prompts, the
paper's rule alone would use up the pools in the middle and leave easy prompts for the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from lnlit.errors import UserError
from lnlit.interfaces import PromptOrder

_GOLDEN = (math.sqrt(5) - 1) / 2


class GaussianCurriculum(PromptOrder):
    """Prompts whose pass rates follow a Gaussian. Its centre falls linearly from the easiest prompts to the hardest,
    one step per rollout. A pool that the run would overdraw gets a smaller share throughout, so the mean pass rate of
    the wanted prompts falls from rollout to rollout, whatever the prompts.

    A prompt is repeated only after all prompts of its pass rate have been used, and at most once (twice, ...) in a run
    that takes no more prompts than there are (twice as many, ...). The first `take` determines the number of prompts
    per rollout. A resumed run keeps the number of rollouts that it was started with.

    Args:
        sigma: Standard deviation of the Gaussian, a difference of pass rates.
        easiest: Centre in the first rollout. Null is the highest pass rate there is.
        hardest: Centre in the last rollout. Null is the lowest pass rate there is.
        levels: Pass rates are rounded to multiples of 1/levels. Each multiple has a pool of prompts.
        rationing: Give a pool that the run would overdraw a smaller share from the start. Otherwise the shares are the
            Gaussian's, as in the paper, until a pool is used up and the largest one takes its place.
    """

    def __init__(
        self,
        sigma: float = 0.15,
        easiest: float | None = None,
        hardest: float | None = None,
        levels: int = 8,
        rationing: bool = True,
    ) -> None:
        if not sigma > 0 or levels < 1:
            raise UserError(f"GaussianCurriculum: needs sigma > 0 and levels >= 1, got {sigma} and {levels}")
        for name, centre in (("easiest", easiest), ("hardest", hardest)):
            if centre is not None and not 0 <= centre <= 1:
                raise UserError(f"GaussianCurriculum.{name}: a pass rate is from 0 to 1, got {centre}")
        self.sigma, self.easiest, self.hardest, self.levels = sigma, easiest, hardest, levels
        self.rationing = rationing

    def start(self, rows: Sequence[Mapping[str, Any]], seed: int, rollouts: int) -> None:
        if not rows:
            raise UserError("prompts: the source has no usable rows")
        if rollouts < 1:
            raise UserError(f"GaussianCurriculum: has to know how many rollouts the run will take, got {rollouts}")
        self.seed, self.rollouts = seed, rollouts
        levels = [math.floor(_pass_rate(row, n) * self.levels + 0.5) for n, row in enumerate(rows, start=1)]
        present = sorted(set(levels))
        #: The pass rate of each pool, ascending, and the prompts in it.
        self.rates = [level / self.levels for level in present]
        self.pools = [[n for n, own in enumerate(levels) if own == level] for level in present]
        self.first_centre = self.rates[-1] if self.easiest is None else self.easiest
        self.last_centre = self.rates[0] if self.hardest is None else self.hardest
        if self.first_centre < self.last_centre:
            raise UserError(
                f"GaussianCurriculum: the run would begin at the pass rate {self.first_centre:g} and end at the easier "
                f"{self.last_centre:g}; the prompts have {self.rates[0]:g} to {self.rates[-1]:g}"
            )
        self._begin()

    def _begin(self) -> None:
        self._taken: list[list[int]] = []  # runs of equal calls: [count, rollouts further, how often]
        self._takes = self._size = 0
        self._rollout = -1
        self._empty_batch()
        self._rounds = [0] * len(self.pools)  # how often each pool was shuffled
        self._queues: list[list[int]] = [[] for _ in self.pools]  # what is left of the last shuffle
        self._left = [0] * len(self.pools)

    def _empty_batch(self) -> None:
        self._batch: set[int] = set()  # this rollout's prompts
        self._had = [0] * len(self.pools)  # how many of them are from each pool

    def target(self, rollout: int) -> list[float]:
        """The share of each pool in a rollout, counted from 0. Known after the first `take`."""
        return self._targets_RP[min(rollout, self.rollouts - 1)].tolist()

    def take(self, count: int, rollout: int | None = None) -> list[int]:
        self._note(count, rollout)
        found: list[int] = []
        while len(found) < count:
            unused = [len(pool) - had for pool, had in zip(self.pools, self._had, strict=True)]
            if not any(unused):  # there are fewer prompts than places
                self._empty_batch()
                continue
            new = [min(pair) for pair in zip(self._left, unused, strict=True)]
            if not any(new):  # more was taken than planned, as where prompts are replaced: what is left are repetitions
                self._left = [left + len(pool) for left, pool in zip(self._left, self.pools, strict=True)]
                continue
            quota = allocate(new, self.target(self._rollout), count - len(found), self._takes * _GOLDEN % 1)
            for pool, places in enumerate(quota):
                found += [self._next(pool) for _ in range(places)]
        order = np.random.default_rng([self.seed, 0, self._takes]).permutation(count)
        return [found[place] for place in order]

    def _note(self, count: int, rollout: int | None) -> None:
        if not self._takes:
            self._size = count
            stock = np.array([len(pool) for pool in self.pools])
            stock *= math.ceil(self.rollouts * count / stock.sum())
            self._left = stock.tolist()
            centres = np.linspace(self.first_centre, self.last_centre, self.rollouts)
            self._targets_RP = rationed(
                self.rates, centres, self.sigma, stock / count if self.rationing else np.full(len(stock), np.inf)
            )
        steps = int(count >= self._size) if rollout is None else rollout - self._rollout
        if steps:
            self._rollout += steps
            self._empty_batch()
        self._takes += 1
        if not self._taken or self._taken[-1][:2] != [count, steps]:
            self._taken.append([count, steps, 0])
        self._taken[-1][2] += 1

    def _next(self, pool: int) -> int:
        """The next prompt of a pool, not one of this rollout's as long as there are others."""
        if not self._queues[pool]:
            random = np.random.default_rng([self.seed, 1, pool, self._rounds[pool]])
            shuffled = random.permutation(self.pools[pool]).tolist()
            self._queues[pool] = sorted(shuffled, key=lambda prompt: prompt not in self._batch)  # taken from the end
            self._rounds[pool] += 1
        prompt = self._queues[pool].pop()
        self._left[pool] -= 1
        self._had[pool] += 1
        self._batch.add(prompt)
        return prompt

    def state_dict(self) -> dict[str, Any]:
        """The numbers of prompts taken so far. Repeating these calls restores the state."""
        sizes = [len(pool) for pool in self.pools]
        taken = [list(run) for run in self._taken]
        return {"taken": taken, "rollouts": self.rollouts, "pools": sizes, "settings": self._settings()}

    def _settings(self) -> dict[str, Any]:
        centres = {"easiest": self.first_centre, "hardest": self.last_centre}
        return {"sigma": self.sigma, **centres, "levels": self.levels, "rationing": self.rationing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        sizes = [len(pool) for pool in self.pools]
        if state["pools"] != sizes:
            raise UserError(
                f"prompts: the run was begun with pools of {state['pools']} prompts by pass rate, now they have "
                f"{sizes}. Go on with the same prompts, or begin a new run."
            )
        for name, value in self._settings().items():
            if (before := state["settings"][name]) != value:
                raise UserError(
                    f"GaussianCurriculum.{name}: the run was begun with {before}, now it is {value}. Go on with the "
                    "same, or begin a new run from its weights."
                )
        self.rollouts = state["rollouts"]
        self._begin()
        for count, steps, times in state["taken"]:
            for _ in range(times):
                self.take(count, self._rollout + steps)


def rationed(rates: Sequence[float], centres: np.ndarray, sigma: float, stock: np.ndarray) -> np.ndarray:
    """The share of each pass rate for each centre, [R, P]: a Gaussian times one weight of at most 1 per pass rate. The
    weights are such that no column's sum exceeds its `stock`, which is counted in batches.

    With plentiful stocks, all weights are 1. Whatever they are, the mean falls with the centre, because a Gaussian's
    likelihood ratio is monotone and weights do not change that. The weights solve a partial optimal transport problem,
    by Sinkhorn's iteration in logarithms. There may be none if `sigma` is far smaller than the distance between pass
    rates.
    """
    gaussian_RP = -((np.array(rates) - centres[:, None]) ** 2) / (2 * sigma**2)
    weight_P = np.zeros(len(rates))
    for _ in range(1000):
        shares_RP = gaussian_RP + weight_P
        shares_RP = np.exp(shares_RP - shares_RP.max(1, keepdims=True))
        shares_RP /= shares_RP.sum(1, keepdims=True)
        wanted_P = np.maximum(shares_RP.sum(0), 1e-300)
        if (wanted_P <= stock * (1 + 1e-4)).all():
            break
        weight_P = np.minimum(weight_P + np.log(stock / wanted_P), 0.0)
    return shares_RP


def allocate(left: Sequence[int], target: Sequence[float], places: int, offset: float) -> list[int]:
    """The number of prompts that each pool contributes to a batch: its share of `places`, rounded up or down, but not
    more than are `left`. Each remaining place goes to the pool that is then the largest, the easier one if equal.

    `offset`, from 0 to 1, determines which shares are rounded up. If it varies evenly, no pool is always rounded down.
    If fewer prompts are left than places, all are used.
    """
    ends = [math.floor(places * share + offset + 1e-9) for share in accumulate(target[:-1])]
    quota = [end - start for start, end in zip([0, *ends], [*ends, places], strict=True)]
    quota = [min(asked, have) for asked, have in zip(quota, left, strict=True)]
    for _ in range(min(places, sum(left)) - sum(quota)):
        quota[max(range(len(left)), key=lambda pool: (left[pool] - quota[pool], pool))] += 1
    return quota


def _pass_rate(row: Mapping[str, Any], number: int) -> float:
    rate = row.get("pass_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        has = f"{rate!r:.40} as its pass_rate" if "pass_rate" in row else "no pass_rate"
        raise UserError(
            f"prompts: number {number} has {has}, so there is no telling how hard it is. `lnlit rollout annotate` "
            "adds the key, from 0 to 1, and the source `difficulty` leaves out rows that could not be judged."
        )
    return float(rate)

"""Samples of the current policy, and the check that the engine has its weights.

Shape suffixes: N completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import Algorithm, PolicyWeights, TokenBatch
from lnlit.models.ranks import all_gather
from lnlit.rl.batch import pack
from lnlit.sampling.sample import Drawn, Judged
from lnlit.sampling.sampler import Asked, Sampler

#: The fraction of tokens whose log-probs may differ by more than `max_difference`.
_OUTSIDE = 0.01


class Learner(Protocol):
    """A policy that learns from its own samples. All methods are collective."""

    algorithm: Algorithm

    @property
    def version(self) -> int:
        """The number of optimizer steps that the weights have taken."""
        ...

    @property
    def place(self) -> tuple[int, int]:
        """(this rank, number of ranks), counting those together that compute one forward pass."""
        ...

    def weights(self) -> PolicyWeights: ...

    def log_probs(self, batch: TokenBatch) -> Tensor:
        """The log-probs of all labels, [N], in the precision of a training step, without gradient and dropout."""
        ...

    def reference_log_probs(self, batch: TokenBatch) -> Tensor:
        """The reference model's log-probs of all labels, [N], if the algorithm needs them."""
        ...


@dataclass(frozen=True)
class LogprobCheck:
    """How far the log-probs of engine and trainer may differ after each weight update, in nats.

    Args:
        samples: The number of samples of a rollout that each rank scores again.
        max_difference: At most one token in a hundred may differ by more.
        mean_difference: The largest mean difference over all tokens. The log-probs of a different model differ by
            about 3 nats.
    """

    samples: int = 4
    max_difference: float = 1.0
    mean_difference: float = 0.1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"data.logprob_check.samples: expected a positive number, got {self.samples}")
        for name, bound in (("max", self.max_difference), ("mean", self.mean_difference)):
            if not bound > 0:  # NaN is not
                raise UserError(f"data.logprob_check.{name}_difference: expected a positive number, got {bound}")

    def __call__(self, learner: Learner, judged: Sequence[Judged], padding_id: int) -> dict[str, float]:
        """Metrics of the differences over all ranks' samples. Collective. Raises `UserError` if they are too large or
        if the engine has no log-probs. All ranks see the same numbers, so all of them raise it."""
        finite = [sample for sample in judged if sample.is_finite]
        chosen = finite[:: max(len(finite) // self.samples, 1)][: self.samples] or judged[:1]
        packed = pack(chosen, [True] * len(chosen), padding_id)
        engine_N = packed.join([sample.engine_log_probs for sample in chosen])
        difference_N = (learner.log_probs(packed.tokens).cpu() - engine_N).abs()
        if not finite:  # other ranks may have some
            difference_N = difference_N[:0]
        largest = difference_N.max().item() if len(difference_N) else 0.0
        everyone = all_gather((largest, difference_N.double().sum().item(), len(difference_N)))
        tokens = sum(count for *_, count in everyone)
        if not tokens:
            raise UserError(
                f"after the sync at step {learner.version}: the engine gave no log-probs that are finite, for none of "
                "its samples, so there is nothing to learn from. Its weights or its precision are broken."
            )
        largest = max((largest for largest, _, _ in everyone), key=lambda value: (math.isnan(value), value))
        mean = sum(total for _, total, _ in everyone) / tokens
        # A token or two in a thousand may be far apart where precision is low; of another model's all are.
        outside = sum(all_gather(int((~(difference_N <= self.max_difference)).sum())))
        if not mean <= self.mean_difference or outside > tokens * _OUTSIDE:
            raise UserError(
                f"after the sync at step {learner.version}: engine and trainer disagree by {mean:.3g} nats a token "
                f"on average (data.logprob_check.mean_difference allows {self.mean_difference}), and by more than "
                f"{self.max_difference} (data.logprob_check.max_difference) about {outside} of {tokens} tokens, where "
                "one in a hundred may be. Either the engine has other weights than the trainer, or it computes in too "
                "low a precision; or with max_staleness: 1, one rollout's updates change the policy as much: lower "
                "learning_rate, or raise these bounds."
            )
        return {
            "sampling/logp_difference/max": largest,
            "sampling/logp_difference/mean": mean,
            "sampling/logp_difference/outside": outside / tokens,
        }


class OnPolicySampler:
    """Samples from the newest weights of its policy, and checks once per set of weights that the engine has them."""

    def __init__(self, sampler: Sampler, learner: Learner, check: LogprobCheck, padding_id: int) -> None:
        self.sampler, self.learner, self.check, self.padding_id = sampler, learner, check, padding_id
        self._checked = 0

    def draw(self, asked: Sequence[Asked]) -> tuple[list[list[Judged]], dict[str, float]]:
        """(the samples of each prompt, metrics of the check if it was made). Collective."""
        self.sampler.load(self.learner.version, self.learner.weights)
        return self._checked_once(self.sampler.draw(asked))

    def begin(self, asked: Sequence[Asked]) -> Callable[[], list[list[Drawn]]]:
        """Begins to draw from the newest weights, while the policy learns: see `Sampler.begin`. Collective."""
        self.sampler.load(self.learner.version, self.learner.weights)
        return self.sampler.begin(asked)

    def judge(self, drawn: Sequence[Sequence[Drawn]]) -> tuple[list[list[Judged]], dict[str, float]]:
        """Like `draw`, for completions that were drawn before. The check then compares the newest weights with those
        that drew, so the updates between the two count as difference. Collective."""
        return self._checked_once(self.sampler.judge_all(drawn))

    def _checked_once(self, groups: list[list[Judged]]) -> tuple[list[list[Judged]], dict[str, float]]:
        rank, ranks = self.learner.place
        if self._checked == self.sampler.loads or len(groups) < ranks:
            return groups, {}
        mine = [sample for group in groups[rank::ranks] for sample in group]
        with self.sampler.phases("score"):
            agreement = self.check(self.learner, mine, self.padding_id)
        self._checked = self.sampler.loads
        return groups, agreement

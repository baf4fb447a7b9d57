"""Reward-aware preference optimisation (RPO; Llama-Nemotron section 6, arXiv 2502.00203)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lnlit.interfaces import Algorithm, Loss, Needs, PolicyBatch, RewardTable
from lnlit.objectives.advantage import centred
from lnlit.objectives.policy import sums
from lnlit.objectives.preference import LOSSES
from lnlit.objectives.reward import pair_accuracy
from lnlit.rl.algorithm import check_above_zero
from lnlit.schema import check


@dataclass(frozen=True, kw_only=True)
class RPO(Algorithm):
    """Moves log(policy / reference) of a prompt's completions towards the differences of their rewards.

    At the optimum, beta * log(policy / reference) = eta * reward, up to a constant per prompt. The loss is divided by
    beta, so that even the paper's tiny one trains. Only the ratio eta / beta determines the optimum.

    Args:
        beta: Weight of the divergence from the reference, the paper's KL penalty.
        eta: Scale of the given rewards.
        objective: "backward" KL(rewards || policy), "forward" KL(policy || rewards), "squared" difference, or "dpo",
            which uses only which completion is best.
        anchor: What the policy is compared with: the "reference", or the policy that drew the samples ("old_policy"),
            which makes each rollout an iteration of the paper.
    """

    beta: float
    eta: float = 1.0
    objective: Literal["backward", "forward", "squared", "dpo"] = "backward"
    anchor: Literal["reference", "old_policy"] = "reference"

    def __post_init__(self) -> None:
        check(self, type(self).__name__)
        check_above_zero(beta=self.beta, eta=self.eta)

    @property
    def needs(self) -> Needs:
        old = self.anchor == "old_policy"
        return Needs(reference=not old, old_log_probs=old, whole_prompts=True, deterministic=False)

    def sample_settings(self) -> Mapping[str, Any]:
        return {"anchor": self.anchor}

    def advantages(self, table: RewardTable) -> Tensor:
        """The initial gradient of each completion, up to a factor: at the reference all completions are equally
        likely."""
        return centred(table.reward_PG)

    def loss(self, log_probs_N: Tensor, batch: PolicyBatch) -> Loss:
        anchor_N = batch.old_N if self.anchor == "old_policy" else batch.reference_N
        assert anchor_N is not None and batch.rewards_S is not None, "an RPO batch brings the log-probs it is asked for"
        scores_S = sums((log_probs_N - anchor_N).double(), batch.sample_N, batch.samples).to(log_probs_N.dtype)
        shape = (-1, batch.samples_per_prompt)
        return compared(self, scores_S.view(shape), batch.rewards_S.view(shape))


def compared(rule: RPO, scores_PG: Tensor, rewards_PG: Tensor) -> Loss:
    """The loss of `scores_PG`, log(policy / reference) of whole completions. A prompt with a NaN score or reward is
    left out."""
    known_P = ~(rewards_PG + scores_PG.detach()).isnan().any(1)
    scores_PG, rewards_PG = scores_PG[known_P], rewards_PG[known_P]
    loss_P = LOSSES[rule.objective](scores_PG, rewards_PG, rule.beta, rule.eta)
    accuracy_P, has_pairs_P = pair_accuracy(scores_PG, rewards_PG)
    spread_P = scores_PG.amax(1) - scores_PG.amin(1)
    observed = {
        "rewards/accuracies": (accuracy_P.sum(), has_pairs_P.sum()),
        "rewards/margins": (rule.beta * spread_P.sum(), len(loss_P)),
        "log_ratio": (scores_PG.mean(1).sum(), len(loss_P)),
    }
    return Loss(loss_P.sum(), len(loss_P), observed)

"""Reward-aware preference optimisation (RPO; Llama-Nemotron section 6, arXiv 2502.00203)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import PreferenceBatch, TokenBatch
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import LitModel, Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.reference import Reference, token_log_probs
from lnlit.objectives.policy import sums
from lnlit.objectives.preference import LOSSES
from lnlit.specs import ModelSpec


class RPO(LitModel):
    """Moves log(policy / reference) of several completions of a prompt towards their rewards' differences.

    The optimum is beta * log(policy / reference) = eta * reward, up to a constant of the prompt. The loss is divided by
    beta, so that the paper's tiny one trains; only the ratio eta / beta says how far.

    Args:
        model: folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        beta: weight of the divergence from the reference, the paper's KL penalty.
        eta: scale of the given rewards.
        loss: "backward" KL(rewards || policy), "forward" KL(policy || rewards), "squared" difference, or "dpo", which
            looks at the best completion only.
        reference: the model to compare with; null is the one to start from. Batches that bring its log-probs along need
            none.
        runtime: kernels, compilation, memory.
        lora: train low-rank adapters only; None trains every weight.
    """

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        beta: float,
        eta: float = 1.0,
        loss: Literal["backward", "forward", "squared", "dpo"] = "backward",
        reference: str | None = None,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(model, optimizer, runtime, lora)
        for name, value in {"beta": beta, "eta": eta}.items():
            if not 0 < value < float("inf"):
                raise UserError(f"{name}: expected a number above 0, got {value}")
        self.beta, self.eta, self.loss = beta, eta, loss
        self.reference = Reference(reference, self)

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        self.reference.check(spec)

    def configure_model(self) -> None:
        super().configure_model()
        self.reference.load()

    def token_log_probs(self, batch: TokenBatch) -> Tensor:
        """The policy's, at each position with a label, row by row."""
        return token_log_probs(self.decoder, batch).log_probs_N

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        loss, count, parts = self.losses(batch)
        return self.step_loss(loss, count, **parts)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        loss, count, parts = self.losses(batch)
        self.val_loss(loss, count, **parts)

    def losses(self, batch: PreferenceBatch) -> tuple[Tensor, int, dict[str, Tensor]]:
        """(loss, prompts, what shows whether it works), sums over prompts."""
        log_probs_N = self.token_log_probs(batch.tokens)
        reference_N = self.reference.log_probs(batch.tokens) if batch.reference_N is None else batch.reference_N
        ratios_S = sums(log_probs_N - reference_N, batch.sample_N, batch.rewards_PK.numel())
        scores_PK = ratios_S.view_as(batch.rewards_PK)
        loss_P = LOSSES[self.loss](scores_PK, batch.rewards_PK, self.beta, self.eta)
        spread_P = scores_PK.amax(1) - scores_PK.amin(1)
        parts = {
            "rewards/accuracies": (scores_PK.argmax(1) == batch.rewards_PK.argmax(1)).float().sum(),
            "rewards/margins": self.beta * spread_P.sum(),
            "log_ratio": scores_PK.mean(1).sum(),
        }
        return loss_P.sum(), len(loss_P), parts

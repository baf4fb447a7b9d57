"""The training method for `lnlit.rl.rpo`, on the policy's own samples (`PromptData`) or on given ones
(`PreferenceData`).

Shape suffixes: N completion tokens, P prompts, K completions per prompt.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lnlit.data.preference import PreferenceData
from lnlit.errors import UserError
from lnlit.interfaces import Loss, PolicyBatch, PreferenceBatch
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy
from lnlit.modules.reference import KnownReference, PolicySnapshot
from lnlit.objectives.policy import sums
from lnlit.rl import rpo
from lnlit.specs import ModelSpec

#: Earlier versions had these words in the place of a path.
_NOW_CALLED = {"rollout": "OldPolicy", "data": "StoredLogProbs"}


class RPO(Policy):
    """Moves log(policy / reference) of several completions of a prompt towards their rewards' differences.

    The optimum is beta * log(policy / reference) = eta * reward, up to a constant of the prompt. The loss is divided by
    beta, so that the paper's tiny one trains; only the ratio eta / beta says how far. The completions are given
    (`PreferenceData`) or the policy's own (`PromptData`).

    Args:
        model: Folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        beta: Weight of the divergence from the reference, the paper's KL penalty.
        eta: Scale of the given rewards.
        loss: "backward" KL(rewards || policy), "forward" KL(policy || rewards), "squared" difference, or "dpo", which
            looks at the best completion only.
        reference: The model to compare with; null is the one to start from. `{class_path: PolicySnapshot, init_args:
            {every_n_rollouts: 4}}` is the policy as it was before every fourth rollout of `PromptData`: these are the
            paper's iterations, in one run. `{class_path: OldPolicy}` is the policy as it was when it drew the samples,
            without a second model: each rollout is an iteration. With one update per rollout every gradient is then
            taken at the reference, where it is the same for any `beta`. `{class_path: StoredLogProbs}` takes the
            log-probs that `lnlit rollout reference` has written into the rows, without a second model too.
        temperature: The temperature at which samples are drawn and all probabilities computed.
        runtime: Kernels, compilation, memory.
        lora: Train low-rank adapters only; None trains every weight.
    """

    algorithm: rpo.RPO

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        beta: float,
        eta: float = 1.0,
        loss: Literal["backward", "forward", "squared", "dpo"] = "backward",
        reference: str | KnownReference | PolicySnapshot | None = None,
        temperature: float = 1.0,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
    ) -> None:
        if isinstance(reference, str) and reference in _NOW_CALLED:
            raise UserError(
                f"model.reference: {reference!r} is now called {{class_path: {_NOW_CALLED[reference]}}}; a folder of "
                f"that name is ./{reference}"
            )
        self.known = reference if isinstance(reference, KnownReference) else None
        # What is known already needs no second model.
        anchor = "reference" if self.known is None else "old_policy"
        algorithm = rpo.RPO(beta=beta, eta=eta, objective=loss, anchor=anchor)
        model_beside = None if isinstance(reference, KnownReference) else reference
        super().__init__(model, optimizer, algorithm, model_beside, temperature, runtime, lora)

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        if self.known is not None:
            self.known.check(isinstance(getattr(self._trainer, "datamodule", None), PreferenceData))

    # given completions

    def training_step(self, batch: PolicyBatch | PreferenceBatch, batch_idx: int) -> Tensor:
        if isinstance(batch, PolicyBatch):
            return super().training_step(batch, batch_idx)
        loss = self.losses(batch)
        self._observed["train"].add(loss.observed)
        return self.step_loss(loss.total, loss.count)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not isinstance(batch, PreferenceBatch):
            return super().validation_step(batch, batch_idx)
        loss = self.losses(batch)
        self._observed["val"].add(loss.observed)
        self.val_loss(loss.total, loss.count)

    def losses(self, batch: PreferenceBatch) -> Loss:
        """The loss of given completions with given rewards."""
        log_probs_N = self.token_log_probs(batch.tokens).log_probs_N
        shape = batch.rewards_PK.shape
        ours_PK = sums(log_probs_N.double(), batch.sample_N, shape.numel()).view(shape)
        scores_PK = (ours_PK - self._of_reference(batch)).to(log_probs_N.dtype)
        return rpo.compared(self.algorithm, scores_PK, batch.rewards_PK)

    def _of_reference(self, batch: PreferenceBatch) -> Tensor:
        """The reference's log-probs of whole completions, [P, K]; NaN where they are unknown."""
        if self.known is not None:
            return self.known.log_probs(batch, self.temperature)
        assert self.reference is not None
        reference_N = self.reference.log_probs(batch.tokens, self.temperature)
        return sums(reference_N.double(), batch.sample_N, batch.rewards_PK.numel()).view(batch.rewards_PK.shape)

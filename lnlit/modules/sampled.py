"""What methods that learn from their own samples share, and all that `Experience` knows of them.

Shape suffixes: N tokens of completions, P prompts, G samples of each, S samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import TokenBatch
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import LitModel, Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.reference import Reference, token_log_probs
from lnlit.objectives.log_probs import TokenLogProbs
from lnlit.rl.batch import Packed
from lnlit.sampling.sample import Sample
from lnlit.specs import ModelSpec


class SampledModel(LitModel, ABC):
    """A policy that learns from completions of its own. Where these come from it does not know."""

    #: Whether the samples of a prompt must be in one micro-batch.
    compares_samples = False

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        has_reference: bool,
        reference: str | None,
        temperature: float,
        runtime: Runtime,
        lora: LoRA | None,
    ) -> None:
        super().__init__(model, optimizer, runtime, lora)
        if not 0 < temperature < float("inf"):
            raise UserError(f"temperature: expected a number above 0, got {temperature}")
        self.temperature = temperature
        self.reference = Reference(reference, self) if has_reference else None

    @abstractmethod
    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """How much better each sample is than its siblings, [P, G]. A reward of NaN could not be given."""

    @abstractmethod
    def wants_own_log_probs(self, update: int) -> bool:
        """Whether samples for this update of a rollout need the log-probs under the weights they were drawn with."""

    @abstractmethod
    def make_batch(
        self, packed: Packed, samples: Sequence[Sample], samples_per_prompt: int, max_new_tokens: int
    ) -> Any:
        """What `training_step` takes, of scored samples; the samples of a prompt follow each other."""

    def penalty(self, sample: Sample) -> float:
        """What is taken from a sample's reward before it is compared with its siblings'."""
        return 0.0

    def sample_settings(self) -> dict[str, Any]:
        """What samples that were drawn, scored and compared mean nothing without."""
        fingerprint = None if self.reference is None else self.reference.fingerprint
        return {"method": type(self).__name__, "temperature": self.temperature, "reference": fingerprint}

    # building

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        if self.reference is not None:
            self.reference.check(spec)

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is not None:
            self.reference.load()

    # log-probs

    def token_log_probs(self, batch: TokenBatch) -> TokenLogProbs:
        """The policy's, at each position with a label, row by row."""
        return token_log_probs(self.decoder, batch, self.temperature)

    @torch.no_grad()
    def current_log_probs(self, batch: TokenBatch) -> Tensor:
        """The same outside a training step, [N]: in its precision, without gradient and without dropout."""
        was_training = self.decoder.training
        self.decoder.eval()
        try:
            with self.trainer.precision_plugin.forward_context():
                return self.token_log_probs(batch).log_probs_N
        finally:
            self.decoder.train(was_training)

    def reference_log_probs(self, batch: TokenBatch) -> Tensor | None:
        """The reference's likewise; None where nothing is compared with it."""
        return None if self.reference is None else self.reference.log_probs(batch, self.temperature)

    # validation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Held-out prompts come answered and judged: what is left is to log it."""
        self._log_rollout("val", batch)

    def _log_rollout(self, stage: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "reward", batch_size=1)

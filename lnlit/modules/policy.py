"""A policy that learns from its own completions, by any algorithm.

Shape suffixes: N completion tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lnlit.checkpoint.folder import hf_config
from lnlit.errors import UserError
from lnlit.interfaces import Algorithm, PolicyBatch, PolicyWeights, TokenBatch
from lnlit.models.lora import LoRA
from lnlit.models.weights import canonical_weights
from lnlit.modules.lit_model import LitModel, Runtime
from lnlit.modules.means import Means
from lnlit.modules.optim import AdamW
from lnlit.modules.reference import PolicySnapshot, reference_of
from lnlit.objectives.log_probs import TokenLogProbs
from lnlit.rollout.log_probs import token_log_probs
from lnlit.specs import ModelSpec


class Policy(LitModel):
    """Learns from its own completions, which the data module provides, by the loss of any algorithm.

    Args:
        model: Folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        algorithm: The algorithm that computes advantages and the loss.
        reference: The model to stay near, where the algorithm has one: a path, null for the start, or `PolicySnapshot`.
        temperature: The temperature at which samples are drawn and their probabilities computed.
        runtime: Kernels, compilation, memory.
        lora: Train low-rank adapters only; None trains every weight.
    """

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        algorithm: Algorithm,
        reference: str | PolicySnapshot | None = None,
        temperature: float = 1.0,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(model, optimizer, runtime, lora)
        if not isinstance(algorithm, Algorithm):
            raise UserError(f"model.algorithm: expected an Algorithm, e.g. {{class_path: grpo}}; got {algorithm!r}")
        if not 0 < temperature < float("inf"):
            raise UserError(f"temperature: expected a number above 0, got {temperature}")
        if lora is not None and lora.dropout and algorithm.needs.deterministic:
            raise UserError(
                "lora.dropout: samples are drawn without it, so every ratio of the policy to itself would be noise; "
                "set it to 0"
            )
        if lora is not None and lora.adapter and reference is None and algorithm.needs.reference:
            raise UserError(
                "reference: null is the model to start from, which is no folder with lora.adapter. To stay near it, "
                f"`lnlit import {lora.adapter} REFERENCE` and name that; to stay near its base, name {model}."
            )
        self.algorithm, self.temperature = algorithm, temperature
        self.reference = reference_of(reference, self, algorithm.needs.reference)
        self._observed = {"train": Means(), "val": Means()}

    @property
    def beside(self) -> dict[str, str]:
        return {} if self.reference is None else {"reference": self.reference.path}

    # building

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raises `UserError` if the row of a prompt lacks what the method needs."""

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        if self.reference is not None:
            self.reference.check(spec)

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is not None:
            self.reference.load()

    # what is sampled from

    @property
    def version(self) -> int:
        """The number of optimizer steps that the weights have taken."""
        return self.global_step

    @property
    def place(self) -> tuple[int, int]:
        """(this rank, number of ranks), counting those together that compute one forward pass."""
        return self.data_parallel_rank(), self.data_parallel_size()

    def weights(self) -> PolicyWeights:
        spec = self.decoder.spec
        return PolicyWeights(spec, hf_config(spec), canonical_weights(self.decoder), self.version)

    def sample_settings(self) -> dict[str, Any]:
        """The settings that samples in a checkpoint depend on. A run that resumes with other ones is refused."""
        fingerprint = None if self.reference is None else self.reference.fingerprint
        own = {"method": type(self.algorithm).__name__, "temperature": self.temperature, "reference": fingerprint}
        return {**own, **self.algorithm.sample_settings()}

    # log-probs

    def token_log_probs(self, batch: TokenBatch) -> TokenLogProbs:
        """The policy's log-probs at each position with a label, row by row."""
        return token_log_probs(self.decoder, batch, self.temperature)

    @torch.no_grad()
    def log_probs(self, batch: TokenBatch) -> Tensor:
        """The policy's log-probs outside a training step, [N]: in the precision of one, but without gradient and
        dropout."""
        was_training = self.decoder.training
        self.decoder.eval()
        try:
            with self.trainer.precision_plugin.forward_context():
                return self.token_log_probs(self.trainer.strategy.batch_to_device(batch)).log_probs_N
        finally:
            self.decoder.train(was_training)

    def reference_log_probs(self, batch: TokenBatch) -> Tensor:
        """The reference model's log-probs, [N], computed like `log_probs`."""
        assert self.reference is not None, "an algorithm that needs a reference has one"
        return self.reference.log_probs(self.trainer.strategy.batch_to_device(batch), self.temperature)

    # the step

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        self._log_rollout("train", batch.metrics)
        log_probs_N, entropy_N = self.token_log_probs(batch.tokens)
        loss = self.algorithm.loss(log_probs_N, batch)
        self._observed["train"].add({"entropy": (entropy_N.sum(), len(entropy_N)), **loss.observed})
        return self.step_loss(loss.total, loss.count)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self._log_observed("train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the metrics of held-out prompts, which the data module has already answered and judged."""
        self._log_rollout("val", batch)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._log_observed("val")

    def _log_rollout(self, stage: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "reward", batch_size=1)

    def _log_observed(self, stage: str) -> None:
        for name, value in self._observed[stage].take(self._reduce).items():
            self.log(f"{stage}/{name}", value, sync_dist=False)

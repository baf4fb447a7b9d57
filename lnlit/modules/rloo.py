"""`lnlit.rl.rloo` as a training method, with its settings beside the model's."""

from __future__ import annotations

from typing import Literal

from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy
from lnlit.objectives.kl import KL
from lnlit.objectives.policy import Clip, Correction
from lnlit.rl import rloo


class RLOO(Policy):
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
        algorithm = rloo.RLOO(ratio=ratio, clip=clip, kl=kl, correction=correction)
        super().__init__(model, optimizer, algorithm, reference, temperature, runtime, lora)

"""`lnlit.rl.rloo` as a training method, with its settings beside the model's."""

from __future__ import annotations

from typing import Any

from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy
from lnlit.rl import rloo


class RLOO(Policy):
    """Treats a whole completion as one action, and the mean reward of the prompt's other samples as its baseline.

    Args:
        model: folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        reference: the model to stay near; null is the one to start from.
        temperature: at which the samples are drawn, and their probabilities computed.
        runtime: kernels, compilation, memory.
        lora: train low-rank adapters only; None trains every weight.
        settings: those of `lnlit.rl.rloo.RLOO`: ratio, clip, kl, correction.
    """

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        reference: str | None = None,
        temperature: float = 1.0,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, optimizer, rloo.RLOO(**settings), reference, temperature, runtime, lora)

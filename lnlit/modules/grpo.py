"""`lnlit.rl.grpo` as a training method, with its settings beside the model's."""

from __future__ import annotations

from typing import Any

from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy
from lnlit.rl import grpo


class GRPO(Policy):
    """Makes samples more likely that are better than the prompt's others, and worse ones less, token by token.

    Args:
        model: folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        reference: the model to stay near; null is the one to start from.
        temperature: at which the samples are drawn, and their probabilities computed.
        runtime: kernels, compilation, memory.
        lora: train low-rank adapters only; None trains every weight.
        settings: those of `lnlit.rl.grpo.GRPO`: scale, ratio, clip, reduction, kl, correction.
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
        super().__init__(model, optimizer, grpo.GRPO(**settings), reference, temperature, runtime, lora)

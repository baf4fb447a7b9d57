"""The training method for `lnlit.rl.grpo`, with the algorithm's settings beside the model's."""

from __future__ import annotations

from typing import Any

from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy, PolicySnapshot
from lnlit.rl import grpo


class GRPO(Policy):
    """Makes samples more likely that are better than the prompt's others, and worse ones less, token by token.

    Args:
        model: Folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        reference: The model to stay near: a path, null for the one to start from, or `PolicySnapshot`.
        temperature: The temperature at which samples are drawn and their probabilities computed.
        runtime: Kernels, compilation, memory.
        lora: Train low-rank adapters only; None trains every weight.
        settings: The settings of `lnlit.rl.grpo.GRPO`: scale_rewards, ratio, clip, reduction, kl, correction.
    """

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        reference: str | PolicySnapshot | None = None,
        temperature: float = 1.0,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, optimizer, grpo.GRPO(**settings), reference, temperature, runtime, lora)

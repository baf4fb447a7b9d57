"""What the model says while it trains, thinking on and off, as TensorBoard text."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lnlit.checkpoint.load import inference_copy
from lnlit.models.generate import Sampling, generate


class SampleGenerations(L.Callback):
    """Generates greedy answers to a few prompts, with the toggle on and off, at the start, every n steps and the end.

    Args:
        prompts: user messages.
        every_n_steps: optimizer steps between samples; 0 samples at the start and the end only.
        max_new_tokens: length limit of each answer.
    """

    def __init__(self, prompts: list[str], every_n_steps: int = 0, max_new_tokens: int = 128) -> None:
        self.prompts, self.every_n_steps = prompts, every_n_steps
        self.sampling = Sampling(max_new_tokens=max_new_tokens)
        self._sampled_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sample(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self.sample(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sample(trainer, pl_module)

    def sample(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == self._sampled_step:
            return
        self._sampled_step = trainer.global_step
        encoder = trainer.datamodule.encoder  # type: ignore[attr-defined]
        modes = ("on", "off")
        chats = [encoder.encode_prompt([{"role": "user", "content": p}], mode) for p in self.prompts for mode in modes]
        with torch.autocast(pl_module.device.type, torch.bfloat16):
            results = generate(inference_copy(pl_module.decoder), chats, self.sampling, encoder.end_ids())  # type: ignore[arg-type]
        texts = iter(encoder.tokenizer.decode(result.token_ids) for result in results)
        for index, prompt in enumerate(self.prompts):
            rows = [f"**{prompt}**", *(f"*thinking {mode}*\n```\n{next(texts)}\n```" for mode in modes)]
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text(f"samples/{index}", "\n\n".join(rows), trainer.global_step)

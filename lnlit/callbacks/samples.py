"""Logs what the model answers while it trains, with thinking on and off, as text in every logger."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import lightning as L
import torch

from lnlit.callbacks.boards import log_text
from lnlit.callbacks.export import ExportsFiles
from lnlit.callbacks.interrupt import stopped_by
from lnlit.data.chat import ChatEncoder
from lnlit.data.rows import asked
from lnlit.errors import UserError
from lnlit.interfaces import Source
from lnlit.models.generate import Sampling, generate
from lnlit.models.weights import inference_copy


class SampleGenerations(L.Callback):
    """Generates greedy answers to a few prompts with thinking on and off: at the start, every n steps and at the end.

    Does nothing without a logger, with data that are not chats, or when training a reward model.

    Args:
        prompts: User messages. By default the first two distinct ones of the training data.
        every_n_steps: Optimizer steps between samples. 0 samples only at the start and the end.
        max_new_tokens: The maximum length of each answer in tokens.
    """

    def __init__(self, prompts: list[str] | None = None, every_n_steps: int = 0, max_new_tokens: int = 64) -> None:
        if every_n_steps < 0:
            raise UserError(f"SampleGenerations.every_n_steps: expected 0 or a positive number, got {every_n_steps}")
        self.prompts, self.every_n_steps = prompts, every_n_steps
        self.sampling = Sampling(max_new_tokens=max_new_tokens)
        self.sampling.check()
        self._sampled_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sample(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self.sample(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sample(trainer, pl_module)

    def sample(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        chat = isinstance(getattr(data, "encoder", None), ChatEncoder) and hasattr(pl_module, "decoder")
        judges = isinstance(pl_module, ExportsFiles)  # a reward model: it has a head beside its decoder
        if not trainer.loggers or not chat or judges:
            return
        if trainer.global_step == self._sampled_step or stopped_by(trainer) is not None:
            return
        self._sampled_step = trainer.global_step
        if self.prompts is None:
            source = data.source if hasattr(data, "source") else data.stages[0][0].source
            self.prompts = _first_questions(source)
        if not self.prompts:
            return
        encoder, modes = data.encoder, ("on", "off")
        chats = [encoder.encode_prompt([{"role": "user", "content": p}], mode) for p in self.prompts for mode in modes]
        room = pl_module.decoder.spec.context_length - max(map(len, chats))  # type: ignore
        if room < 1:  # these prompts fill the context; a sample is not worth stopping a run
            return
        sampling = replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, room))
        decoder = inference_copy(pl_module.decoder)  # type: ignore[arg-type]
        with torch.autocast(pl_module.device.type, torch.bfloat16):
            results = generate(decoder, chats, sampling, encoder.end_ids())
        texts = iter(encoder.completion(chat, said.token_ids) for chat, said in zip(chats, results, strict=True))
        for index, prompt in enumerate(self.prompts):
            parts = [f"**{prompt}**", *(f"*thinking {mode}*\n```\n{next(texts)}\n```" for mode in modes)]
            log_text(trainer.loggers, f"samples/{index}", "\n\n".join(parts), trainer.global_step)


def _first_questions(source: Source, count: int = 2) -> list[str]:
    """The last user message of each of the first rows, without duplicates."""
    found: dict[str, None] = {}
    for row in islice(source.rows(), 20):
        found.update(dict.fromkeys([m["content"] for m in asked(row).messages if m["role"] == "user"][-1:]))
    return list(found)[:count]

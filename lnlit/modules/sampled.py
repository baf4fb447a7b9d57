"""What methods that learn from their own samples share, and all that `Experience` knows of them.

Shape suffixes: N tokens of completions, P prompts, G samples of each, S samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnlit.data.packing import round_up
from lnlit.errors import UserError
from lnlit.interfaces import IGNORE, TokenBatch
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import LitModel, Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.reference import Reference, token_log_probs
from lnlit.objectives.log_probs import TokenLogProbs
from lnlit.rollout.sample import Sample
from lnlit.specs import ModelSpec

#: Batches have a multiple of so many tokens, as FP8 matrix products want it.
_MULTIPLE = 16


@dataclass(frozen=True)
class Packed:
    """Samples as a packed batch. N of its positions have a label, sample by sample; `sample_N` says whose each is."""

    tokens: TokenBatch
    sample_N: Tensor
    samples: int

    def join(self, values_S: Sequence[Tensor]) -> Tensor:
        """One tensor per sample, of all its tokens -> [N], without samples that are not learned from."""
        return torch.cat([v[:n] for v, n in zip(values_S, self._counts(), strict=True)]).to(self.sample_N.device)

    def split(self, values_N: Tensor) -> list[Tensor]:
        """[N] -> one tensor per sample, on the CPU."""
        return [part.clone() for part in values_N.cpu().split(self._counts())]  # a view would pickle all the others too

    def _counts(self) -> list[int]:
        return torch.bincount(self.sample_N.cpu(), minlength=self.samples).tolist()


def pack(samples: Sequence[Sample], learned_S: Sequence[bool], padding_id: int) -> Packed:
    """All tokens that predict what is learned, in one row. Samples of a prompt that follow each other share it: what
    each has of its own begins with the prompt's last token, which predicts the completion's first.
    """
    tokens, labels, positions, counts = [], [], [], []
    documents: list[list[int]] = []
    written, prompt = None, range(0)
    for sample, learned in zip(samples, learned_S, strict=True):
        answer = sample.rollout.token_ids if learned else ()
        counts.append(len(answer))
        if not answer:
            continue
        prompt_ids = sample.rollout.prompt_ids
        if prompt_ids != written:
            written = prompt_ids
            prompt = range(len(tokens), len(tokens) + len(prompt_ids) - 1)
            tokens += prompt_ids[:-1]
            labels += [IGNORE] * len(prompt)
            positions += range(len(prompt))
        documents.append([*prompt, *range(len(tokens), len(tokens) + len(answer))])
        tokens += [prompt_ids[-1], *answer[:-1]]
        labels += answer
        positions += range(len(prompt), len(prompt) + len(answer))
    if padding := round_up(max(len(tokens), 1), _MULTIPLE) - len(tokens):
        documents.append([*range(len(tokens), len(tokens) + padding)])
        tokens += [padding_id] * padding
        labels += [IGNORE] * padding
        positions += range(padding)
    places = [place for document in documents for place in document]
    tokens_1T, labels_1T, positions_1T = (torch.tensor([row]) for row in (tokens, labels, positions))
    places_E = torch.tensor(places) if len(places) > len(tokens) else None
    batch = TokenBatch(tokens_1T, labels_1T, positions_1T, [len(document) for document in documents], places_E)
    return Packed(batch, torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)), len(samples))


class SampledModel(LitModel, ABC):
    """A policy that learns from completions of its own. Where these come from it does not know."""

    #: Whether the samples of a prompt must be in one micro-batch.
    compares_samples = False

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        has_reference: bool,
        reference: str | None,
        temperature: float,
        runtime: Runtime,
        lora: LoRA | None,
    ) -> None:
        super().__init__(model, optimizer, runtime, lora)
        if not 0 < temperature < float("inf"):
            raise UserError(f"temperature: expected a number above 0, got {temperature}")
        self.temperature = temperature
        self.reference = Reference(reference, self) if has_reference else None

    @abstractmethod
    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """How much better each sample is than its siblings, [P, G]. A reward of NaN could not be given."""

    @abstractmethod
    def wants_own_log_probs(self, update: int) -> bool:
        """Whether samples for this update of a rollout need the log-probs under the weights they were drawn with."""

    @abstractmethod
    def make_batch(
        self, packed: Packed, samples: Sequence[Sample], samples_per_prompt: int, max_new_tokens: int
    ) -> Any:
        """What `training_step` takes, of scored samples; the samples of a prompt follow each other."""

    def penalty(self, sample: Sample) -> float:
        """What is taken from a sample's reward before it is compared with its siblings'."""
        return 0.0

    def sample_settings(self) -> dict[str, Any]:
        """What samples that were drawn, scored and compared mean nothing without."""
        fingerprint = None if self.reference is None else self.reference.fingerprint
        return {"method": type(self).__name__, "temperature": self.temperature, "reference": fingerprint}

    # building

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        if self.reference is not None:
            self.reference.check(spec)

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is not None:
            self.reference.load()

    # log-probs

    def token_log_probs(self, batch: TokenBatch) -> TokenLogProbs:
        """The policy's, at each position with a label, row by row."""
        return token_log_probs(self.decoder, batch, self.temperature)

    @torch.no_grad()
    def current_log_probs(self, batch: TokenBatch) -> Tensor:
        """The same outside a training step, [N]: in its precision, without gradient and without dropout."""
        was_training = self.decoder.training
        self.decoder.eval()
        try:
            with self.trainer.precision_plugin.forward_context():
                return self.token_log_probs(batch).log_probs_N
        finally:
            self.decoder.train(was_training)

    def reference_log_probs(self, batch: TokenBatch) -> Tensor | None:
        """The reference's likewise; None where nothing is compared with it."""
        return None if self.reference is None else self.reference.log_probs(batch, self.temperature)

    # validation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Held-out prompts come answered and judged: what is left is to log it."""
        self._log_rollout("val", batch)

    def _log_rollout(self, stage: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "reward", batch_size=1)

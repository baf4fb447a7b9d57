"""Samples as packed batches: what is computed together, and whose each token is.

Shape suffixes: N tokens of completions, S samples.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lnlit.data.packing import round_up
from lnlit.interfaces import IGNORE, PolicyBatch, TokenBatch
from lnlit.sampling.sample import Drawn, Sample

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


def pack(samples: Sequence[Drawn], learned_S: Sequence[bool], padding_id: int) -> Packed:
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


def policy_batch(
    packed: Packed, samples: Sequence[Sample], samples_per_prompt: int, max_new_tokens: int
) -> PolicyBatch:
    """What an algorithm makes a loss of. Log-probs that one sample has all have."""
    advantages_S = torch.tensor([sample.advantage for sample in samples], dtype=torch.float64)
    rewards = [sample.reward if sample.learned else torch.nan for sample in samples]
    old_S = [sample.old_log_probs for sample in samples if sample.old_log_probs is not None]
    reference_S = [sample.reference_log_probs for sample in samples if sample.reference_log_probs is not None]
    return PolicyBatch(
        packed.tokens,
        packed.sample_N,
        len(samples),
        advantages_S[packed.sample_N],
        packed.join(old_S) if old_S else None,
        packed.join([sample.engine_log_probs for sample in samples]),
        packed.join(reference_S) if reference_S else None,
        max_new_tokens,
        torch.tensor(rewards, dtype=torch.float64),
        samples_per_prompt,
    )


def micro_batches(
    samples: Sequence[Drawn], samples_per_prompt: int, parts: int, whole_prompts: bool
) -> list[list[int]]:
    """Indices of samples in `parts` lists that cost about the same.

    The samples of a prompt share its tokens and so stay together, but are dealt out to several parts where there are
    fewer prompts than parts and nothing asks for `whole_prompts`.
    """
    together = samples_per_prompt
    while not whole_prompts and len(samples) < together * parts and together > 1:
        together = next(size for size in range(together - 1, 0, -1) if samples_per_prompt % size == 0)
    units = [samples[at : at + together] for at in range(0, len(samples), together)]
    costs = [len(unit[0].rollout.prompt_ids) + sum(len(s.rollout.token_ids) for s in unit) for unit in units]
    return [[at * together + more for at in part for more in range(together)] for part in balanced(costs, parts)]


def balanced(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of `sizes` in `parts` lists of about the same sum: longest first, each to the part with the least.

    Within a part the indices ascend, so that neighbours stay neighbours.
    """
    heap = [(0, part) for part in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        total, part = heapq.heappop(heap)
        found[part].append(index)
        heapq.heappush(heap, (total + sizes[index], part))
    return [sorted(part) for part in found]

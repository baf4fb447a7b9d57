"""Packs samples into batches.

Shape suffixes: N completion tokens, S samples.
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

#: The number of tokens in a batch is a multiple of this, as FP8 matrix products require.
_MULTIPLE = 16


@dataclass(frozen=True)
class Packed:
    """Samples as a packed batch. N of its positions have a label, sample by sample; `sample_N` is the index of the
    sample that each belongs to."""

    tokens: TokenBatch
    sample_N: Tensor
    samples: int

    def join(self, values_S: Sequence[Tensor]) -> Tensor:
        """Concatenates one tensor per sample, with a value for each of its tokens, to [N]. Samples that are not learned
        from are left out."""
        return torch.cat([v[:n] for v, n in zip(values_S, self._counts(), strict=True)]).to(self.sample_N.device)

    def split(self, values_N: Tensor) -> list[Tensor]:
        """Splits [N] into one tensor per sample, on the CPU."""
        return [part.clone() for part in values_N.cpu().split(self._counts())]  # a view would pickle all the others too

    def _counts(self) -> list[int]:
        return torch.bincount(self.sample_N.cpu(), minlength=self.samples).tolist()


def pack(samples: Sequence[Drawn], learned_S: Sequence[bool], padding_id: int) -> Packed:
    """Packs samples into one row. Consecutive samples of the same prompt share its tokens. What follows is separate for
    each sample, and begins with the prompt's last token, which predicts the completion's first."""
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
    gather_index = [index for document in documents for index in document]
    tokens_1T, labels_1T, positions_1T = (torch.tensor([row]) for row in (tokens, labels, positions))
    gather_index_E = torch.tensor(gather_index) if len(gather_index) > len(tokens) else None
    batch = TokenBatch(tokens_1T, labels_1T, positions_1T, [len(document) for document in documents], gather_index_E)
    return Packed(batch, torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)), len(samples))


def policy_batch(
    packed: Packed, samples: Sequence[Sample], samples_per_prompt: int, max_new_tokens: int
) -> PolicyBatch:
    """The batch that an algorithm computes a loss from. Either all samples have old (or reference) log-probs or none
    has."""
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
        [sample.teacher for sample in samples],
    )


def micro_batches(
    samples: Sequence[Drawn], samples_per_prompt: int, parts: int, whole_prompts: bool
) -> list[list[int]]:
    """Divides samples into `parts` lists of indices with about equal cost.

    The samples of a prompt share its tokens and therefore stay together. They are divided only if there are fewer
    prompts than parts and `whole_prompts` is false.
    """
    together = samples_per_prompt
    while not whole_prompts and len(samples) < together * parts and together > 1:
        together = next(size for size in range(together - 1, 0, -1) if samples_per_prompt % size == 0)
    units = [samples[at : at + together] for at in range(0, len(samples), together)]
    costs = [len(unit[0].rollout.prompt_ids) + sum(len(s.rollout.token_ids) for s in unit) for unit in units]
    return [[at * together + more for at in part for more in range(together)] for part in balanced(costs, parts)]


def balanced(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Divides the indices of `sizes` into `parts` lists with about equal sums: the largest first, each to the part with
    the smallest sum.

    Indices ascend within a part, so that neighbours stay neighbours.
    """
    heap = [(0, part) for part in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        total, part = heapq.heappop(heap)
        found[part].append(index)
        heapq.heappush(heap, (total + sizes[index], part))
    return [sorted(part) for part in found]

"""A reward that is a trained reward model. It reads model folders, so it cannot live beside the other rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.checkpoint.load import frozen_decoder
from lnlit.data.chat import ChatEncoder, Document
from lnlit.data.packing import collate
from lnlit.data.tokenizer import load_tokenizer, pad_id
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, RewardRequest, RewardResult
from lnlit.models.decoder import Decoder
from lnlit.models.device import torch_device
from lnlit.models.ranks import all_gather, merged, my_place
from lnlit.models.reward_head import RewardHead, load_head, scores
from lnlit.models.weights import gathered, reshard

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class ModelReward(BatchReward):
    """The score that a reward model gives to the completion as the last assistant turn. The turn is treated as
    finished.

    The prompt is rendered with its own system prompt and the reward model's chat template. A completion that does not
    fit into the model's context together with its prompt has no reward.

    Where the policy is sharded, so is this model, over the same ranks. These judge the completions of all together.

    Args:
        model: Folder written by `RewardModel` with `ExportModel`, or any model folder if `logit_index` is set.
        logit_index: The reward is this one of the language model's logits after the last turn, as for NVIDIA's
            Llama-3.1-Nemotron-70B-Reward with logit 0. Null uses the head in the folder.
        batch_tokens: Number of tokens scored together, on each rank.
        dtype: The dtype of weights and activations; the head computes in fp32.
        device: A device such as "cuda:1", which holds the whole model. Null is the GPU if there is one.
    """

    def __init__(
        self,
        model: str,
        logit_index: int | None = None,
        batch_tokens: int = 16384,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        device: str | None = None,
    ) -> None:
        if batch_tokens < 1:
            raise UserError(f"batch_tokens: expected a positive number, got {batch_tokens}")
        if logit_index is not None and logit_index < 0:
            raise UserError(f"logit_index: expected the number of a token, 0 or more, or null, got {logit_index}")
        self.logit_index = logit_index
        self.model, self.batch_tokens, self.dtype = model, batch_tokens, dtype
        self.device = device or torch_device()
        self._is_placed = device is not None
        self._mesh: DeviceMesh | None = None

    def shard(self, mesh: DeviceMesh | None) -> None:
        """Sets the mesh of a policy that the next load divides the model over, unless it has a device of its own. With
        None, each rank has all of it."""
        self.close()
        self._mesh = mesh if self.may_be_sharded else None

    @property
    def may_be_sharded(self) -> bool:
        """False if a device was named for it."""
        return not self._is_placed

    @property
    def is_collective(self) -> bool:
        return self._mesh is not None

    @cached_property
    def encoder(self) -> ChatEncoder:
        return ChatEncoder(load_tokenizer(self.model))

    @cached_property
    def network(self) -> tuple[Decoder, RewardHead]:
        spec = read_spec(self.model)
        head = RewardHead(spec.hidden_size)
        if self.logit_index is None:
            load_head(head, resolve(self.model))
        elif self.logit_index >= spec.vocab_size:
            raise UserError(f"logit_index: {self.model} has {spec.vocab_size} of them, so none is {self.logit_index}")
        decoder = frozen_decoder(self.model, self.device, _DTYPES[self.dtype], mesh=self._mesh)
        if self.logit_index is not None:
            head.weight.data.copy_(gathered(decoder.head_weight)[self.logit_index : self.logit_index + 1])
        return decoder, head.to(self.device)

    def score_batch(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        context = self.network[0].spec.context_length
        results: list[RewardResult] = [RewardResult(None)] * len(requests)
        documents: dict[int, Document] = {}
        for index, request in enumerate(requests):
            row = {"messages": [*request.messages, {"role": "assistant", "content": request.completion}]}
            try:
                document = self.encoder.encode_replies([row])[0]
            except UserError as error:  # such as a template that would not show the judge the thinking
                results[index] = RewardResult(None, str(error))
                continue
            if len(document) <= context:
                documents[index] = document
            else:
                error = f"{len(document)} tokens with the prompt; the reward model's context is {context}"
                results[index] = RewardResult(None, error)
        for index, value in zip(documents, self._of_all(list(documents.values())), strict=True):
            results[index] = RewardResult(value)
        return results

    def close(self) -> None:
        vars(self).pop("network", None)

    def _of_all(self, documents: Sequence[Document]) -> list[float]:
        """The scores of documents. Ranks with a part of the model each score a group of all ranks' documents at a time,
        some of them one that another scores too, because none may be missing."""
        rank, ranks, shared = *my_place(), 1
        if self._mesh is None:
            everyone, rank, ranks = [documents], 0, 1
        else:
            shared = self._mesh["tensor_parallel"].size()  # so many see the same group
            everyone = all_gather(documents)
        first, flat = sum(map(len, everyone[:rank])), [each for theirs in everyone for each in theirs]
        groups = list(self._groups(flat))
        found: dict[int, float] = {}
        for start in range(0, len(groups), ranks // shared):
            group = groups[min(start + rank // shared, len(groups) - 1)]
            found |= zip(group, self._scores([flat[index] for index in group]).tolist(), strict=True)
        if self._mesh is not None:
            reshard(self.network[0])
            found = merged(found)
        return [found[first + index] for index in range(len(documents))]

    def _groups(self, documents: Sequence[Document]) -> Iterator[list[int]]:
        """Groups of documents of similar length, each of at most `batch_tokens` tokens or a single document."""
        group: list[int] = []
        for index in sorted(range(len(documents)), key=lambda i: len(documents[i])):
            if group and sum(len(documents[i]) for i in [*group, index]) > self.batch_tokens:
                yield group
                group = []
            group.append(index)
        if group:
            yield group

    @torch.no_grad()
    def _scores(self, replies: Sequence[Document]) -> Tensor:
        """The scores of documents packed in one row without padding."""
        decoder, head = self.network
        batch = collate([replies], sum(map(len, replies)), pad_id(self.encoder.tokenizer))
        learned = torch.tensor([sum(reply.loss_mask[1:]) for reply in replies])
        sample_N = torch.repeat_interleave(torch.arange(len(replies)), learned)
        batch.tokens, batch.labels, batch.positions = (
            tensor.to(self.device) for tensor in (batch.tokens, batch.labels, batch.positions)
        )
        return scores(decoder, head, batch, sample_N.to(self.device), len(replies))

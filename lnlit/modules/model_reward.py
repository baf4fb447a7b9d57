"""A reward that is a trained reward model. It reads model folders, so it cannot live beside the other rewards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.checkpoint.load import frozen_decoder
from lnlit.data.chat import ChatEncoder, Document
from lnlit.data.packing import collate
from lnlit.data.tokenizer import load_tokenizer, pad_id
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, RewardRequest, RewardResult
from lnlit.models.decoder import Decoder
from lnlit.models.device import torch_device
from lnlit.models.reward_head import RewardHead, load_head, scores

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class ModelReward(BatchReward):
    """The score that a reward model gives to the completion as the last assistant turn. The turn is treated as
    finished.

    The prompt is rendered with its own system prompt and the reward model's chat template. A completion that does not
    fit into the model's context together with its prompt has no reward.

    Args:
        model: Folder written by `RewardModel` with `ExportModel`, or any model folder if `logit_index` is set.
        logit_index: The reward is this one of the language model's logits after the last turn, as for NVIDIA's
            Llama-3.1-Nemotron-70B-Reward with logit 0. Null uses the head in the folder.
        batch_tokens: Number of tokens scored together.
        dtype: The dtype of weights and activations; the head computes in fp32.
        device: A device such as "cuda:1". Null is the GPU if there is one.
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
        decoder = frozen_decoder(self.model, self.device, _DTYPES[self.dtype])
        if self.logit_index is not None:
            head.weight.data.copy_(decoder.head_weight[self.logit_index : self.logit_index + 1])
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
        for group in self._groups(documents):
            for index, value in zip(group, self._scores([documents[i] for i in group]).tolist(), strict=True):
                results[index] = RewardResult(value)
        return results

    def close(self) -> None:
        vars(self).pop("network", None)

    def _groups(self, documents: Mapping[int, Document]) -> Iterator[list[int]]:
        """Groups of documents of similar length, each of at most `batch_tokens` tokens or a single document."""
        group: list[int] = []
        for index in sorted(documents, key=lambda i: len(documents[i])):
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

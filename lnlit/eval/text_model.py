"""A model folder that is asked with texts: how likely they are, and how it goes on from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from lnlit.checkpoint.load import frozen_decoder
from lnlit.data.rows import conversation
from lnlit.data.tokenizer import check_tokenizer, read_tokenizer
from lnlit.end_of_turn import end_ids
from lnlit.errors import UserError
from lnlit.eval.likelihood import encode_texts, log_likelihoods, prefix_id
from lnlit.eval.pair_likelihood import Pair, PairLikelihood, check_finite, pair_likelihoods
from lnlit.files import expanded
from lnlit.interfaces import Continuations, Likelihood
from lnlit.models.device import torch_device
from lnlit.models.generate import Sampling, generate
from lnlit.thinking import CLOSE, OPEN, TAGS, Thinking, answer_of, on_or_off, opened


class TextModel:
    """A model with its tokenizer, in memory.

    Args:
        model: A model folder, of any architecture that lnlit reads.
        dtype: The dtype of its weights.
        thinking: The toggle in the system prompt of chats; none if null.
        batch_tokens: Tokens whose likelihoods are computed together.
        batch_size: Texts that are continued together.
        device: The device to compute on. Null is the GPU if there is one.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        thinking: Thinking | None = None,
        batch_tokens: int = 2048,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        if dtype not in ("bfloat16", "float32"):
            raise UserError(f"dtype: expected bfloat16 or float32, got {dtype!r}.")
        if batch_size < 1:
            raise UserError(f"batch_size: expected a positive number, got {batch_size}.")
        self.thinking: Thinking | None = None if thinking is None else on_or_off(thinking)
        self.batch_tokens, self.batch_size = batch_tokens, batch_size
        self.tokenizer = read_tokenizer(model)
        self.decoder = frozen_decoder(expanded(model), device or torch_device(), getattr(torch, dtype))
        self.context_length = self.decoder.spec.context_length

    @property
    def prefix_id(self) -> int:
        """The token that stands before a text without context."""
        return prefix_id(self.tokenizer)

    @property
    def eos_id(self) -> int:
        """The tokenizer's end of sequence, or the token before a text if there is none."""
        token = self.tokenizer.eos_token_id
        return token if isinstance(token, int) else self.prefix_id

    @cached_property
    def end_ids(self) -> list[int]:
        """The tokens that end generation."""
        return end_ids(self.tokenizer) if self.tokenizer.chat_template else [self.eos_id]

    def encode(self, texts: Sequence[str], special_tokens: bool | None = None) -> list[list[int]]:
        """Token ids of texts; see `encode_texts`."""
        return encode_texts(self.tokenizer, texts, special_tokens)

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """A conversation as the chat template writes it, with the toggle. Without a generation prompt, the last message
        stays open."""
        check_tokenizer(self.tokenizer)
        said = list(conversation({"messages": list(messages)}, self.thinking).messages) if self.thinking else messages
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(said),  # type: ignore[arg-type]
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )
        except Exception as error:  # a template may raise anything, e.g. jinja's TemplateError
            roles = ", ".join(str(message.get("role")) for message in said)
            raise UserError(f"the chat template refuses a conversation of {roles}: {error}") from error

    def log_likelihoods(self, questions: Iterable[Continuations]) -> Iterator[list[Likelihood]]:
        """The likelihoods of each question's continuations, in order."""
        return log_likelihoods(self.decoder, self.tokenizer, questions, self.batch_tokens)

    def pair_likelihoods(self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Iterator[PairLikelihood]:
        """The likelihoods of continuations behind contexts, both as token ids, in order."""
        asked = (Pair(context, continuation) for context, continuation in pairs)
        for number, found in enumerate(pair_likelihoods(self.decoder, asked, self.batch_tokens), start=1):
            check_finite(found.log_prob, f"text {number}")
            yield found

    def continued(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
    ) -> Iterator[tuple[int, str]]:
        """(index of a prompt, how the model goes on), as they are finished.

        A text ends before the first of the strings `stop`, which count only where the model does not think. Thinking is
        not part of it: thinking that was cut off gives an empty text. A prompt that leaves no room for
        `max_new_tokens` loses its beginning. Temperature 0 is greedy. Each prompt has a seed.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p)
        sampling.check()
        room = self.context_length - max_new_tokens
        if room < 1:
            raise UserError(
                f"max_new_tokens: {max_new_tokens} leave no room for a prompt in the model's context of "
                f"{self.context_length}."
            )
        ids = [each[-room:] for each in self.encode(prompts)]
        order = sorted(range(len(prompts)), key=lambda index: len(ids[index]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            said = [_Said(self, opened(prompts[index]), stop) for index in batch]
            generate(
                self.decoder,
                [ids[index] for index in batch],
                sampling,
                self.end_ids,
                lambda row, token, said=said: said[row].add(token),
                [seeds[index] for index in batch],
            )
            yield from ((index, each.text()) for index, each in zip(batch, said, strict=True))

    @cached_property
    def _hidden_ids(self) -> set[int]:
        """The special tokens that are no part of a text."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {token for token, each in added if each.special and each.content not in TAGS}

    def decode(self, token_ids: Sequence[int], special_tokens: bool = False) -> str:
        """The text of token ids, with or without special tokens other than the tags of thinking."""
        kept = [token for token in token_ids if special_tokens or token not in self._hidden_ids]
        return str(self.tokenizer.decode(kept))


class _Said:
    """What a model has said so far behind a prompt. `opened` is the tag that begins its thinking, if the prompt ends
    with one."""

    def __init__(self, model: TextModel, opened: str, stop: Sequence[str]) -> None:
        self.model, self.opened, self.stop = model, opened, [text for text in stop if text]
        self.token_ids: list[int] = []
        #: A token has one byte at least.
        self._tail = max((len(text.encode()) for text in self.stop), default=0) + 4

    def add(self, token: int) -> bool:
        """True if the text is complete."""
        self.token_ids.append(token)
        if not self.stop or not self._has_stop(self.model.decode(self.token_ids[-self._tail :], special_tokens=True)):
            return False
        whole = self.opened + self.model.decode(self.token_ids, special_tokens=True)
        thinks = whole.rfind(OPEN) > whole.rfind(CLOSE)
        return not thinks and self._has_stop(answer_of(whole))

    def text(self) -> str:
        whole = self.opened + self.model.decode(self.token_ids)
        answer = answer_of(whole)
        answer = answer if answer == whole else answer.lstrip()
        return answer[: min([len(answer), *(answer.find(text) for text in self.stop if text in answer)])]

    def _has_stop(self, text: str) -> bool:
        return any(each in text for each in self.stop)

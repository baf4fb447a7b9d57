"""Log-likelihoods of the continuations of questions, tokenised as EleutherAI's harness does (lm-eval 0.4.13)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from lnlit.errors import UserError
from lnlit.eval.pair_likelihood import Pair, PairLikelihood, check_finite, check_pair, pair_likelihoods
from lnlit.interfaces import Continuations, Likelihood, Windows
from lnlit.models.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Questions that are tokenised together, which is faster.
_QUESTIONS = 256
#: A question with the pairs of each of its continuations: one, or one for each window.
_Encoded = tuple[Continuations, list[list[Pair]]]


def log_likelihoods(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, questions: Iterable[Continuations], batch_tokens: int = 2048
) -> Iterator[list[Likelihood]]:
    """The likelihoods of each question's continuations, question by question in order, as soon as they are known.

    Args:
        decoder: The model.
        tokenizer: The model's tokenizer.
        questions: Questions, read as they are needed. Neighbours that begin with the same text are fast.
        batch_tokens: Tokens that go through the model together. More than a CPU's cache holds is slower there.

    Raises:
        UserError: A continuation has no tokens, is longer than the model's context and has no windows, or its
            log-probability is no finite number. The message names the question.
    """
    waiting: deque[_Encoded] = deque()

    def pairs() -> Iterator[Pair]:
        for question in _encoded(tokenizer, questions, decoder.spec.context_length):
            waiting.append(question)
            for parts in question[1]:
                yield from parts

    found: list[PairLikelihood] = []
    for one in pair_likelihoods(decoder, pairs(), batch_tokens):
        question, texts = waiting[0]
        check_finite(one.log_prob, f"question {question.key}")
        found.append(one)
        if len(found) == sum(map(len, texts)):
            own = iter(found)
            yield [
                _joined(text, parts, list(islice(own, len(parts))))
                for text, parts in zip(question.continuations, texts, strict=True)
            ]
            waiting.popleft()
            found = []


def _joined(text: str, pairs: Sequence[Pair], found: Sequence[PairLikelihood]) -> Likelihood:
    return Likelihood(
        sum(each.log_prob for each in found),
        sum(len(pair.continuation) for pair in pairs),
        len(text.encode()),
        all(each.is_greedy for each in found),
        max(each.left_out for each in found),
    )


def _encoded(
    tokenizer: PreTrainedTokenizerBase, questions: Iterable[Continuations], context: int
) -> Iterator[_Encoded]:
    remaining = iter(questions)
    while block := list(islice(remaining, _QUESTIONS)):
        pairs = iter(encode_pairs(tokenizer, [text for question in block for text in _texts(question)]))
        for question in block:
            try:
                if not question.continuations:
                    raise UserError("there are no continuations to compare.")
                if question.windows is None:
                    found = [[next(pairs)] for _ in question.continuations]
                else:
                    found = [_windowed(tokenizer, text, question.windows, context) for text in question.continuations]
                for pair in (pair for parts in found for pair in parts):
                    check_pair(pair, context)
            except UserError as error:
                raise UserError(f"question {question.key}: {error}") from error
            yield question, found


def _texts(question: Continuations) -> list[tuple[str, str]]:
    """(context, continuation) of each continuation that is read as a whole."""
    contexts = [question.context] if isinstance(question.context, str) else question.context
    try:
        _check_unicode([*contexts, *question.continuations])
    except UserError as error:
        raise UserError(f"question {question.key}: {error}") from error
    if question.windows is not None:
        if question.context:
            raise UserError(f"question {question.key}: windows are for continuations without a context.")
        return []
    if isinstance(question.context, str):
        return [(question.context, text) for text in question.continuations]
    if len(question.context) != len(question.continuations):
        raise UserError(
            f"question {question.key}: has {len(question.context)} contexts for {len(question.continuations)} "
            "continuations; give one context, or one for each."
        )
    return list(zip(question.context, question.continuations, strict=True))


# Tokens


def encode_pairs(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> list[Pair]:
    """Token ids of contexts and their continuations.

    White space at a context's end is moved to its continuation, because most tokenizers join it to the word behind. A
    continuation's tokens are those that the two texts together have more than the context alone. Without a context, the
    tokenizer's first token stands for it.
    """
    moved = []
    for context, continuation in texts:
        kept = context.rstrip()
        moved.append((kept, context[len(kept) :] + continuation))
    fronts = dict.fromkeys(front for front, _ in moved if front)
    front_ids = dict(zip(fronts, encode_texts(tokenizer, list(fronts)), strict=True))
    wholes = iter(encode_texts(tokenizer, [front + back for front, back in moved if front]))
    alone = iter(encode_texts(tokenizer, [back for front, back in moved if not front], special_tokens=False))
    pairs = []
    for front, _ in moved:
        if front:
            ids = front_ids[front]
            pairs.append(Pair(ids, next(wholes)[len(ids) :]))
        else:
            ids, first = next(alone), prefix_id(tokenizer)
            pairs.append(Pair(ids[:1], ids[1:]) if ids[:1] == [first] else Pair([first], ids))
    return pairs


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special_tokens: bool | None = None
) -> list[list[int]]:
    """Token ids of each text. `special_tokens` says whether the tokenizer adds those that begin or end a text. By
    default it does, but not to a text that begins with its first token already, as a rendered chat does."""
    if special_tokens is None:
        first = str(tokenizer.decode([prefix_id(tokenizer)]))
        begun = [bool(first) and text.startswith(first) for text in texts]
        found = {
            with_first: iter(
                encode_texts(
                    tokenizer, [t for t, b in zip(texts, begun, strict=True) if b == with_first], not with_first
                )
            )
            for with_first in (True, False)
        }
        return [next(found[own]) for own in begun]
    if not texts:
        return []
    _check_unicode(texts)
    return tokenizer(list(texts), add_special_tokens=special_tokens, verbose=False)["input_ids"]  # type: ignore[return-value]


def _check_unicode(texts: Iterable[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"character {error.start} of the text {text!a:.80} is half of a surrogate pair, which no "
                "tokenizer reads. Correct the text."
            ) from error


def prefix_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands before a text without context: the tokenizer's beginning of sequence, or else its end."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise UserError("the tokenizer has neither a bos_token nor an eos_token, one of which stands before a text.")


def _windowed(tokenizer: PreTrainedTokenizerBase, text: str, windows: Windows, context: int) -> list[Pair]:
    length = context if windows.length is None else windows.length
    if not 1 <= length <= context:
        raise UserError(f"windows: expected a length of 1 to the model's context of {context}, got {length}.")
    stride = length if windows.stride is None else windows.stride
    if not 1 <= stride <= length:
        raise UserError(f"windows: expected a stride of 1 to the length of {length}, got {stride}.")
    (tokens,) = encode_texts(tokenizer, [text])
    if not tokens:
        raise UserError("the text has no tokens; leave it out.")
    return rolling_pairs(tokens, prefix_id(tokenizer), length, stride)


def rolling_pairs(tokens: Sequence[int], prefix: int, length: int, stride: int) -> list[Pair]:
    """Windows of `length` tokens over a text, which predict each of its tokens once (see `Windows`). The first begins
    with the token `prefix`; a last, shorter one has as much context as the others have tokens."""
    pairs = [Pair([prefix], tokens[:length])]
    for start in range(length, len(tokens), stride):
        end = min(start + stride, len(tokens))
        pairs.append(Pair(tokens[end - length - 1 : start], tokens[start:end]))
    return pairs

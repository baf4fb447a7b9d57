"""Questions as texts: tokenised and cut into windows as the harness does, and answered in order."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lnlit.data.tokenizer import read_tokenizer
from lnlit.errors import UserError
from lnlit.eval.likelihood import encode_pairs, encode_texts, log_likelihoods, rolling_pairs
from lnlit.eval.pair_likelihood import pair_likelihoods
from lnlit.interfaces import Continuations, Windows
from lnlit.models.decoder import Decoder
from lnlit.testing.tiny import mixed_spec, tiny_decoder, tiny_folder, tiny_spec

harness_is_here = importlib.util.find_spec("lm_eval") is not None


def trained(text: str, with_first: bool) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with merges across words and spaces, which begins a text with a token of its own or not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    if with_first:
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def harness_model(tokenizer: Any, max_length: int = 32) -> Any:
    """The harness' own model class with our tokenizer and no model, which keeps what it would compute."""
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM

    class Asked(HFLM):
        def __init__(self) -> None:  # its own loads a model
            self.tokenizer, self.backend, self.add_bos_token = tokenizer, "causal", None
            self.custom_prefix_token_id, self.requests, self._max_length = None, [], max_length
            self.cache_hook = CacheHook(None)
            self._rank, self._world_size, self.batch_size_per_gpu, self.enable_thinking = 0, 1, 4, None

        def _loglikelihood_tokens(self, requests, **_settings):
            self.requests += [(list(context), list(continuation)) for _, context, continuation in requests]
            return [(0.0, False)] * len(requests)

    return Asked()


def instances(*arguments: tuple[str, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, args, 0) for args in arguments]


def words(rng: random.Random, text_file: Path, count: int) -> list[str]:
    """Pieces of text that begin and end anywhere, also in white space."""
    text = text_file.read_text()
    starts = [rng.randrange(len(text) - 60) for _ in range(count)]
    return [text[start : start + rng.randrange(1, 40)] for start in starts]


@pytest.mark.skipif(not harness_is_here, reason="needs lm-eval, the oracle")
@pytest.mark.parametrize("with_first", [False, True])
def test_pairs_are_tokenised_as_the_harness_does(with_first: bool, text_file: Path):
    tokenizer, rng = trained(text_file.read_text(), with_first), random.Random(1)
    fronts, backs = words(rng, text_file, 300), words(rng, text_file, 300)
    # The harness fails on a context that is nothing but white space.
    pairs = [(front, back) for front, back in zip(fronts, backs, strict=True) if front.strip()]
    pairs += [(f"{front} \n", back) for front, back in pairs[:50]] + [("", back) for back in backs[:50]]
    pairs += [("<s>user", " says"), ("<s>", " says"), ("one", "<s>two"), ("", "<s>two"), ("one  ", "  two")]
    harness = harness_model(tokenizer)
    harness.loglikelihood(instances(*pairs), disable_tqdm=True)
    found = encode_pairs(tokenizer, pairs)
    assert [(list(pair.context), list(pair.continuation)) for pair in found] == harness.requests
    apart = [[*front, *back] for front, back in (encode_texts(tokenizer, pair, False) for pair in pairs)]
    merged = [
        ids for ids, pair in zip(apart, pairs, strict=True) if [ids] != encode_texts(tokenizer, ["".join(pair)], False)
    ]
    assert len(merged) > 20  # tokens that reach across the two


@pytest.mark.skipif(not harness_is_here, reason="needs lm-eval, the oracle")
@pytest.mark.parametrize("length", [1, 2, 7, 16, 31, 100])
def test_windows_are_those_of_the_harness(length: int, text_file: Path):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokenizer = trained(text_file.read_text(), False)
    for size in (1, 15, 16, 17, 33):
        tokens = list(range(100, 100 + size))
        for stride in {1, max(length // 2, 1), length}:
            theirs = get_rolling_token_windows(tokens, 0, length, length - stride + 1)
            found = [(list(pair.context), list(pair.continuation)) for pair in rolling_pairs(tokens, 0, length, stride)]
            assert found == [tuple(map(list, make_disjoint_window(window))) for window in theirs]
    harness, text = harness_model(tokenizer, length), text_file.read_text()[:200]
    harness.loglikelihood_rolling(instances((text,)), disable_tqdm=True)
    (tokens,) = encode_texts(tokenizer, [text])
    found = rolling_pairs(tokens, 0, length, length)
    assert [(list(pair.context), list(pair.continuation)) for pair in found] == harness.requests


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Decoder, PreTrainedTokenizerFast]:
    folder = tiny_folder(tmp_path_factory.mktemp("likelihood") / "model", mixed_spec())
    return tiny_decoder(mixed_spec()), read_tokenizer(folder)  # type: ignore[return-value]


def question(key: str, context: Any, *continuations: str, **more: Any) -> Continuations:
    return Continuations(key, context, continuations, {}, **more)


@pytest.mark.parametrize("batch_tokens", [1, 50, 4096])
def test_questions_are_answered_in_order(batch_tokens: int, tiny, monkeypatch):
    monkeypatch.setattr("lnlit.eval.likelihood._QUESTIONS", 3)
    decoder, tokenizer = tiny
    text = "a longer text that is read in windows"
    questions = [
        question("a", "One and", " two", " é"),
        question("b", ["Left", "Right one"], " goes", " goes"),
        question("c", "", text, windows=Windows(8, 4)),
        question("d", "One and a half ", "is", "x"),
        *(question(f"n{n}", "Few shots. Question", f" {n}", " no") for n in range(8)),
    ]
    found = list(log_likelihoods(decoder, tokenizer, questions, batch_tokens))
    assert [len(each) for each in found] == [len(each.continuations) for each in questions]
    assert [(one.tokens, one.bytes) for one in found[0]] == [(4, 4), (3, 3)]  # bytes are tokens
    assert (found[2][0].tokens, found[2][0].bytes) == (len(text), len(text))
    assert [one.tokens for one in found[3]] == [3, 2]  # with the space in front
    for at, pairs in {
        0: [("One and", " two"), ("One and", " é")],
        1: [("Left", " goes"), ("Right one", " goes")],
        3: [("One and a half", " is"), ("One and a half", " x")],
        11: [("Few shots. Question", " 7"), ("Few shots. Question", " no")],
    }.items():
        alone = pair_likelihoods(decoder, encode_pairs(tokenizer, pairs), 1)
        for one, other in zip(found[at], alone, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4) and one.is_greedy == other.is_greedy
    windows = rolling_pairs(encode_texts(tokenizer, [text])[0], tokenizer.eos_token_id, 8, 4)
    total = sum(one.log_prob for one in pair_likelihoods(decoder, windows, 1))
    assert found[2][0].log_prob == pytest.approx(total, abs=1e-4)


def test_questions_are_read_as_they_are_answered(tiny):
    decoder, tokenizer = tiny
    read = []

    def endless():
        for n in range(10_000):
            read.append(n)
            yield question(str(n), "a", " b")

    answers = log_likelihoods(decoder, tokenizer, endless(), 64)
    assert len(next(answers)) == 1
    assert len(read) < 1000


def test_what_was_left_out_is_counted(tiny):
    _, tokenizer = tiny
    decoder = tiny_decoder(tiny_spec().replace(context_length=16))
    (found,) = log_likelihoods(decoder, tokenizer, [question("long", "x" * 30, " a", " abc")])
    assert [one.left_out for one in found] == [15, 17]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (question("k", "a"), "question k: there are no continuations"),
        (question("k", "a", ""), "question k: the continuation has no tokens"),
        (question("k", ["a"], " b", " c"), "question k: has 1 contexts for 2 continuations"),
        (question("k", "a", " b" * 300), "question k: a continuation of 600 tokens is longer .* 256.* perplexity"),
        (question("k", "a", " b", windows=Windows()), "question k: windows are for continuations without a context"),
        (
            question("k", "", " b", windows=Windows(999)),
            "expected a length of 1 to the model's context of 256, got 999",
        ),
        (question("k", "", " b", windows=Windows(8, 9)), "expected a stride of 1 to the length of 8, got 9"),
        (question("k", "", "", windows=Windows()), "question k: the text has no tokens"),
        (question("k", "a\ud83d", " b"), "question k: character 1 of the text .* is half of a surrogate pair"),
    ],
)
def test_a_question_that_cannot_be_answered_is_named(asked: Continuations, message: str, tiny):
    decoder, tokenizer = tiny
    with pytest.raises(UserError, match=message):
        list(log_likelihoods(decoder, tokenizer, [asked]))


def test_a_broken_model_is_told_at_its_question(tiny):
    _, tokenizer = tiny
    decoder = tiny_decoder()
    decoder.embed_tokens.weight.data[ord("z") - 33] = float("nan")  # the byte's place in the tokenizer
    answers = log_likelihoods(decoder, tokenizer, [question("good", "a", " b"), question("bad", "a", " z")], 1)
    decoder.embed_tokens.weight.data[:] = float("nan")
    with pytest.raises(UserError, match="question good: its log-probability is nan"):
        next(answers)

"""Log-likelihoods of token sequences: those of each sequence by itself, and what sequences share is computed once."""

from __future__ import annotations

import random

import pytest
import torch

from lnlit.errors import UserError
from lnlit.eval.pair_likelihood import Pair, check_finite, label_log_probs, pair_likelihoods
from lnlit.models.decoder import Decoder
from lnlit.models.generate import Sampling, generate
from lnlit.specs import BlockSpec, ModelSpec, PartSpec
from lnlit.testing.tiny import VOCAB_SIZE, attention, mixed_spec, swiglu, tiny_decoder, tiny_spec


def windowed_spec() -> ModelSpec:
    near = PartSpec("gqa", {**attention(1).args, "window": 3})
    return tiny_spec().replace(layers=(BlockSpec(near, swiglu()), BlockSpec(attention(4), swiglu())))


SPECS = {"alike": tiny_spec, "mixed": mixed_spec, "windowed": windowed_spec}


def alone(decoder: Decoder, pair: Pair) -> tuple[float, bool]:
    """The oracle: one pair, one plain forward pass, all logits."""
    whole = torch.tensor([[*pair.context, *pair.continuation]])
    with torch.no_grad():
        logits = decoder(whole[:, :-1])[0, len(pair.context) - 1 :].double()
    labels = whole[0, len(pair.context) :]
    log_probs = logits.log_softmax(-1).gather(-1, labels[:, None])
    return log_probs.sum().item(), bool((logits.argmax(-1) == labels).all())


def random_pairs(seed: int, count: int = 40) -> list[Pair]:
    """Pairs of which many begin alike, some are beginnings of others, and some are there twice."""
    rng = random.Random(seed)
    stems = [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(1, 30))] for _ in range(4)]
    pairs = []
    for _ in range(count):
        stem = rng.choice(stems)
        whole = stem[: rng.randrange(1, len(stem) + 1)] + [rng.randrange(3) for _ in range(rng.randrange(1, 6))]
        cut = rng.randrange(1, len(whole))
        pairs.append(Pair(whole[:cut], whole[cut:]))
    return pairs + pairs[:3]


@pytest.mark.parametrize("batch_tokens", [1, 17, 64, 10_000])
@pytest.mark.parametrize("spec", SPECS)
def test_a_likelihood_is_that_of_the_pair_by_itself(spec: str, batch_tokens: int):
    decoder, pairs = tiny_decoder(SPECS[spec]()), random_pairs(batch_tokens)
    found = list(pair_likelihoods(decoder, pairs, batch_tokens))
    assert len(found) == len(pairs)
    for one, pair in zip(found, pairs, strict=True):
        log_prob, is_greedy = alone(decoder, pair)
        assert one.log_prob == pytest.approx(log_prob, abs=2e-4, rel=1e-6)
        assert (one.is_greedy, one.left_out) == (is_greedy, 0)


def test_what_pairs_share_is_computed_once():
    decoder, pairs, seen = tiny_decoder(), random_pairs(5), []
    decoder.embed_tokens.register_forward_hook(lambda _module, args, _out: seen.append(args[0].numel()))
    list(pair_likelihoods(decoder, pairs, batch_tokens=10_000))
    wholes = [(*pair.context, *pair.continuation)[:-1] for pair in pairs]
    assert seen == [len({whole[:end] for whole in wholes for end in range(1, len(whole) + 1)})]


@pytest.mark.parametrize("batch_tokens", [8, 60])
def test_a_batch_keeps_its_limit(batch_tokens: int):
    """In tokens that are computed, and in tokens that attention reads. Only a single longer pair may exceed it."""
    decoder, seen = tiny_decoder(), []

    def see(_module, args, kwargs):
        seen.append((args[0].numel(), sum(args[2]), len(args[2])))

    decoder.register_forward_pre_hook(see, with_kwargs=True)
    long = Pair(list(range(100)), [1])
    leaves = [Pair([*range(50), n, n], [0]) for n in range(60)]  # attention reads each of them whole
    assert len(list(pair_likelihoods(decoder, [long, *leaves, *random_pairs(2)], batch_tokens))) == 104
    assert all(
        (tokens <= batch_tokens and read <= 8 * batch_tokens) or documents == 1 for tokens, read, documents in seen
    )
    assert len(seen) < 104


def test_what_the_model_would_say_is_greedy_and_nothing_else():
    decoder = tiny_decoder(mixed_spec())
    prompts = [[1, 2, 3], [4], [5, 6]]
    said = [one.token_ids for one in generate(decoder, prompts, Sampling(max_new_tokens=6), end_ids=())]
    other = [[*ids[:3], (ids[3] + 1) % VOCAB_SIZE, *ids[4:]] for ids in said]
    pairs = [Pair(prompt, ids) for answers in (said, other) for prompt, ids in zip(prompts, answers, strict=True)]
    assert [one.is_greedy for one in pair_likelihoods(decoder, pairs, 64)] == [True] * 3 + [False] * 3


def test_a_context_that_is_too_long_loses_its_beginning():
    decoder = tiny_decoder(tiny_spec().replace(context_length=16))
    pair = Pair(list(range(20)), [7, 8, 9])
    (found,) = pair_likelihoods(decoder, [pair], 64)
    log_prob, _ = alone(decoder, Pair(list(range(6, 20)), [7, 8, 9]))
    assert found.log_prob == pytest.approx(log_prob, abs=1e-5) and found.left_out == 6
    full = Pair([1, 2, 3], [4] * 16)  # one token of its context is left
    (found,) = pair_likelihoods(decoder, [full], 64)
    assert found.log_prob == pytest.approx(alone(decoder, Pair([3], [4] * 16))[0], abs=1e-4) and found.left_out == 2
    with pytest.raises(UserError, match="17 tokens is longer than the model's context of 16"):
        list(pair_likelihoods(decoder, [Pair([1], [4] * 17)], 64))


@pytest.mark.parametrize(("pair", "what"), [(Pair([], [1]), "context"), (Pair([1], []), "continuation")])
def test_nothing_to_compare_is_said(pair: Pair, what: str):
    with pytest.raises(UserError, match=f"the {what} has no tokens"):
        list(pair_likelihoods(tiny_decoder(), [pair], 64))
    with pytest.raises(UserError, match="batch_tokens"):
        list(pair_likelihoods(tiny_decoder(), [Pair([1], [2])], 0))


def test_the_model_is_left_as_it_was():
    decoder = tiny_decoder().train()
    list(pair_likelihoods(decoder, random_pairs(1), 64))
    assert decoder.training and all(parameter.grad is None for parameter in decoder.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_chunks_of_logits_make_no_difference(dtype: torch.dtype):
    torch.manual_seed(0)
    hidden_PD, weight_VD = torch.randn(11, 8, dtype=dtype), torch.randn(50, 8, dtype=dtype)
    index_N, label_N = torch.tensor([0, 0, 5, 10, 4, 9, 5]), torch.tensor([3, 49, 0, 7, 7, 1, 0])
    logits_PV = hidden_PD.double() @ weight_VD.double().T
    wanted_N = logits_PV.log_softmax(-1)[index_N, label_N]
    for chunk_size in (1, 4, 100):
        log_probs_N, is_best_N = label_log_probs(hidden_PD, weight_VD, index_N, label_N, chunk_size)
        torch.testing.assert_close(log_probs_N.double(), wanted_N, atol=2e-5, rtol=1e-5)
        assert torch.equal(is_best_N, logits_PV.argmax(-1)[index_N] == label_N)


def test_no_finite_number_is_told():
    with pytest.raises(UserError, match=r"question 3: its log-probability is nan.*float32"):
        check_finite(float("nan"), "question 3")

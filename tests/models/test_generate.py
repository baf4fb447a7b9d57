"""Cached batched decoding equals the plain forward pass, and rows do not influence each other."""

import pytest
import torch

from lnlit.errors import UserError
from lnlit.models.generate import Sampling, generate
from lnlit.testing.tiny import VOCAB_SIZE, mixed_spec, tiny_decoder

END = 7
PROMPTS = [
    torch.randint(8, VOCAB_SIZE, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (3, 17, 9, 1)
]


def greedy_without_cache(decoder, prompt: list[int], new_tokens: int) -> list[int]:
    row = list(prompt)
    for _ in range(new_tokens):
        row.append(int(decoder(torch.tensor([row]))[0, -1].argmax()))
        if row[-1] == END:
            break
    return row[len(prompt) :]


def test_greedy_tokens_equal_the_uncached_forward_for_mixed_lengths():
    decoder = tiny_decoder(mixed_spec())
    results = generate(decoder, PROMPTS, Sampling(max_new_tokens=25), {END})
    assert [r.token_ids for r in results] == [greedy_without_cache(decoder, p, 25) for p in PROMPTS]


def test_a_sampled_row_does_not_depend_on_what_is_batched_after_it():
    decoder, sampling = tiny_decoder(mixed_spec()), Sampling(max_new_tokens=20, temperature=1.0, top_p=0.9, seed=3)
    together = generate(decoder, PROMPTS, sampling, {END})
    first_two = generate(decoder, PROMPTS[:2], sampling, {END})
    assert [r.token_ids for r in together[:2]] == [r.token_ids for r in first_two]
    assert generate(decoder, PROMPTS, sampling, {END})[3].token_ids == together[3].token_ids


def test_reported_log_probabilities_are_the_models():
    decoder = tiny_decoder(mixed_spec())
    (result,) = generate(decoder, [PROMPTS[1]], Sampling(max_new_tokens=8, temperature=0.7, seed=1), {END})
    row = torch.tensor([PROMPTS[1] + result.token_ids])
    logprobs = (decoder(row) / 0.7).log_softmax(-1)[0, len(PROMPTS[1]) - 1 : -1]
    expected = logprobs.gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(result.logprobs), expected, atol=1e-4, rtol=0)


def test_logits_that_are_no_numbers_give_log_probs_that_are_none():
    decoder = tiny_decoder(mixed_spec())
    with torch.no_grad():
        decoder.norm.weight.fill_(float("nan"))
    (result,) = generate(decoder, PROMPTS[:1], Sampling(max_new_tokens=3, temperature=1.0), set())
    assert all(0 <= token < VOCAB_SIZE for token in result.token_ids)
    assert torch.tensor(result.logprobs).isnan().all()


def test_sampling_follows_the_distribution():
    """4000 first tokens against the exact probabilities: chi-squared far inside the tail for a correct sampler."""
    decoder, n = tiny_decoder(mixed_spec()), 4000
    results = generate(decoder, [PROMPTS[0]] * n, Sampling(max_new_tokens=1, temperature=1.0, seed=5), set())
    counts = torch.bincount(torch.tensor([r.token_ids[0] for r in results]), minlength=VOCAB_SIZE).double()
    expected = decoder(torch.tensor([PROMPTS[0]]))[0, -1].double().softmax(-1) * n
    big = expected > 5
    statistic = ((counts - expected)[big] ** 2 / expected[big]).sum()
    freedom = int(big.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_top_p_never_picks_outside_the_nucleus():
    decoder = tiny_decoder(mixed_spec())
    probs = decoder(torch.tensor([PROMPTS[0]]))[0, -1].softmax(-1)
    sorted_probs, order = probs.sort(descending=True)
    nucleus = set(order[(sorted_probs.cumsum(-1) - sorted_probs) < 0.3].tolist())
    sampling = Sampling(max_new_tokens=1, temperature=1.0, top_p=0.3, seed=2)
    results = generate(decoder, [PROMPTS[0]] * 500, sampling, set())
    assert {r.token_ids[0] for r in results} <= nucleus


def test_finish_reason_tells_an_end_token_from_the_limit():
    decoder = tiny_decoder(mixed_spec())
    first = greedy_without_cache(decoder, PROMPTS[0], 1)[0]
    stopped, cut = (generate(decoder, [PROMPTS[0]], Sampling(max_new_tokens=3), end)[0] for end in ({first}, set()))
    assert (stopped.finish_reason, len(stopped.token_ids)) == ("stop", 1)
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 3)


@pytest.mark.parametrize(
    ("prompts", "sampling", "message"),
    [
        ([[]], Sampling(), "prompt is empty"),
        ([[1] * 250], Sampling(max_new_tokens=20), "270 tokens, the model's context is 256"),
        ([[1]], Sampling(temperature=-1.0), "temperature >= 0"),
    ],
)
def test_bad_requests_are_refused(prompts, sampling, message):
    with pytest.raises(UserError, match=message):
        generate(tiny_decoder(), prompts, sampling, set())

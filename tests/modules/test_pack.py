"""Packed samples: a prompt is read once however many completions it has, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from lnlit.interfaces import IGNORE, Rollout
from lnlit.modules.reference import token_log_probs
from lnlit.rl.batch import micro_batches, pack
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import Drawn
from lnlit.testing.tiny import mixed_spec, tiny_decoder, tiny_spec


def sample(prompt_length: int, answer_length: int, prompt_seed: int = 0) -> Drawn:
    prompt_ids = tokens(prompt_length, prompt_seed)
    answer = tokens(answer_length, 1000 + 7 * answer_length + prompt_seed)
    prompt = Prompt([], prompt_ids, {})
    return Drawn(prompt, Rollout(prompt_ids, answer, (-1.0,) * answer_length, "stop", 0, 0), "")


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


SAMPLES = [
    *(sample(30, length) for length in (12, 1, 40)),
    *(sample(1, length, 1) for length in (5, 6)),  # nothing to share but the token that begins each completion
    sample(9, 0, 2),
    sample(9, 8, 2),
    *(sample(200, length, 3) for length in (3, 30)),  # longer than the batched kernel for short documents takes
]
LEARNED = [True, True, True, True, False, True, True, True, True]


def alone(decoder, sample: Drawn) -> torch.Tensor:
    """log p of a completion, by all logits of one unpadded sequence."""
    prompt_ids, answer = sample.rollout.prompt_ids, torch.tensor(sample.rollout.token_ids, dtype=torch.int64)
    logits = decoder(torch.tensor([[*prompt_ids, *answer.tolist()]]))[0, len(prompt_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, answer[:, None])[:, 0]


@pytest.mark.parametrize("spec", [tiny_spec(), mixed_spec()], ids=["llama", "mixed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradients_are_those_of_whole_sequences(spec, checkpointing, record_property):
    decoder = tiny_decoder(spec).double().train()
    decoder.activation_checkpointing = checkpointing
    packed = pack(SAMPLES, LEARNED, padding_id=0)
    found_N = token_log_probs(decoder, packed.tokens).log_probs_N
    expected_N = torch.cat([alone(decoder, s) for s, learned in zip(SAMPLES, LEARNED, strict=True) if learned])
    torch.testing.assert_close(found_N, expected_N, rtol=0, atol=1e-12)
    record_property("difference of log-probs", (found_N - expected_N).abs().max().item())
    weight_N = torch.linspace(-1, 2, len(found_N), dtype=torch.float64)
    parameters = [p for p in decoder.parameters() if p.requires_grad]
    ours = torch.autograd.grad((weight_N * found_N).sum(), parameters)
    theirs = torch.autograd.grad((weight_N * expected_N).sum(), parameters)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)
        record_property("difference of gradients", (mine - other).abs().max().item())


def test_what_is_split_by_sample_joins_to_what_it_was_and_holds_no_more():
    packed = pack(SAMPLES, LEARNED, padding_id=0)
    values_N = torch.arange(len(packed.sample_N), dtype=torch.float32)
    parts = packed.split(values_N)
    assert torch.equal(packed.join(parts), values_N)
    assert all(part.untyped_storage().nbytes() == 4 * len(part) for part in parts)
    whole = [torch.full((len(s.rollout.token_ids),), float(number)) for number, s in enumerate(SAMPLES)]
    assert torch.equal(packed.join(whole), packed.sample_N.float())


def test_a_prompt_is_stored_once_and_what_is_not_learned_from_never():
    packed = pack(SAMPLES, LEARNED, padding_id=0)
    needed = (29 + 12 + 1 + 40) + (0 + 5) + (8 + 8) + (199 + 3 + 30)
    assert packed.tokens.tokens.shape == (1, -(-needed // 16) * 16)
    assert int((packed.tokens.labels != IGNORE).sum()) == sum(
        len(s.rollout.token_ids) for s, learned in zip(SAMPLES, LEARNED, strict=True) if learned
    )
    assert packed.sample_N.unique().tolist() == [0, 1, 2, 3, 6, 7, 8]


def test_prompts_of_one_sample_each_need_no_detour():
    assert pack([sample(9, 5), sample(9, 5, 1)], [True, True], 0).tokens.gather_index is None


def test_a_batch_that_nothing_is_learned_from_still_runs():
    packed = pack(SAMPLES, [False] * len(SAMPLES), padding_id=0)
    decoder = tiny_decoder()
    log_probs_N = token_log_probs(decoder, packed.tokens).log_probs_N
    assert len(log_probs_N) == 0
    log_probs_N.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())  # ranks that have work wait for all gradients
    assert all(len(part) == 0 for part in packed.split(log_probs_N))


def test_values_by_sample_come_back():
    packed = pack(SAMPLES, LEARNED, padding_id=0)
    counts = [len(s.rollout.token_ids) * learned for s, learned in zip(SAMPLES, LEARNED, strict=True)]
    values_S = [torch.full((count,), float(number)) for number, count in enumerate(counts)]
    joined_N = packed.join(values_S)
    assert joined_N.tolist() == packed.sample_N.tolist()
    for part, values in zip(packed.split(joined_N), values_S, strict=True):
        assert torch.equal(part, values)


def test_gradients_of_a_shared_prompt_do_not_round_away():
    """In bf16 the sum of 256 equal numbers, one by one, stands still at half of it."""
    from lnlit.models.packed_attention import _Read

    keys = torch.ones(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    _Read.apply(keys, torch.zeros(512, dtype=torch.int64)).sum().backward()
    assert keys.grad.item() == 512


class TestMicroBatches:
    def test_samples_of_a_prompt_stay_together(self):
        parts = micro_batches([sample(10, 4, n) for n in range(6) for _ in range(4)], 4, 3, whole_prompts=False)
        assert sorted(map(len, parts)) == [8, 8, 8]
        assert all(at // 4 == part[at_in - at_in % 4] // 4 for part in parts for at_in, at in enumerate(part))

    def test_few_prompts_are_dealt_out(self):
        samples = [sample(10, 4, n) for n in range(2) for _ in range(6)]
        parts = micro_batches(samples, 6, 4, whole_prompts=False)
        assert sorted(parts) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
        assert sorted(map(len, micro_batches(samples, 6, 4, whole_prompts=True))) == [0, 0, 6, 6]

    def test_a_prompt_costs_once(self):
        """One prompt of 100 with ten short completions costs about as much as one of 10 with ten longer ones."""
        samples = [sample(100, 1, 0) for _ in range(10)] + [sample(10, 10, n) for n in (1, 2) for _ in range(10)]
        parts = micro_batches(samples, 10, 2, whole_prompts=False)
        assert sorted(map(len, parts)) == [10, 20]

    def test_more_parts_than_samples_leave_some_empty(self):
        parts = micro_batches([sample(3, 3)] * 2, 2, 3, whole_prompts=False)
        assert sorted(parts) == [[], [0], [1]]

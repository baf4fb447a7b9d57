"""The native meter runs what a user runs: cached decoding of the whole batch. No time is asserted here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lnlit.errors import UserError
from lnlit.interfaces import Workload
from lnlit.models.decoder import Decoder
from lnlit.models.generate import Sampling, generate
from lnlit.search import native_meter
from lnlit.search.native_meter import WARM_UP_TOKENS, NativeMeter, random_decoder
from lnlit.testing.tiny import mixed_spec, tiny_spec


@pytest.fixture
def passes(monkeypatch) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """(dtype, shape of the tokens) of every forward pass."""
    seen, forward = [], Decoder.forward

    def spy(self, tokens_BT, *args, **kwargs):
        seen.append((self.embed_tokens.weight.dtype, tuple(tokens_BT.shape)))
        return forward(self, tokens_BT, *args, **kwargs)

    monkeypatch.setattr(Decoder, "forward", spy)
    return seen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sample_is_one_prefill_and_a_step_for_every_further_token(dtype: str, passes):
    workloads = [Workload(3, 7, 6), Workload(1, 5, 2)]
    found = NativeMeter().measure(mixed_spec(), Path(), workloads, dtype=dtype, samples=2)
    expected = []
    for rows, prompt, new in ((3, 7, 6), (1, 5, 2)):
        for tokens in (min(WARM_UP_TOKENS, new), new, new):
            expected += [(rows, prompt)] + [(rows, 1)] * (tokens - 1)
    assert [shape for _, shape in passes] == expected
    assert {seen for seen, _ in passes} == {getattr(torch, dtype)}
    assert [(len(one.prefill_s), len(one.decode_s)) for one in found] == [(2, 2), (2, 2)]
    assert all(seconds > 0 for one in found for seconds in one.prefill_s + one.decode_s)


def test_the_timed_loop_makes_the_tokens_that_generate_makes(monkeypatch):
    """And as many as asked for: no end token stops it early."""
    made, calls = [], []

    def spy(decoder, prompts, *args, **kwargs):
        made.append(generate(decoder, prompts, *args, **kwargs))
        calls.append((decoder, prompts))
        return made[-1]

    monkeypatch.setattr(native_meter, "generate", spy)
    NativeMeter().measure(mixed_spec(), Path(), [Workload(2, 9, 12)], dtype="float32", samples=1)
    decoder, prompts = calls[-1]
    again = generate(decoder, prompts, Sampling(12), end_ids=())
    assert [row.token_ids for row in made[-1]] == [row.token_ids for row in again]
    assert [len(row.token_ids) for row in made[-1]] == [12, 12]


def test_random_weights_are_finite_and_alive():
    decoder = random_decoder(tiny_spec(), "cpu", torch.bfloat16)
    logits = decoder(torch.arange(6)[None])
    assert torch.isfinite(logits).all()
    assert logits.std() > 0
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_what_it_cannot_run_is_said():
    with pytest.raises(UserError, match=r"dtype 'bfloat15'\. Did you mean 'bfloat16'"):
        NativeMeter().measure(tiny_spec(), Path(), [Workload(1, 2, 2)], dtype="bfloat15", samples=1)
    with pytest.raises(UserError, match="context is 256"):
        NativeMeter().measure(tiny_spec(), Path(), [Workload(1, 250, 20)], dtype="float32", samples=1)


def test_a_gpu_is_refused_before_anything_is_built(monkeypatch, passes):
    """Its predicate is patched: no GPU is needed to be told of."""
    monkeypatch.setattr(native_meter, "torch_device", lambda: "cuda")
    monkeypatch.setattr(native_meter, "random_decoder", lambda *_: pytest.fail("was built"))
    with pytest.raises(UserError, match=r"^the native meter cannot measure a GPU: .* engine: vllm [^\n]*$"):
        NativeMeter().measure(tiny_spec(), Path(), [Workload(1, 2, 2)], dtype="float32", samples=1)
    assert not passes

"""The contract of rollout engines, as a function for a test to call.

    from lnlit.testing.rollout_contract import check_rollout_engine

    def test_contract():
        check_rollout_engine(lambda: MyEngine())

Raises AssertionError naming the engine and the broken promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from lnlit.checkpoint.folder import hf_config
from lnlit.errors import UserError
from lnlit.interfaces import PolicyWeights, Rollout, RolloutEngine, RolloutRequest, RolloutSampling
from lnlit.models.decoder import Decoder
from lnlit.models.weights import canonical_weights
from lnlit.specs import ModelSpec
from lnlit.testing.promises import expect
from lnlit.testing.tiny import tiny_decoder, tiny_spec

#: Prompts of several lengths, one of them twice: two samples of one prompt differ only in their seeds.
REQUESTS = [
    RolloutRequest(tuple((7 * row + 3 * at) % 256 for at in range(length)), seed)
    for row, (length, seed) in enumerate([(5, 1), (12, 2), (1, 3), (12, 4), (5, 5)])
] + [RolloutRequest(tuple(3 * at % 256 for at in range(5)), 6)]
SAMPLING = RolloutSampling(max_new_tokens=12, temperature=0.9, end_ids=tuple(range(0, 256, 16)))
#: By how much the likeliest token may miss being that, for the sake of rounding.
_TIE = 1e-3


def check_rollout_engine(
    make: Callable[[], RolloutEngine],
    spec: ModelSpec | None = None,
    runs_the_model: bool = True,
    tolerance: float = 1e-4,
    is_scripted: bool = False,
) -> None:
    """Checks an engine built by `make` on a tiny model of `spec`. If it `runs_the_model`, its log-probs must be within
    `tolerance` of lnlit's in fp32, so give it its most precise settings. Completions that do not come from the model
    (`is_scripted`) need not be those of the sampling settings. Of an engine with a model of its own, only the answers
    are checked."""
    engine = make()
    label = type(engine).__name__
    if not engine.needs_weights:
        _check_texts(engine, label)
        return
    first, second = (tiny_decoder(spec or tiny_spec(), seed) for seed in (0, 1))
    try:
        _refuses(engine, label, "before its first weights")
        _load(engine, first, 3)
        found = _check_answers(engine, label, version=3)
        alone = [engine.generate([request], SAMPLING)[0] for request in REQUESTS]
        expect(_tokens(alone) == _tokens(found), label, "a completion depends on what else is generated")
        if runs_the_model:
            expect(_tokens(found)[0] != _tokens(found)[5], label, "another seed, the same completion")
            _check_logprobs(found, first, label, tolerance)
        _load(engine, second, 4)
        found = _check_answers(engine, label, version=4)
        if runs_the_model:
            _check_logprobs(found, second, label, tolerance)
            if not is_scripted:
                _check_greedy(engine, second, label)
                _check_nucleus(engine, second, label)
            _check_failed_load(engine, second, label)
        _check_room(engine, second.spec, label)
    finally:
        engine.close()
        engine.close()


def _check_texts(engine: RolloutEngine, label: str) -> None:
    """Checks an engine with a model of its own, which is asked in messages."""
    asked = [RolloutRequest((), seed, [{"role": "user", "content": f"Say {seed}."}]) for seed in range(3)]
    try:
        found = engine.generate(asked, SAMPLING)
        expect(engine.generate([], SAMPLING) == [], label, "no requests, no completions")
        expect([each.seed for each in found] == [0, 1, 2], label, "completions out of order, or other seeds")
        for rollout in found:
            expect(rollout.text is not None and not rollout.token_ids, label, "tokens, or no text")
            expect((rollout.finish_reason == "error") == (rollout.error is not None), label, "an error without reason")
            expect(rollout.error is None or (not rollout.text and ": " in rollout.error), label, "an error of no kind")
    finally:
        engine.close()
        engine.close()


def _load(engine: RolloutEngine, decoder: Decoder, version: int) -> None:
    engine.load_weights(_weights(decoder, canonical_weights(decoder), version))


def _weights(decoder: Decoder, tensors: Iterable[tuple[str, Tensor]], version: int) -> PolicyWeights:
    return PolicyWeights(decoder.spec, hf_config(decoder.spec), tensors, version)


def _refuses(engine: RolloutEngine, label: str, when: str) -> None:
    try:
        engine.generate(REQUESTS, SAMPLING)
    except UserError:
        return
    raise AssertionError(f"{label}: generates {when}; that is a UserError")


def _check_answers(engine: RolloutEngine, label: str, version: int) -> list[Rollout]:
    found = engine.generate(REQUESTS, SAMPLING)
    expect(engine.generate([], SAMPLING) == [], label, "no requests, no completions")
    expect(len(found) == len(REQUESTS), label, f"{len(found)} completions for {len(REQUESTS)} requests")
    for request, rollout in zip(REQUESTS, found, strict=True):
        expect(rollout.prompt_ids == request.prompt_ids, label, "completions out of order, or other prompts")
        expect(rollout.seed == request.seed, label, "another seed than asked for")
        expect(rollout.weight_version == version, label, f"version {rollout.weight_version} after loading {version}")
        _check_end(rollout, label)
    again = engine.generate(REQUESTS, SAMPLING)
    expect(_tokens(again) == _tokens(found), label, "the same requests, other completions")
    return found


def _check_end(rollout: Rollout, label: str) -> None:
    tokens = rollout.token_ids
    expect(0 < len(tokens) <= SAMPLING.max_new_tokens, label, f"{len(tokens)} tokens")
    expect(len(rollout.logprobs) == len(tokens), label, "not one log-prob per token")
    expect(not set(tokens[:-1]) & set(SAMPLING.end_ids), label, "goes on after an end token")
    ended = tokens[-1] in SAMPLING.end_ids
    expect(rollout.finish_reason == ("stop" if ended else "length"), label, "a wrong finish reason")
    expect(ended or len(tokens) == SAMPLING.max_new_tokens, label, "stops early without an end token")


def _check_logprobs(found: list[Rollout], decoder: Decoder, label: str, tolerance: float) -> None:
    for rollout in found:
        log_probs = (_logits(decoder, rollout) / SAMPLING.temperature).log_softmax(-1)
        expected = log_probs.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        difference = (torch.tensor(rollout.logprobs) - expected).abs().max().item()
        expect(difference <= tolerance, label, f"log-probs are {difference:.2g} from the loaded model's")


@torch.no_grad()
def _logits(decoder: Decoder, rollout: Rollout) -> Tensor:
    """The decoder's logits in front of each of the completion's tokens."""
    return decoder(torch.tensor([rollout.prompt_ids + rollout.token_ids]))[0][len(rollout.prompt_ids) - 1 : -1]


def _check_greedy(engine: RolloutEngine, decoder: Decoder, label: str) -> None:
    for rollout in engine.generate(REQUESTS, replace(SAMPLING, temperature=0.0)):
        logits = _logits(decoder, rollout)
        chosen = logits.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        expect(bool((chosen >= logits.amax(-1) - _TIE).all()), label, "temperature 0, and not the likeliest token")


def _check_nucleus(engine: RolloutEngine, decoder: Decoder, label: str) -> None:
    """A token belongs to the nucleus if the probability of all likelier ones is below `top_p`."""
    sampling = replace(SAMPLING, top_p=0.3)
    for rollout in engine.generate(REQUESTS, sampling):
        probabilities = (_logits(decoder, rollout) / sampling.temperature).softmax(-1)
        chosen = probabilities.gather(1, torch.tensor(rollout.token_ids)[:, None])
        likelier = (probabilities * (probabilities > chosen)).sum(-1)
        expect(bool((likelier < sampling.top_p + _TIE).all()), label, "a token outside of top_p")


def _check_failed_load(engine: RolloutEngine, decoder: Decoder, label: str) -> None:
    half = list(canonical_weights(decoder))[:-1]
    try:
        engine.load_weights(_weights(decoder, half, 5))
    except UserError:
        _refuses(engine, label, "after a load that failed half-way")
    else:
        raise AssertionError(f"{label}: loads weights of which one is missing; that is a UserError")
    _load(engine, decoder, 6)
    _check_answers(engine, label, version=6)


def _check_room(engine: RolloutEngine, spec: ModelSpec, label: str) -> None:
    try:
        engine.generate([RolloutRequest((1,) * spec.context_length, 0)], SAMPLING)
    except UserError:
        return
    raise AssertionError(f"{label}: takes a prompt that fills the context; that is a UserError")


def _tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts]

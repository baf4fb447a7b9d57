"""Every built-in rollout engine keeps the contract, and the contract finds engines that do not."""

from __future__ import annotations

import dataclasses

import pytest
from fake_judge import FakeJudge, completion

from lnlit import registry
from lnlit.builtins import BUILTINS
from lnlit.interfaces import PolicyWeights
from lnlit.models.weights import canonical_weights
from lnlit.rollout.native import NativeEngine
from lnlit.testing.rollout_contract import check_rollout_engine
from lnlit.testing.tiny import mixed_spec, tiny_decoder

SCRIPT = [[65, 66, 67, 32, 68], [70] * 30, [0], [71, 72]]
ARGUMENTS = {"native": {"dtype": "float32", "device": "cpu"}, "scripted": {"completions": SCRIPT}}


def engine(name: str = "native"):
    return registry.build("rollout", name, **ARGUMENTS[name])


@pytest.mark.parametrize("name", sorted(BUILTINS["rollout"].keys() - {"endpoint"}))
def test_engine(name):
    check_rollout_engine(lambda: engine(name), is_scripted=name == "scripted")


@pytest.mark.parametrize("url", ["up", "down"])
def test_endpoint(url):
    pytest.importorskip("httpx2")
    server = FakeJudge()
    server.behave = lambda number, body: (200, completion("Yes.", finish_reason="stop"))
    if url == "down":
        server.close()
    try:
        check_rollout_engine(lambda: registry.build("rollout", "endpoint", url=server.url, model="m", retries=0))
    finally:
        server.close()


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_native_with_every_variant(batch_size):
    check_rollout_engine(lambda: NativeEngine(batch_size, "float32", "cpu"), mixed_spec())


class Native(NativeEngine):
    """The ones below break one promise each."""

    def __init__(self) -> None:
        super().__init__(dtype="float32", device="cpu")


class SeedsByPlace(Native):
    def generate(self, requests, sampling):
        moved = [dataclasses.replace(request, seed=at) for at, request in enumerate(requests)]
        return [
            dataclasses.replace(rollout, seed=request.seed)
            for rollout, request in zip(super().generate(moved, sampling), requests, strict=True)
        ]


class Greedy(Native):
    def generate(self, requests, sampling):
        return super().generate(requests, dataclasses.replace(sampling, temperature=0.0))


class IgnoresGreedy(Native):
    def generate(self, requests, sampling):
        return super().generate(requests, dataclasses.replace(sampling, temperature=sampling.temperature or 1.0))


class IgnoresTopP(Native):
    def generate(self, requests, sampling):
        return super().generate(requests, dataclasses.replace(sampling, top_p=1.0))


class Sorted(Native):
    def generate(self, requests, sampling):
        return sorted(super().generate(requests, sampling), key=lambda rollout: len(rollout.prompt_ids))


class Stale(Native):
    """What an engine does whose weights are packed once and never again."""

    def load_weights(self, weights):
        if self._decoder is None:
            super().load_weights(weights)
        self._version = weights.version


class HalfLoaded(Native):
    def load_weights(self, weights):
        try:
            super().load_weights(weights)
        finally:
            self._version = weights.version


class NoVersion(Native):
    def generate(self, requests, sampling):
        return [dataclasses.replace(rollout, weight_version=0) for rollout in super().generate(requests, sampling)]


class DropsTheEnd(Native):
    def generate(self, requests, sampling):
        return [
            dataclasses.replace(rollout, token_ids=rollout.token_ids[:-1], logprobs=rollout.logprobs[:-1])
            if rollout.finish_reason == "stop"
            else rollout
            for rollout in super().generate(requests, sampling)
        ]


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (SeedsByPlace, "depends on what else is generated"),
        (Greedy, "another seed, the same completion|log-probs are"),
        (IgnoresGreedy, "not the likeliest token"),
        (IgnoresTopP, "outside of top_p"),
        (Sorted, "out of order"),
        (Stale, "log-probs are .* from the loaded model's"),
        (HalfLoaded, "after a load that failed half-way"),
        (NoVersion, "version 0 after loading 3"),
        (DropsTheEnd, "a wrong finish reason|0 tokens"),
    ],
)
def test_a_broken_engine_is_caught(broken, promise):
    with pytest.raises(AssertionError, match=promise):
        check_rollout_engine(broken)


def test_sleep_gives_the_weights_back():
    native, decoder = engine(), tiny_decoder()
    native.load_weights(PolicyWeights(decoder.spec, {}, canonical_weights(decoder), 1))
    native.sleep()
    assert native._decoder is None

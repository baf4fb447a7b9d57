"""Socket `rollout`: an engine that generates completions with the policy's current weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lnlit.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RolloutRequest:
    """One completion to generate. Its tokens depend on prompt, seed, sampling and weights alone: neither on what else
    is in the batch nor on what was generated before. In half precision, rounding may make a difference of a few tokens.
    """

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class RolloutSampling:
    """How completions are drawn: from the whole distribution at `temperature`, up to one of `end_ids` (which is kept)
    or `max_new_tokens`.

    There is no top-p or top-k: both cut the distribution that importance ratios are made of, and bias them.
    """

    max_new_tokens: int
    temperature: float = 1.0
    end_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rollout:
    """A completion. `logprobs` are the engine's own, of `token_ids` at the sampling temperature, in nats."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    weight_version: int
    seed: int


@dataclass(frozen=True)
class PolicyWeights:
    """A policy as an engine takes it. `tensors` can be walked through once, by Hugging Face's names; `config` is the
    model's config.json as transformers and vLLM read it; `version` is what rollouts are labelled with.
    """

    spec: ModelSpec
    config: Mapping[str, Any]
    tensors: Iterable[tuple[str, Tensor]]
    version: int


class RolloutEngine(ABC):
    """Constructed from its settings alone; memory and processes come with the first weights."""

    @property
    def needs_correction(self) -> bool:
        """Whether its log-probs are those of another model than the policy's by more than rounding, as a quantised copy
        is: who learns from its completions must weigh them by what the policy makes of them.
        """
        return False

    @abstractmethod
    def load_weights(self, weights: PolicyWeights) -> None:
        """From now on generate with these weights, and forget every cache of older ones.

        After an error no completion comes from a mixture: the engine refuses to generate until a load succeeds.
        """

    @abstractmethod
    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        """One completion per request, in their order. `UserError` for a prompt that leaves the context no room."""

    @abstractmethod
    def close(self) -> None:
        """Give memory and processes back. May be called twice."""

    def counts(self) -> Mapping[str, int]:
        """What went wrong and was put right since the engine was made, such as restarts: logged after each rollout."""
        return {}

    def sleep(self) -> None:  # noqa: B027 (not every engine can)
        """Give back what memory the engine can do without until `wake`; weights are loaded anew after it."""

    def wake(self) -> None:  # noqa: B027
        """Take the memory again. `load_weights` follows."""

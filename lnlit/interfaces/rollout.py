"""Interface `rollout`: an engine that generates completions with the policy's current weights."""

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
    """One completion to generate. Its tokens must depend on prompt, seed, sampling settings and weights only, not on
    the rest of the batch or on earlier calls. In half precision, rounding may change a few tokens.

    `messages` is the conversation that `prompt_ids` are the tokens of, for engines with a model and a template of their
    own. These get no `prompt_ids`.
    """

    prompt_ids: tuple[int, ...]
    seed: int
    messages: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class RolloutSampling:
    """How tokens are sampled: at `temperature`, until one of `end_ids` (which is kept) or `max_new_tokens`.

    A `temperature` of 0 is greedy. A `top_p` below 1 samples from the smallest set of tokens with at least that
    probability. Training by reinforcement sets neither, because a policy's probabilities are those of the full
    distribution, and samples of any other would bias the importance ratios.
    """

    max_new_tokens: int
    temperature: float = 1.0
    end_ids: tuple[int, ...] = ()
    top_p: float = 1.0


@dataclass(frozen=True)
class Rollout:
    """A completion. `logprobs` are the engine's log-probs of `token_ids` at the sampling temperature, in nats, and at a
    temperature of 1 for greedy completions. With a `top_p` below 1 they are those of either the full or the truncated
    distribution.

    An engine with a model of its own gives the `text`, with thinking tags, in place of the tokens, and their number in
    `counted`. If it could get no completion, the finish reason is "error" and `error` says why: the kind of failure in
    one word, a colon, and the reason.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length", "error"]
    weight_version: int
    seed: int
    text: str | None = None
    counted: int | None = None
    error: str | None = None

    @property
    def length(self) -> int:
        """The number of tokens."""
        return len(self.token_ids) if self.counted is None else self.counted


@dataclass(frozen=True)
class PolicyWeights:
    """The policy's weights for an engine. `tensors` can be iterated once and yields (Hugging Face name, tensor).
    `config` is the model's config.json, as transformers and vLLM read it. `version` labels the rollouts made with these
    weights."""

    spec: ModelSpec
    config: Mapping[str, Any]
    tensors: Iterable[tuple[str, Tensor]]
    version: int


@dataclass(frozen=True)
class EngineSize:
    """The model that an engine is to hold, and the device for it.

    `blocks` and `embeddings` are numbers of parameters: those of all layers, and those of embedding and head.
    `kv_elements` is the number of keys and values that one token takes in the caches of all layers.
    """

    blocks: int
    embeddings: int
    kv_elements: int
    context_length: int
    device_bytes: int


@dataclass(frozen=True)
class EngineMemory:
    """What an engine takes. All are bytes, but for `gpus`.

    Attributes:
        gpus: The number of GPUs that share the model.
        weights: The weights on each of these GPUs.
        sequence: The cache of the longest sequence on each of these GPUs.
        reserved: All that the engine allocates on each of them. It cannot start if that is less than weights and one
            sequence.
        sync: Memory of the host while weights are handed over, such as their file in /dev/shm.
        concurrent: The largest number of completions that it generates at the same time.
    """

    gpus: int
    weights: int
    sequence: int
    reserved: int
    sync: int
    concurrent: int


class RolloutEngine(ABC):
    """Base class of engines. The constructor takes settings only; memory and processes are allocated by the first
    `load_weights`."""

    @property
    def needs_weights(self) -> bool:
        """False if the engine generates with a model of its own, to which no weights are loaded. No policy can learn
        from its completions."""
        return True

    @property
    def needs_correction(self) -> bool:
        """True if the engine's log-probs differ from the policy's by more than rounding, as with quantised weights. The
        training loss must then correct for the difference by importance weights."""
        return False

    @property
    def runs_apart(self) -> bool:
        """True if all of the engine's computing happens in other processes, so that a thread can wait for `generate`
        while this process trains. `load_weights` has then copied the weights before it returns."""
        return False

    @property
    def ranks_per_engine(self) -> int:
        """The number of a trainer's ranks that share one engine, which computes on the devices of all of them. With 1,
        each rank has an engine of its own."""
        return 1

    def device_name(self) -> str | None:
        """The name that the engine has for this rank's device, or None without one. Only asked where ranks share an
        engine."""
        return None

    def share(self, devices: Sequence[str | None]) -> None:  # noqa: B027 (most engines are not shared)
        """Tells the one engine that ranks share, before its first weights, what `device_name` is on each of these
        ranks, in their order."""

    @abstractmethod
    def load_weights(self, weights: PolicyWeights) -> None:
        """Generates with these weights from now on, and drops every cache of older ones.

        If it fails, the engine refuses to generate until a load succeeds, so no completion comes from a mixture of
        weights.
        """

    @abstractmethod
    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        """One completion per request, in the same order. Raises `UserError` for a prompt that leaves no room in the
        context."""

    @abstractmethod
    def close(self) -> None:
        """Releases memory and processes. May be called twice."""

    def counts(self) -> Mapping[str, int]:
        """How often each recovered fault, such as a restart, occurred since the engine was made; logged after each
        rollout."""
        return {}

    def memory(self, size: EngineSize) -> EngineMemory | None:
        """What the engine takes for a model of that size, for `lnlit plan`; None if it takes nothing here, or if that
        is not known."""
        return None

    def sleep(self) -> None:  # noqa: B027 (not every engine can)
        """Releases the memory that the engine does not need until `wake`. Weights are loaded again after `wake`."""

    def wake(self) -> None:  # noqa: B027
        """Allocates the memory again. `load_weights` is called next."""

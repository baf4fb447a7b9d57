"""An OpenAI-compatible endpoint as a rollout engine, for completions that no policy learns from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.endpoint import ChatEndpoint, Reply
from lnlit.errors import UserError
from lnlit.interfaces import PolicyWeights, Rollout, RolloutEngine, RolloutRequest, RolloutSampling
from lnlit.thinking import CLOSE, OPEN

#: Many servers take seeds of 32 bits with a sign.
_SEEDS = 2**31


class EndpointEngine(RolloutEngine):
    """A model behind an OpenAI-compatible `/chat/completions`, which gets conversations and gives texts.

    Whether equal requests get equal completions is up to the endpoint; the seed is sent along. A completion that cannot
    be had is missing, and is counted by its reason: "unreachable", "timed_out", "refused" (the HTTP status says why) or
    "nonsense". Thoughts that come apart from the answer are put before it, between thinking tags. Needs `pip install
    lnlit[rl]`.

    Args:
        url: The endpoint up to its version, such as `http://localhost:8000/v1`.
        model: Name of the model at the endpoint.
        api_key_env: Environment variable with the key, where the endpoint wants one. The key itself is never stored.
        max_concurrency: Maximum number of concurrent requests.
        time_limit_s: Time limit of one request in seconds, without retries.
        retries: Number of retries after an error that may be temporary, with growing pauses.
        body: Further keys of each request, such as `{chat_template_kwargs: {enable_thinking: true}}`. A null leaves out
            a key that is sent otherwise.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key_env: str | None = None,
        max_concurrency: int = 16,
        time_limit_s: float = 600.0,
        retries: int = 3,
        body: dict[str, Any] | None = None,
    ) -> None:
        self._endpoint = ChatEndpoint(
            "endpoint", url, api_key_env, max_concurrency, time_limit_s, float("inf"), retries
        )
        self.url, self.model, self.body = url.rstrip("/"), model, body or {}
        self._missing: Counter[str] = Counter()

    @property
    def needs_weights(self) -> bool:
        return False

    def load_weights(self, weights: PolicyWeights) -> None:
        raise UserError("endpoint: generates with a model of its own and takes no weights. Use another engine.")

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        replies = self._endpoint.ask([self._body(request, sampling) for request in requests])
        found = [_rollout(*pair) for pair in zip(requests, replies, strict=True)]
        self._missing.update(each.error.partition(":")[0] for each in found if each.error is not None)
        return found

    def counts(self) -> Mapping[str, int]:
        return self._missing

    def close(self) -> None:
        """Does nothing, because connections last no longer than a call."""

    def _body(self, request: RolloutRequest, sampling: RolloutSampling) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": list(request.messages),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % _SEEDS,
            **self.body,
        }
        return {key: value for key, value in body.items() if value is not None}


def _rollout(request: RolloutRequest, reply: Reply) -> Rollout:
    if reply.failure is not None:
        return _missing(request, reply.failure)
    try:
        answer = json.loads(reply.content)
        choice = answer["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, thought = message["content"], message.get("reasoning_content") or message.get("reasoning")
        counted = (answer.get("usage") or {}).get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return _missing(request, "nonsense: the endpoint's answer is no chat completion")
    if thought and text is None:  # cut off while it thinks
        text = ""
    if not isinstance(text, str) or not isinstance(thought, str | None):
        return _missing(request, "nonsense: the endpoint's answer has no text")
    if reason not in ("stop", "length"):
        return _missing(request, f"refused: the endpoint ended the completion with {reason!r:.40}")
    if thought:
        thought = f"{OPEN}\n{thought.strip()}\n"
        text = f"{thought}{CLOSE}\n{text}" if text or reason == "stop" else thought
    known = counted if isinstance(counted, int) and not isinstance(counted, bool) and counted >= 0 else None
    return Rollout((), (), (), reason, 0, request.seed, text.encode(errors="replace").decode(), known)


def _missing(request: RolloutRequest, error: str) -> Rollout:
    return Rollout((), (), (), "error", 0, request.seed, "", 0, error)

"""Requests to an OpenAI-compatible `/chat/completions`: many at once, with time limits and bounded retries."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import re
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from lnlit.errors import UserError, optional

#: HTTP status codes of temporary failures, besides 500 and above.
_PASSING = {408, 409, 425, 429}
#: Names of models that an error message lists.
_MODELS = 10
#: The longest time to wait because an endpoint asks for it, in seconds.
_LONGEST_WAIT_S = 300.0


@dataclass(frozen=True)
class Reply:
    """The content of a successful answer, or the reason why there is none: "unreachable", "timed_out" or "refused", a
    colon, and more about it."""

    content: bytes = b""
    failure: str | None = None


@dataclass(frozen=True)
class ChatEndpoint:
    """An endpoint and how it is asked. No failure of it raises, and none makes a request wait forever.

    Args:
        what: The part that asks, for error messages.
        url: The endpoint up to its version, such as `http://localhost:8000/v1`.
        api_key_env: Environment variable with the key, where the endpoint wants one. The key itself is never stored.
        max_concurrency: Maximum number of concurrent requests.
        time_limit_s: Time limit of one request in seconds, without retries.
        total_time_limit_s: Time limit of all requests of a call together, in seconds. Infinity is none.
        retries: Number of retries after an error that may be temporary, with growing pauses, or those that the endpoint
            asks for in Retry-After.
    """

    what: str
    url: str
    api_key_env: str | None
    max_concurrency: int
    time_limit_s: float
    total_time_limit_s: float
    retries: int

    def __post_init__(self) -> None:
        if not _is_endpoint(self.url):
            raise UserError(f"{self.what}: url must look like http://host:port/v1, without a name and password in it")
        for name in ("max_concurrency", "time_limit_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{self.what}: {name} must be positive, got {getattr(self, name)}")
        if not self.total_time_limit_s > 0:
            raise UserError(f"{self.what}: total_time_limit_s must be positive, got {self.total_time_limit_s}")
        if self.retries < 0:
            raise UserError(f"{self.what}: retries must be 0 or more, got {self.retries}")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise UserError(f"{self.what}: api_key_env is the name of an environment variable, not the key itself")

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """The replies to requests with these JSON bodies, in the same order. Raises `UserError` only if there is no
        API key."""
        return _in_another_thread(self._ask_all(bodies)) if bodies else []

    async def _ask_all(self, bodies: Sequence[Mapping[str, Any]]) -> list[Reply]:
        httpx = optional("httpx2", "rl")
        state = _State(asyncio.Semaphore(self.max_concurrency), asyncio.Lock())
        limit_s = None if math.isinf(self.total_time_limit_s) else self.total_time_limit_s
        async with httpx.AsyncClient(headers=self._headers(), timeout=self.time_limit_s) as client:
            tasks = [asyncio.create_task(self._ask(client, body, state)) for body in bodies]
            _, late = await asyncio.wait(tasks, timeout=limit_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        out_of_time = Reply(failure=f"timed_out: no answer within {self.total_time_limit_s} s for all requests")
        return [out_of_time if task in late else task.result() for task in tasks]

    async def _ask(self, client: Any, body: Mapping[str, Any], state: _State) -> Reply:
        httpx = optional("httpx2", "rl")
        async with state.free:
            for attempt in range(self.retries + 1):
                wait_s = 0.0
                try:
                    async with asyncio.timeout(self.time_limit_s):  # the client's own limit starts anew with every byte
                        response = await client.post(self._address, json=body)
                except (TimeoutError, httpx.TimeoutException):
                    failure = f"timed_out: no answer within {self.time_limit_s} s"
                except httpx.HTTPError as error:
                    failure = f"unreachable: {type(error).__name__}: {error}"
                else:
                    if response.is_success:
                        return Reply(response.content)
                    failure, wait_s = await self._refused(client, response, body, state), _retry_after_s(response)
                    if response.status_code not in _PASSING and response.status_code < 500:
                        break
                if state.is_down or attempt == self.retries:
                    break
                await asyncio.sleep(max(0.25 * 2**attempt * random.uniform(1, 2), wait_s))
            state.is_down = state.is_down or failure.startswith("unreachable")
            return Reply(failure=failure)

    @property
    def _address(self) -> str:
        return f"{self.url.rstrip('/')}/chat/completions"

    async def _refused(self, client: Any, response: Any, body: Mapping[str, Any], state: _State) -> str:
        """What an HTTP status means, and what to do next."""
        status = response.status_code
        said = f"refused: HTTP {status} from {self._address}"
        if status in (401, 403):
            given = f"the key in the environment variable {self.api_key_env}"
            what = given if self.api_key_env else "requests without key"
            return f"{said}: it does not accept {what}. api_key_env names the variable of one that it accepts."
        if status == 404:
            async with state.listing:  # one request of all asks
                state.models = await self._models(client) if state.models is None else state.models
            if not state.models:
                return f"{said}: there is no such address. The url must end with the endpoint's version, mostly /v1."
            return f"{said}: no model {body.get('model')!r}. It has: {', '.join(state.models[:_MODELS])}."
        if status == 429:
            return f"{said}: its rate limit is reached, after {self.retries} retries. Lower max_concurrency, or wait."
        return said

    async def _models(self, client: Any) -> list[str]:
        """The names of the models that the endpoint lists; empty if it lists none."""
        try:
            async with asyncio.timeout(self.time_limit_s):
                response = await client.get(f"{self.url.rstrip('/')}/models")
            return [str(each["id"]) for each in response.json()["data"]]
        except Exception:  # whatever an endpoint may say or not say
            return []

    def _headers(self) -> dict[str, str]:
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():  # an error of the client would print it
            raise UserError(
                f"{self.what}: the environment variable {self.api_key_env} must hold the API key; it is not set, or "
                "has other characters than a key"
            )
        return {"Authorization": f"Bearer {key}"}


@dataclass
class _State:
    """What the requests of one call share. If one finds the endpoint unreachable, the next ones do not wait and retry.
    `models` are those that the endpoint lists, once it was asked."""

    free: asyncio.Semaphore
    listing: asyncio.Lock
    is_down: bool = False
    models: list[str] | None = None


def _in_another_thread(work: Coroutine[Any, Any, list[Reply]]) -> list[Reply]:
    """The result of a coroutine, run by an event loop in another thread, because a notebook's thread already has a
    running one. An interrupt such as Ctrl-C cancels the work without waiting for its end."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()

    def run() -> list[Reply]:
        with runner:
            return runner.run(work)

    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    thread = ThreadPoolExecutor(1)
    try:
        return thread.submit(run).result()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # it may have ended by itself
            loop.call_soon_threadsafe(cancel)
        raise
    finally:
        thread.shutdown(wait=False)


def _retry_after_s(response: Any) -> float:
    """The seconds for which an endpoint asks to be left alone (RFC 9110, section 10.2.3), within bounds; 0 if it does
    not."""
    said = str(response.headers.get("retry-after", "")).strip()
    try:
        seconds = float(said) if said.isascii() and said.isdigit() else _seconds_until(said)
    except (TypeError, ValueError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT_S)


def _seconds_until(date: str) -> float:
    return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
        )
    except ValueError:  # a port that is no number, half an IPv6 address
        return False

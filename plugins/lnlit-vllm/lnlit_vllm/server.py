"""Uses a running `vllm serve` with the policy's weights."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from lnlit.errors import UserError
from lnlit_vllm.core import EXTENSION, LOGPROBS, sampling_params

_ABORTS, _ABORT_S = 5, 1.0
_ID = "generate-tokens-"  # what vLLM puts before a completion's `request_id`
HOW_TO_SERVE = (
    f"Start it with: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --worker-extension-cls "
    f"{EXTENSION} --logprobs-mode {LOGPROBS} --generation-config vllm --skip-tokenizer-init, and the "
    "--dtype and --quantization of this engine."
)


class Server:
    """The methods of `Core` over HTTP. Settings of the server that would make completions wrong are checked; all others
    are the server's own."""

    reads_again = False
    restarts = 0

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self.url = url.rstrip("/")
        self._limit_s: float = settings["answer_time_limit_s"]
        info = self._get("/server_info?config_format=json")["vllm_config"]
        model, quantization = info["model_config"], settings["quantization"]
        wanted = {
            "--worker-extension-cls": (info["parallel_config"]["worker_extension_cls"], EXTENSION),
            "--logprobs-mode": (model["logprobs_mode"], LOGPROBS),
            "--dtype": (str(model["dtype"]).removeprefix("torch."), settings["dtype"]),
            "--quantization": (model["quantization"], quantization),
        }
        for option, (found, expected) in wanted.items():
            if found != expected:
                raise UserError(f"{url}: vLLM runs with {option} {found}, expected {expected}. {HOW_TO_SERVE}")
        self.max_model_len: int = model["max_model_len"]
        self._in_flight = settings["max_num_seqs"]

    def tensor_names(self) -> list[str]:
        answer = self._post("/collective_rpc", {"method": "lnlit_tensor_names"})
        return [name for names in answer["results"] for name in names]

    def forget(self) -> None:
        """Does nothing, because the file is read once."""

    def load(self, file: str, version: str) -> None:
        """Loads weights while the server is paused. It stays paused if loading fails, so that nobody is served a
        mixture."""
        self._post("/pause?mode=abort")
        self._post("/collective_rpc", {"method": "lnlit_load", "args": [file]})
        if not self._post("/reset_prefix_cache")["success"]:
            raise UserError(f"{self.url}: vLLM did not forget the prefixes of the weights before these.")
        self._post("/update_weight_version", {"new_version": version})
        self._post("/resume")

    def generate(self, requests: list[dict[str, Any]], sampling: dict[str, Any]) -> list[dict[str, Any]]:
        """Generates completions. After an error or Ctrl-C, the requests that are still running are aborted."""
        ours, threads = uuid.uuid4().hex, ThreadPoolExecutor(self._in_flight)
        names = [f"{ours}-{index}" for index in range(len(requests))]
        answers: list[Future[dict[str, Any]]] = []
        try:
            for name, request in zip(names, requests, strict=True):
                answers.append(threads.submit(self._answer, name, request, sampling))
            return [answer.result() for answer in answers]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            self._abort(names, answers)
            raise
        finally:
            threads.shutdown(wait=False)

    def _answer(self, name: str, request: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
        body = {"token_ids": request["prompt_ids"], "sampling_params": sampling_params(request, sampling)}
        found = self._post("/inference/v1/generate", body | {"request_id": name})["choices"][0]
        return {
            "token_ids": found["token_ids"],
            "logprobs": [token["logprob"] for token in found["logprobs"]["content"]],
            "finish_reason": found["finish_reason"],
            "versions": [span["version"] for span in found["weight_versions"] or ()],
        }

    def _abort(self, names: Sequence[str], answers: Sequence[Future[Any]]) -> None:
        """Aborts requests several times, because vLLM does not know a request that is still on its way to it."""
        with contextlib.suppress(UserError):
            for _ in range(_ABORTS):
                body = {"request_ids": [_ID + name for name in names]}
                self._post("/inference/v1/abort_requests", body, _ABORT_S)
                if not wait([answer for answer in answers if not answer.done()], _ABORT_S).not_done:
                    break

    def sleep(self) -> None:
        """Does nothing, because the server's memory is its own."""

    def wake(self) -> None:
        """Does nothing, because `sleep` does nothing."""

    def close(self) -> None:
        """Does nothing, because the server may serve others."""

    def _get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.url + path), self._limit_s)

    def _post(self, path: str, body: dict[str, Any] | None = None, limit_s: float | None = None) -> Any:
        data, headers = json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method="POST")
        return self._ask(request, limit_s or self._limit_s)

    def _ask(self, request: urllib.request.Request, limit_s: float) -> Any:
        if key := os.environ.get("VLLM_API_KEY"):
            request.add_header("Authorization", f"Bearer {key}")
        path = urllib.parse.urlsplit(request.full_url).path
        try:
            with urllib.request.urlopen(request, timeout=limit_s) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            told = ""
            with contextlib.suppress(OSError, http.client.HTTPException):
                told = error.read().decode(errors="replace")[:500]
            hint = f" {HOW_TO_SERVE}" if error.code in (403, 404) else ""
            raise UserError(f"{self.url}: vLLM answers {path} with {error.code}: {told}.{hint}") from error
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            told = str(error) or type(error).__name__
            raise UserError(f"{self.url}: vLLM does not answer {path}: {told}. {HOW_TO_SERVE}") from error

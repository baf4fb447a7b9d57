"""A running `vllm serve` that takes a policy's weights."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lnlit.errors import UserError
from lnlit_vllm.core import EXTENSION, LOGPROBS, sampling_params

_PATIENCE_S = 3600.0
HOW_TO_SERVE = (
    f"Start it with: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --worker-extension-cls "
    f"{EXTENSION} --logprobs-mode {LOGPROBS} --generation-config vllm --skip-tokenizer-init, and the "
    "--dtype and --quantization of this engine."
)


class Server:
    """`Core`'s methods over HTTP. How vLLM runs is the server's own affair; what makes completions wrong is checked."""

    reads_again = False
    restarts = 0

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self.url = url.rstrip("/")
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

    def load(self, file: str, version: str) -> None:
        """Stays paused when it fails, so that nobody is served a mixture."""
        self._post("/pause?mode=abort")
        self._post("/collective_rpc", {"method": "lnlit_load", "args": [file]})
        if not self._post("/reset_prefix_cache")["success"]:
            raise UserError(f"{self.url}: vLLM did not forget the prefixes of the weights before these.")
        self._post("/update_weight_version", {"new_version": version})
        self._post("/resume")

    def generate(self, requests: list[dict[str, Any]], sampling: dict[str, Any]) -> list[dict[str, Any]]:
        def answer(request: dict[str, Any]) -> dict[str, Any]:
            body = {"token_ids": request["prompt_ids"], "sampling_params": sampling_params(request, sampling)}
            found = self._post("/inference/v1/generate", body)["choices"][0]
            return {
                "token_ids": found["token_ids"],
                "logprobs": [token["logprob"] for token in found["logprobs"]["content"]],
                "finish_reason": found["finish_reason"],
                "versions": [span["version"] for span in found["weight_versions"] or ()],
            }

        with ThreadPoolExecutor(self._in_flight) as threads:
            return list(threads.map(answer, requests))

    def sleep(self) -> None:
        """Nothing: a server's memory is its own."""

    def wake(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing: the server serves others too."""

    def _get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.url + path))

    def _post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body or {}).encode()
        return self._ask(
            urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method="POST")
        )

    def _ask(self, request: urllib.request.Request) -> Any:
        if key := os.environ.get("VLLM_API_KEY"):
            request.add_header("Authorization", f"Bearer {key}")
        path = urllib.parse.urlsplit(request.full_url).path
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")[:500]
            hint = f" {HOW_TO_SERVE}" if error.code in (403, 404) else ""
            raise UserError(f"{self.url}: vLLM answers {path} with {error.code}: {told}.{hint}") from error
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{self.url}: vLLM does not answer {path}: {error}. {HOW_TO_SERVE}") from error

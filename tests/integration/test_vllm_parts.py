"""What the plugin asks of vLLM, its workers and its server, with others in their place: needs no vLLM."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lnlit.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/lnlit-vllm"))  # it is installed in vLLM's environment

from lnlit_vllm.config import DeciLMConfig  # pyright: ignore[reportMissingImports]
from lnlit_vllm.core import EXTENSION, LOGPROBS, Core  # pyright: ignore[reportMissingImports]
from lnlit_vllm.server import Server  # pyright: ignore[reportMissingImports]
from lnlit_vllm.worker import Receiver  # pyright: ignore[reportMissingImports]

SETTINGS = {
    "config": {},
    "dtype": "float32",
    "quantization": None,
    "max_model_len": 64,
    "max_num_seqs": 2,
    "tensor_parallel_size": 1,
    "gpu_memory_utilization": 0.5,
    "kv_cache_memory_bytes": None,
    "answer_time_limit_s": 60.0,
    "vllm_args": {},
}
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4, "end_ids": []}


class FakeLLM:
    """Notes what it is told. Sleeps as vLLM does: what is awake is not woken, all or the weights are put to sleep."""

    def __init__(self, *_: Any, **settings: Any) -> None:
        assert settings["enable_sleep_mode"]
        self.told: list[str] = []
        self.asleep: set[str] = set()
        self.llm_engine = SimpleNamespace(add_request=self._add, has_unfinished_requests=lambda: False)

    def _add(self, *_: Any) -> None:
        assert not self.asleep
        self.told.append("request")

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[None]:
        assert "weights" not in self.asleep
        self.told.append(method)
        return [None]

    def sleep(self, level: int) -> None:
        assert level == 2 and "weights" not in self.asleep
        self.asleep = {"weights", "kv_cache"}
        self.told.append("sleep")

    def wake_up(self, tags: list[str]) -> None:
        assert self.asleep >= set(tags)
        self.asleep -= set(tags)
        self.told += tags

    def reset_prefix_cache(self) -> bool:
        return True

    def update_weight_version(self, version: str) -> None:
        pass


@pytest.fixture
def core(monkeypatch) -> Core:
    """On a GPU, as far as it can tell."""
    platform = SimpleNamespace(is_cpu=lambda: False, is_sleep_mode_available=lambda: True)
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": FakeLLM, "SamplingParams": SimpleNamespace},
        "vllm.platforms": {"current_platform": platform},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY=0)},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "")  # what `Core` sets is undone
    return Core(SETTINGS)


def test_the_cache_takes_its_memory_when_something_is_generated(core):
    def do(*steps: Iterator[Any]) -> list[str]:
        for step in steps:
            list(step)
        told, core._llm.told = core._llm.told, []
        return told

    request = {"prompt_ids": [1], "seed": 0}
    assert do(core.load("file", "1"), core.generate([request], SAMPLING)) == ["lnlit_load", "request"]
    assert do(core.sleep(), core.wake(), core.load("file", "2")) == ["sleep", "weights", "lnlit_load"]
    assert do(core.wake(), core.load("file", "3")) == ["lnlit_load"]
    assert do(core.generate([request], SAMPLING), core.generate([request], SAMPLING)) == [
        "kv_cache",
        "request",
        "request",
    ]
    # a rank that had nothing to generate
    assert do(core.sleep(), core.wake(), core.load("file", "4")) == ["sleep", "weights", "lnlit_load"]
    assert do(core.sleep(), core.sleep(), core.wake()) == ["sleep", "weights"]


class Worker(Receiver):
    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self.fails = False

    def reload_weights(self, weights_iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights_iterator:
            self.found[name] = tensor
            if self.fails:
                raise RuntimeError("half-way")

    def _pack_heads(self) -> None:
        pass


def test_a_worker_that_could_not_read_a_file_takes_the_next(tmp_path):
    worker, file = Worker(), tmp_path / "weights.safetensors"
    with pytest.raises(FileNotFoundError):
        worker.lnlit_load(str(file))
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, file)
    worker.lnlit_load(str(file))
    assert set(worker.found) == {"a", "b"}
    worker.fails = True
    with pytest.raises(RuntimeError, match="half-way"):
        worker.lnlit_load(str(file))
    with pytest.raises(RuntimeError, match="start vLLM again"):
        worker.lnlit_load(str(file))


class Handler(BaseHTTPRequestHandler):
    """Of a vLLM whose completions end when they are aborted."""

    server: Any

    def do_GET(self) -> None:
        model = {"logprobs_mode": LOGPROBS, "dtype": "torch.float32", "quantization": None, "max_model_len": 64}
        parallel = {"worker_extension_cls": EXTENSION}
        self._answer({"vllm_config": {"model_config": model, "parallel_config": parallel}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/inference/v1/abort_requests":
            self.server.aborted.set()
            self.server.known |= {*body["request_ids"]}
            self._answer({})
        elif self.path == "/inference/v1/generate":
            self.server.asked.append(f"generate-tokens-{body.get('request_id')}")
            self.server.aborted.wait(60)
            self._answer({"choices": [{"token_ids": [], "logprobs": {"content": []}, "finish_reason": "abort"}]})
        elif self.path == "/pause?mode=abort":
            self.wfile.write(self.server.broken)

    def _answer(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def vllm() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked, server.known, server.aborted, server.broken = [], set(), threading.Event(), b""
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.aborted.set()
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hears_interrupts")
def test_ctrl_c_aborts_what_a_server_works_on(vllm):
    def stop() -> None:
        while len(vllm.asked) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    started = time.monotonic()
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        Server(vllm.url, SETTINGS).generate([{"prompt_ids": [1], "seed": seed} for seed in range(5)], SAMPLING)
    assert time.monotonic() - started < 30
    assert len(vllm.asked) == 2 and vllm.known >= set(vllm.asked)  # what waited for its turn is not asked for


@pytest.mark.parametrize(
    "broken", [b"", b"nonsense\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{", b"HTTP/1.0 500 No\r\n\r\n"]
)
def test_a_server_that_ends_in_its_answer_is_told_of(vllm, broken):
    vllm.broken = broken
    with pytest.raises(UserError, match=r"vLLM (does not answer|answers) /pause"):
        Server(vllm.url, SETTINGS).load("file", "1")


def test_a_servers_silence_has_its_limit(vllm):
    server = Server(vllm.url, SETTINGS | {"answer_time_limit_s": 0.5})
    with pytest.raises(UserError, match="does not answer /inference/v1/generate: timed out"):
        server.generate([{"prompt_ids": [1], "seed": 0}], SAMPLING)


def blocks_of(attention: dict[str, Any], ffn: dict[str, Any]) -> DeciLMConfig:
    sizes = {"hidden_size": 576, "num_attention_heads": 9}
    return DeciLMConfig(block_configs=[{"attention": attention, "ffn": ffn}], **sizes)


def test_a_config_is_read_in_every_spelling():
    stubs = {"no_op": False, "replace_with_linear": False, "sparsify": None}
    nvidias = blocks_of({"n_heads_in_group": 3, **stubs}, {"ffn_mult": 2.0, **stubs})
    plain = blocks_of({"num_key_value_heads": 3}, {"intermediate_size": 768})
    assert nvidias.block_configs == plain.block_configs
    again = DeciLMConfig(**nvidias.to_dict())
    assert again.block_configs == plain.block_configs


@pytest.mark.parametrize(
    ("attention", "ffn", "message"),
    [
        ({"n_heads_in_group": 3, "num_key_value_heads": 3}, {"no_op": True}, "expected one of n_heads_in_group"),
        ({"n_heads_in_group": 3}, {}, "ffn: expected one of ffn_mult, intermediate_size, got none"),
        ({"n_heads_in_group": 3}, {"ffn_mult": 2.0, "intermediate_size": 768}, "expected one of ffn_mult"),
        ({"n_heads_in_group": 3, "window_length": 64}, {"no_op": True}, "attention: window_length=64 is not supported"),
    ],
)
def test_a_config_that_would_be_served_as_another_model_is_refused(attention, ffn, message):
    with pytest.raises(ValueError, match=message):
        blocks_of(attention, ffn)

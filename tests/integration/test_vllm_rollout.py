"""vLLM as a rollout engine: the contract wherever it runs, exact weights after every sync, a death while generating."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from test_vllm import CHILDREN, LLAMA, child
from vllm_place import PLUGIN, PYTHON, SETTINGS, warm_python

from lnlit.checkpoint.folder import hf_config
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import PolicyWeights, Reward, RewardRequest, RolloutRequest, RolloutSampling
from lnlit.models.decoder import Decoder
from lnlit.models.weights import canonical_weights
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import LogprobCheck, PromptData, RolloutConfig, Weighted
from lnlit.testing.rollout_contract import check_rollout_engine
from lnlit.testing.tiny import tiny_decoder, tiny_folder

sys.path.insert(0, str(PLUGIN))  # it is installed in vLLM's environment

from lnlit_vllm.process import Process  # pyright: ignore[reportMissingImports]
from lnlit_vllm.rollout import VllmEngine  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.timeout(400)
needs_vllm = pytest.mark.skipif(not PYTHON.exists(), reason="vLLM's environment is absent; `make test` makes it")

HERE = Path(__file__).parent
TIED, UNTIED = child(LLAMA, LLAMA, tie_embeddings=True), child(LLAMA, LLAMA)
MIXED = CHILDREN["linear attention first"]
#: A cache of a gigabyte, which is the default, takes longer to clear than all prompts to answer.
SMALL_GIB = 1 / 16
SAMPLING = RolloutSampling(max_new_tokens=24, temperature=0.9)
#: The longest fills a block of the prefix cache, so a cache of older weights would be seen.
REQUESTS = [RolloutRequest(tuple(range(3 * n, 4 * n + 5)), seed=n) for n in range(7)]
REQUESTS += [RolloutRequest(tuple(range(200)), seed=7), RolloutRequest(tuple(range(200)), seed=8)]


@pytest.fixture
def in_vllm(monkeypatch) -> None:
    monkeypatch.setenv("LNLIT_VLLM_PYTHON", warm_python())
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)


def policy(decoder: Decoder, version: int) -> PolicyWeights:
    return PolicyWeights(decoder.spec, hf_config(decoder.spec), canonical_weights(decoder), version)


@torch.no_grad()
def difference(engine: VllmEngine, decoder: Decoder) -> float:
    """The largest between the engine's log-probs and the decoder's, over what the engine generates."""
    found = 0.0
    for rollout in engine.generate(REQUESTS, SAMPLING):
        row = torch.tensor([rollout.prompt_ids + rollout.token_ids])
        logprobs = (decoder(row)[0] / SAMPLING.temperature).log_softmax(-1)[len(rollout.prompt_ids) - 1 : -1]
        own = logprobs.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        found = max(found, (own - torch.tensor(rollout.logprobs)).abs().max().item())
    return found


@needs_vllm
def test_the_contract_in_a_process_of_its_own(in_vllm, monkeypatch):
    monkeypatch.setenv("LNLIT_VLLM_PYTHON", str(PYTHON))  # which begins with nothing imported
    check_rollout_engine(lambda: VllmEngine(dtype="float32"), MIXED)


@needs_vllm
def test_the_contract_in_the_trainers_process(in_vllm):
    command = [warm_python(), str(HERE / "vllm_in_process.py")]
    done = subprocess.run(command, input=json.dumps(TIED.to_json()), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture
def server(in_vllm, tmp_path, monkeypatch) -> Iterator[str]:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(UNTIED)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = {
        "model": str(tmp_path),
        "worker-extension-cls": "lnlit_vllm.worker.Receiver",
        "logprobs-mode": "processed_logprobs",
        "generation-config": "vllm",
        "load-format": "dummy",
        "dtype": "float32",
        "host": "127.0.0.1",
        "port": port,
    }
    command = [warm_python(), "-m", "vllm.entrypoints.openai.api_server", "--skip-tokenizer-init", "--enable-scale-out"]
    command += ["--enforce-eager", *(part for name, value in options.items() for part in (f"--{name}", value))]
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(1)
        else:
            pytest.fail((tmp_path / "log").read_text()[-4000:])
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@needs_vllm
def test_the_contract_with_a_server(server):
    check_rollout_engine(lambda: VllmEngine(server, dtype="float32"), UNTIED)
    with pytest.raises(UserError, match=r"runs with --dtype float32, expected bfloat16\. Start it with"):
        VllmEngine(server).load_weights(policy(tiny_decoder(UNTIED), 1))


@needs_vllm
@pytest.mark.parametrize("spec", [TIED, UNTIED, MIXED], ids=["tied", "untied", "mixed"])
def test_every_sync_arrives_exactly(spec, in_vllm, record_property):
    engine = VllmEngine(dtype="float32", kv_cache_gib=SMALL_GIB)
    decoders = [tiny_decoder(spec, seed) for seed in range(4)]
    try:
        for version, decoder in enumerate(decoders):
            engine.load_weights(policy(decoder, version))
            found = difference(engine, decoder)
            record_property("difference of log-probs", found)
            assert found <= 1e-5
        skipped = difference(engine, decoders[0])  # what would be seen of an engine that keeps older weights
        record_property("difference without a sync", skipped)
        assert skipped > 0.1
        process = engine._place._process  # type: ignore[union-attr]
        assert engine.counts() == {"restarts": 0}
    finally:
        engine.close()
    assert process.poll() is not None


@needs_vllm
def test_a_death_while_generating_changes_nothing(in_vllm, monkeypatch):
    engine = VllmEngine(dtype="float32", max_num_seqs=4, kv_cache_gib=SMALL_GIB)
    decoder, asked = tiny_decoder(TIED), []
    call = Process._call

    def killing(self: Process, method: str, *arguments: Any) -> Iterator[Any]:
        for item in call(self, method, *arguments):
            yield item
            if method == "generate" and not asked:
                os.kill(self._process.pid, signal.SIGKILL)
            if method == "generate":
                asked.append(arguments[0])

    try:
        engine.load_weights(policy(decoder, 7))
        expected = engine.generate(REQUESTS, SAMPLING)
        monkeypatch.setattr(Process, "_call", killing)
        assert engine.generate(REQUESTS, SAMPLING) == expected
        assert engine.counts() == {"restarts": 1}
        assert len(asked[0]) == len(REQUESTS) > len(asked[-1]) >= 4  # only what was not answered, and some was not
    finally:
        engine.close()


class Letters(Reward):
    """The share of lower-case letters."""

    def score(self, request: RewardRequest) -> float:
        return sum(letter.islower() for letter in request.completion) / max(len(request.completion), 1)


@needs_vllm
def test_a_policy_learns_from_it(in_vllm, tmp_path):
    """The data module proves engine and trainer equal at every rollout; the policy moves far at each step."""
    model = tiny_folder(tmp_path / "model", TIED)
    rows = [{"messages": [{"role": "user", "content": f"say {n}"}]} for n in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts, rewards = JsonlSource(str(tmp_path / "prompts.jsonl")), [Weighted(Letters())]
    versions = []

    class Noting(VllmEngine):
        def load_weights(self, weights: PolicyWeights) -> None:
            versions.append(weights.version)
            super().load_weights(weights)

    engine = Noting(dtype="float32", kv_cache_gib=SMALL_GIB)
    rollout, check = RolloutConfig(2, 4, max_new_tokens=12, reward_workers=1), LogprobCheck(max_difference=1e-5)
    data = PromptData(str(model), prompts, rewards, engine, rollout, logprob_check=check)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=3,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(GRPO(str(model), AdamW(1e-2, schedule="constant", warmup_ratio=0.0)), data)
    assert versions == [0, 1, 2]
    assert engine._place is None  # closed


@needs_vllm
def test_fp8_needs_a_gpu_and_a_correction(in_vllm):
    engine = VllmEngine(quantization="fp8_per_tensor")
    assert engine.needs_correction and not VllmEngine().needs_correction
    with pytest.raises(UserError, match="quantization 'fp8_per_tensor' needs a GPU"):
        engine.load_weights(policy(tiny_decoder(TIED), 1))


@needs_vllm
def test_what_vllm_says_of_a_setting_reaches_the_user(in_vllm):
    with pytest.raises(UserError, match=r"(?s)vLLM: .*no_such_setting"):
        VllmEngine(vllm_args={"no_such_setting": 1}).load_weights(policy(tiny_decoder(TIED), 1))


@needs_vllm
def test_the_name_is_registered_and_imports_nothing_heavy():
    code = (
        "import sys; from lnlit import registry\n"
        "engine = registry.build('rollout', 'vllm'); engine.close()\n"
        "print(*{'torch', 'vllm', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")

"""The process around vLLM, and the files that weights travel in, with a core that computes nothing: needs no vLLM."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import warm
from vllm_fake_core import DIES, DIES_ONCE, DIES_UNNAMED, FAILS, NAN, SLOW, SLOW_ONCE, STALE

from lnlit.errors import UserError
from lnlit.interfaces import PolicyWeights, RolloutRequest, RolloutSampling
from lnlit.testing.tiny import tiny_spec

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/lnlit-vllm"))  # it is installed in vLLM's environment

from lnlit_vllm import process  # pyright: ignore[reportMissingImports]
from lnlit_vllm.rollout import VllmEngine  # pyright: ignore[reportMissingImports]
from lnlit_vllm.weight_files import WeightFiles  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "plugins/lnlit-vllm"
SAMPLING = RolloutSampling(max_new_tokens=24)


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """The Python of an environment where vLLM computes nothing. Its folder is for weights."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = [{str(PLUGIN)!r}, {str(HERE)!r}]\n"
        "import vllm_fake_core\nsys.modules['lnlit_vllm.core'] = vllm_fake_core\n"
        "from lnlit_vllm.child import main\nmain(int(sys.argv[3]), int(sys.argv[4]))\n"
    )
    python.chmod(0o700)
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("LNLIT_VLLM_PYTHON", str(python))
    monkeypatch.setenv("FAKE_DIED", str(tmp_path / "died"))
    return tmp_path / "weights"


def fake_policy(weight: float, version: int = 1, **config: Any) -> PolicyWeights:
    return PolicyWeights(tiny_spec(), {"tensors": ["a", "b"]} | config, tensors(weight).items(), version)


def tensors(weight: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3,), weight), "b": torch.zeros(2, 4)}


@pytest.fixture
def engine(fake) -> Iterator[VllmEngine]:
    engine = VllmEngine(weights_folder=str(fake), dtype="float32")
    yield engine
    engine.close()
    assert not list(fake.iterdir())


def generate(engine: VllmEngine, *first: int) -> list[tuple[int, ...]]:
    requests = [RolloutRequest((token, *range(index)), index) for index, token in enumerate(first)]
    return [rollout.token_ids for rollout in engine.generate(requests, SAMPLING)]


def test_a_death_loses_and_doubles_nothing(engine):
    engine.load_weights(fake_policy(5))
    assert generate(engine, 0, 0, DIES_ONCE, 0) == [(1, 0, 5), (2, 1, 5), (3, 2, 5), (4, 3, 5)]
    assert engine.counts() == {"restarts": 1}
    engine.load_weights(fake_policy(6, 2, other="config"))  # in another process
    assert generate(engine, 0) == [(1, 0, 6)]
    assert engine.counts() == {"restarts": 1}


def test_it_gives_up_after_three_deaths_in_a_row(engine):
    engine.load_weights(fake_policy(5))
    with pytest.raises(UserError, match=r"(?s)ended 3 times in a row, with signal SIGKILL.*dying of seed 1"):
        generate(engine, 0, DIES)
    assert engine.counts() == {"restarts": 2}


def test_a_signal_without_a_name_is_told_by_its_number(engine):
    engine.load_weights(fake_policy(5))
    with pytest.raises(UserError, match=f"with signal {signal.SIGRTMIN + 1}"):
        generate(engine, DIES_UNNAMED)


def test_silence_is_a_death(fake, monkeypatch):
    monkeypatch.setattr(process, "_CLOSING_S", 0.1)
    engine = VllmEngine(weights_folder=str(fake), dtype="float32", answer_time_limit_s=5)
    engine.load_weights(fake_policy(5))
    assert generate(engine, 0, SLOW_ONCE) == [(1, 0, 5), (2, 1, 5)]
    assert engine.counts() == {"restarts": 1}
    monkeypatch.setattr(process, "_DEATHS", 1)
    with pytest.raises(UserError, match=r"(?s)after 5 s without an answer.*slow"):
        generate(engine, SLOW)
    engine.close()


def test_after_an_error_it_starts_anew(engine):
    engine.load_weights(fake_policy(5))
    process = engine._place._process  # type: ignore[union-attr]
    with pytest.raises(UserError, match="vLLM: RuntimeError: this prompt cannot be read"):
        generate(engine, 0, FAILS)
    assert process.poll() is not None
    with pytest.raises(UserError, match="no complete weights"):
        generate(engine, 0)
    engine.load_weights(fake_policy(6))
    assert generate(engine, 0) == [(1, 0, 6)]


def test_an_error_at_the_start_is_told(engine):
    with pytest.raises(UserError, match="vLLM: this config is broken"):
        engine.load_weights(fake_policy(5, broken=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("a", torch.ones(3))], "1 are missing, the first is b"),
        ([*tensors(1).items(), ("c", torch.ones(1))], "1 are none of vLLM's, the first is c"),
        ([*tensors(1).items(), ("b", torch.ones(1))], "tensor b comes twice"),
        (tensors(-1).items(), "the weights are negative"),
    ],
)
def test_a_failed_load_leaves_nothing_to_generate_with(engine, given, message):
    engine.load_weights(fake_policy(5))
    with pytest.raises(UserError, match=message):
        engine.load_weights(PolicyWeights(tiny_spec(), {"tensors": ["a", "b"]}, given, 2))
    with pytest.raises(UserError, match="no complete weights"):
        generate(engine, 0)
    engine.load_weights(fake_policy(6, 3))
    assert generate(engine, 0) == [(1, 0, 6)]


def test_full_memory_is_told_before_anything_is_written(engine, fake, monkeypatch):
    engine.load_weights(fake_policy(5))
    needed = 11 * 4 + 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(UserError, match=f"{needed} bytes are needed, {needed - 1} are free"):
        engine.load_weights(fake_policy(6, 2))
    assert not [path for path in fake.rglob("*") if path.is_file()]
    with pytest.raises(UserError, match="no complete weights"):
        generate(engine, 0)
    monkeypatch.undo()
    monkeypatch.setenv("LNLIT_VLLM_PYTHON", "nowhere")  # it is not started again
    engine.load_weights(fake_policy(7, 3))
    assert generate(engine, 0) == [(1, 0, 7)]


def test_a_death_after_full_memory_finds_no_file_to_miss(engine, monkeypatch):
    engine.load_weights(fake_policy(5))
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(UserError, match="0 are free"):
            engine.load_weights(fake_policy(6, 2))
    os.kill(engine._place._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
    engine.load_weights(fake_policy(7, 3))
    assert generate(engine, 0) == [(1, 0, 7)]


def test_one_file_for_one_user_until_sleep(engine, fake):
    for version in (1, 2):
        engine.load_weights(fake_policy(5, version))
        (file,) = [path for path in fake.rglob("*") if path.is_file()]
        assert [path.stat().st_mode & 0o777 for path in (file.parent, file)] == [0o700, 0o600]
    engine.sleep()
    assert not file.exists()
    engine.wake()
    with pytest.raises(UserError, match="no complete weights"):
        generate(engine, 0)
    engine.load_weights(fake_policy(8, 3))
    assert generate(engine, 0) == [(1, 0, 8)]


def test_nan_comes_through_and_other_weights_do_not(engine):
    engine.load_weights(fake_policy(5))
    (rollout,) = engine.generate([RolloutRequest((NAN,), 0)], SAMPLING)
    assert all(map(math.isnan, rollout.logprobs))
    with pytest.raises(UserError, match=r"generated with the weights \['old'\], the policy's are 1"):
        generate(engine, STALE)


def test_prompts_that_cannot_be(fake):
    engine = VllmEngine(weights_folder=str(fake), dtype="float32", max_model_len=30)
    engine.load_weights(fake_policy(5))
    refused = {(1,) * 7: "need up to 31 tokens, vLLM has room for 30", (): "a prompt has no tokens"}
    refused |= {(1, 258): "has the token 258, the model those below 258", (1, -1): "has the token -1"}
    for prompt, message in refused.items():
        with pytest.raises(UserError, match=message):
            engine.generate([RolloutRequest((1,), 0), RolloutRequest(prompt, 1)], SAMPLING)
    assert engine.generate([RolloutRequest((1,) * 6, 0)], SAMPLING)
    engine.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"where": "elsewhere"}, "expected process, in_process or a server's http:// URL, got 'elsewhere'"),
        ({"max_num_seqs": 0}, "max_num_seqs: expected a positive number, got 0"),
        ({"answer_time_limit_s": 0}, "answer_time_limit_s: expected a positive number, got 0"),
        ({"where": "http://127.0.0.1:9"}, "vLLM does not answer /server_info: .*VLLM_SERVER_DEV_MODE=1 vllm serve"),
        ({"weights_folder": "/nowhere"}, "weights_folder: /nowhere cannot be used"),
    ],
)
def test_settings_that_cannot_be(fake, settings, message):
    with pytest.raises(UserError, match=message):
        VllmEngine(**settings).load_weights(fake_policy(5))


def test_a_python_without_the_plugin(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho python: No module named lnlit_vllm\nexit 1\n")
    python.chmod(0o700)
    for name, message in (
        (str(python), "exit code 1. Using vLLM needs"),
        ("nowhere", "nowhere cannot be run: .*needs"),
    ):
        monkeypatch.setenv("LNLIT_VLLM_PYTHON", name)
        with pytest.raises(UserError, match=message):
            VllmEngine().load_weights(fake_policy(5))


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT])
def test_vllm_ends_with_its_trainer(fake, ended_by, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PLUGIN), str(HERE)])}
    reads, writes = os.pipe()
    with os.fdopen(reads) as lines, (tmp_path / "errors").open("wb") as errors:
        with os.fdopen(writes, "wb") as out:
            script, options = HERE / "vllm_trainer.py", {"start_new_session": True, "streams": (out, errors)}
            trainer = warm.Process(script, fake, env=environment, **options)
        vllm, fork = map(int, lines.readline().split())
        assert is_running(vllm)
        if ended_by == signal.SIGINT:
            os.killpg(trainer.pid, ended_by)  # as a terminal does
        else:
            os.kill(trainer.pid, ended_by)  # the fork lives on, with a copy of the connection
            assert is_running(fork)
        trainer.wait(120)
        until_gone(vllm)
        with suppress(ProcessLookupError):
            os.kill(fork, signal.SIGKILL)
        until_gone(fork)
        said = (tmp_path / "errors").read_text()
    left = [path for path in fake.rglob("*") if path.is_file()]
    assert ("KeyboardInterrupt" in said, bool(left)) == ((True, False) if ended_by == signal.SIGINT else (False, True))
    files = WeightFiles(str(fake))
    assert files.write(tensors(1)).parent.parent == fake
    assert len(list(fake.iterdir())) == 1  # what a killed trainer left is gone
    files.close()


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 120
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Ended ones that nobody has waited for yet are not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_each_rank_has_a_vllm_of_its_own(fake, monkeypatch):
    of_ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_USE_AGENT_STORE")
    for name in of_ranks:
        monkeypatch.setenv(name, "1")
    engine = VllmEngine(weights_folder=str(fake), dtype="float32")
    engine.load_weights(fake_policy(5))
    names = environment(engine).keys()
    assert "LNLIT_VLLM_PYTHON" in names and names.isdisjoint(of_ranks)
    engine.close()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for settings, said in (
        ({"where": "http://127.0.0.1:9"}, "where: the trainer has 2 ranks, so it must be 'process'"),
        ({"where": "in_process"}, "where: the trainer has 2 ranks, so it must be 'process'"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size: each of 2 ranks has an engine of its own here"),
    ):
        with pytest.raises(UserError, match=said):
            VllmEngine(**settings).load_weights(fake_policy(5))
    engine.load_weights(fake_policy(6))
    assert generate(engine, 0) == [(1, 0, 6)]
    engine.close()


def environment(engine: VllmEngine) -> dict[str, str]:
    """Of the process that runs vLLM."""
    text = Path(f"/proc/{engine._place._process.pid}/environ").read_text()  # type: ignore[union-attr]
    return dict(line.split("=", 1) for line in text.split("\0") if line)


def test_a_vllm_that_ranks_share_has_the_gpus_of_all(fake, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    for given, visible in ((["5", "3"], "5,3"), (["GPU-ab", "GPU-cd"], "GPU-ab,GPU-cd"), ([None, None], None)):
        engine = VllmEngine(weights_folder=str(fake), dtype="float32", tensor_parallel_size=2)
        assert engine.ranks_per_engine == 2 and VllmEngine().ranks_per_engine == 1
        engine.share(given)
        engine.load_weights(fake_policy(5))
        assert environment(engine).get("CUDA_VISIBLE_DEVICES") == visible
        assert generate(engine, 0) == [(1, 0, 5)]
        engine.close()
    with pytest.raises(UserError, match="2 ranks share a vLLM on their GPUs, and several have GPU 5"):
        VllmEngine(tensor_parallel_size=2).share(["5", "5"])


@pytest.mark.parametrize(
    ("visible", "index", "name"), [(None, 3, "3"), ("", 0, "0"), ("6,7", 1, "7"), ("GPU-ab,GPU-cd", 0, "GPU-ab")]
)
def test_a_rank_knows_what_its_gpu_is_called(fake, monkeypatch, visible, index, name):
    """MOCK: of torch.cuda, as nothing here has several GPUs."""
    assert VllmEngine().device_name() is None  # on a CPU
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: index)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert VllmEngine().device_name() == name
    engine = VllmEngine(weights_folder=str(fake), dtype="float32")
    engine.load_weights(fake_policy(5))
    assert environment(engine)["CUDA_VISIBLE_DEVICES"] == name
    engine.close()


def test_files_of_the_living_stay(tmp_path):
    one, other = WeightFiles(str(tmp_path)), WeightFiles(str(tmp_path))
    file = one.write(tensors(1))
    other.write(tensors(2))
    assert file.exists()
    one.close()
    other.close()
    assert not list(tmp_path.iterdir())


def test_views_and_strided_tensors_are_written_as_they_read(tmp_path):
    from safetensors.torch import load_file

    whole = torch.arange(12.0).view(3, 4)
    given = {"rows": whole[1:], "first": whole[:1], "turned": whole.t()}
    files = WeightFiles(str(tmp_path))
    found = load_file(files.write(given))
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    files.close()


def test_a_model_of_another_spec_gets_a_vllm_of_its_own(engine):
    engine.load_weights(fake_policy(5))
    before = engine._place._process  # type: ignore[union-attr]
    engine.load_weights(fake_policy(5, 2, layers=3))
    assert before.poll() is not None and engine._place._process.poll() is None  # type: ignore[union-attr]

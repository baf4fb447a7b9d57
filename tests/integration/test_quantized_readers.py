"""What others make of folders that `lnlit export --quantize` writes: compressed-tensors itself, transformers and vLLM.

They live in vLLM's environment, which `make test` makes. The model that they should compute is lnlit's decoder with the
stored numbers times their scales, and with each linear layer's input in eight bits too, by a few lines below.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vllm_place import PYTHON, ROOT, SETTINGS

from lnlit.checkpoint.convert import export_model
from lnlit.checkpoint.folder import save_folder
from lnlit.checkpoint.formats import open_checkpoint, read_spec
from lnlit.checkpoint.quantized import SCHEMES
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.weights import canonical_weights, fill
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.testing.tiny import tiny_decoder

SCRIPTS = Path(__file__).parent
pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM's environment is absent; `make test` makes it"),
    pytest.mark.timeout(900),
]
PROMPTS = [[5, 17, 3, 88, 41, 2, 9], [60], [12, 71, 33]]
NEW_TOKENS = 12


def attention(kv_heads: int = 2, **more: Any) -> PartSpec:
    return PartSpec("gqa", {"num_heads": 4, "num_kv_heads": kv_heads, "head_dim": 32, **more})


def ffn(width: int = 96) -> PartSpec:
    return PartSpec("swiglu", {"intermediate_size": width})


def child(*layers: BlockSpec, **changes: Any) -> ModelSpec:
    return ModelSpec(**({"vocab_size": 258, "hidden_size": 64, "layers": layers, "context_length": 256} | changes))


FULL, LINEAR = BlockSpec(attention(), ffn()), PartSpec("single_linear")
MODELS = {
    "Llama": child(FULL, FULL),
    "Llama with biases, tied": child(*[BlockSpec(attention(1, bias=True), ffn())] * 2, tie_embeddings=True),
    "Qwen3": child(*[BlockSpec(attention(qk_norm=True), ffn())] * 2, tie_embeddings=True),
    "a child": child(FULL, BlockSpec(NOOP, ffn(31)), BlockSpec(attention(4), NOOP), BlockSpec(NOOP, NOOP)),
    "a child of linears": child(BlockSpec(LINEAR, ffn(416)), FULL, BlockSpec(attention(1), LINEAR)),
}
#: What vLLM has no class for, and lnlit-vllm has.
WITH_PLUGIN = ["a child of linears"]
DTYPES = ("float32", "bfloat16")
#: How each rounds what layers are given: the scheme, and the steps up to the largest number of a token.
IN_TRANSFORMERS = {"fp8": ("fp8", 448.0), "int8": ("int8", 127.5)}
IN_VLLM = {"fp8": ("fp8", 448.0), "int8": ("int8", 127.0)}


def rounded(x: Tensor, scheme: str, steps: float) -> Tensor:
    """Each token of `x` as it comes out of eight bits, of which `steps` reach up to its largest number."""
    scale = x.abs().amax(-1, keepdim=True) / steps
    if scheme == "fp8":
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale
    return (x / scale).round().clamp(-128, 127) * scale


def decoder_of(folder: Path, scheme: str = "", steps: float = 0.0) -> Decoder:
    """The model of a folder in float32. With a scheme, layers multiply what `rounded` leaves of their input."""
    decoder = build_decoder(read_spec(folder), "cpu", torch.float32)
    stored = load_file(folder / "model.safetensors")
    weights = {
        name: tensor.float() * stored[f"{name}_scale"].float() if f"{name}_scale" in stored else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith("_scale")
    }
    fill(decoder, weights.items(), str(folder))
    for name, module in decoder.named_modules():
        if scheme and isinstance(module, nn.Linear) and name.startswith("layers."):
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], scheme, steps),))
    return decoder.eval()


@torch.no_grad()
def next_logprobs(decoder: Decoder, tokens: list[int]) -> Tensor:
    return decoder(torch.tensor([tokens]))[0, -1].log_softmax(-1)


def run(script: str, request: dict[str, Any], answer: Path, **settings: str) -> None:
    done = subprocess.run(
        [str(PYTHON), str(SCRIPTS / script), str(answer)],
        input=json.dumps(request),
        text=True,
        capture_output=True,
        env=os.environ | SETTINGS | settings,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """ "MODEL, DTYPE, SCHEME" -> (the quantised folder, the one that it was made of)."""
    out, made = tmp_path_factory.mktemp("models"), {}
    for index, (name, spec) in enumerate(MODELS.items()):
        decoder = tiny_decoder(spec)
        with torch.no_grad():
            for key, parameter in decoder.named_parameters():
                if key.endswith("bias"):
                    parameter.normal_()
        whole = save_folder(out / f"{index}", spec, canonical_weights(decoder), tokenizer_from=None, provenance={})
        for dtype in DTYPES:
            source = export_model(whole, out / f"{index}-{dtype}", dtype=dtype)
            for scheme in SCHEMES:
                small = export_model(source, out / f"{index}-{dtype}-{scheme}", quantize=scheme)
                made[f"{name}, {dtype}, {scheme}"] = small, source
    return made


@pytest.fixture(scope="module")
def compressed_tensors(folders, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("oracle")
    request = {"folders": {name: list(map(str, pair)) for name, pair in folders.items()}, "prompts": PROMPTS}
    run("compressed_tensors_reads.py", request, out, HF_MODULES_CACHE=str(out / "modules"))
    return json.loads((out / "answer.json").read_text()), out


ALL = [f"{name}, {dtype}, {scheme}" for name in MODELS for dtype in DTYPES for scheme in SCHEMES]


@pytest.mark.parametrize("name", ALL)
def test_compressed_tensors_stores_and_reads_the_same(name, folders, compressed_tensors):
    answer, out = compressed_tensors
    assert answer[name]["different"] == []
    small, _ = folders[name]
    found, theirs = dict(open_checkpoint(small).weights(small)), load_file(out / f"{name}.safetensors")
    assert len(theirs) == sum(isinstance(each, nn.Linear) for each in decoder_of(small).layers.modules())
    for key, tensor in theirs.items():
        assert torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype


@pytest.mark.parametrize("name", [name for name in ALL if "float32" in name])
def test_transformers_computes_the_model(name, folders, compressed_tensors, record_property):
    """Also where it is told to dequantise: it still quantises what layers are given."""
    answer, _ = compressed_tensors
    small, source = folders[name]
    ours, before = decoder_of(small, *IN_TRANSFORMERS[name.rpartition(", ")[2]]), decoder_of(source)
    expected = torch.stack([next_logprobs(ours, prompt) for prompt in PROMPTS])
    change = (torch.stack([next_logprobs(before, prompt) for prompt in PROMPTS]) - expected).abs().max().item()
    for kind in ("logprobs", "dequantized"):
        difference = (torch.tensor(answer[name][kind]) - expected).abs().max().item()
        record_property(f"max_abs_difference_{kind}", difference)
        assert difference <= 1e-4 < change / 10
    record_property("what_quantising_changes", change)


#: What vLLM is asked for: an engine takes a while to start.
SERVED = [f"{name}, float32, int8" for name in MODELS]
SERVED += ["Llama, bfloat16, int8", "Llama, float32, fp8", "a child, bfloat16, fp8"]


@pytest.fixture(scope="module")
def vllm(folders, tmp_path_factory) -> dict[str, Any]:
    """Greedy tokens in vLLM as released, and with lnlit-vllm of what only that has a class for."""
    scratch, results = tmp_path_factory.mktemp("vllm"), {}
    for plugin in (False, True):
        chosen = {name: str(folders[name][0]) for name in SERVED if (name.partition(",")[0] in WITH_PLUGIN) == plugin}
        request = {"folders": chosen, "prompts": PROMPTS, "new_tokens": NEW_TOKENS, "trust_remote_code": not plugin}
        settings = {"VLLM_PLUGINS": "lnlit" if plugin else "", "HF_MODULES_CACHE": str(scratch / "modules")}
        settings |= {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "plugins/lnlit-vllm", ROOT)))}
        run("vllm_greedy.py", request, scratch / "answer.json", **settings)
        results |= json.loads((scratch / "answer.json").read_text())
    return results


@pytest.mark.parametrize("name", SERVED)
def test_vllm_computes_the_model(name, folders, vllm, record_property):
    """Where two engines round to different sides of a half, which a float32's last place decides, what follows in that
    answer differs by a fraction of what quantising changes; all else is equal."""
    result = vllm[name]
    assert "error" not in result, result
    small, source = folders[name]
    ours, before = decoder_of(small, *IN_VLLM[name.rpartition(", ")[2]]), decoder_of(source)
    differences, changes = [], []
    for prompt, tokens, logprobs in zip(PROMPTS, result["tokens"], result["logprobs"], strict=True):
        for index, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            expected, unquantised = (next_logprobs(each, prompt + tokens[:index]) for each in (ours, before))
            differences.append(abs(float(expected[token]) - logprob))
            changes.append(abs(float(unquantised[token]) - logprob))
            assert expected.max() - expected[token] <= 2 * differences[-1] + 1e-4  # the likeliest in vLLM
    equal = sum(difference <= 1e-4 for difference in differences) / len(differences)
    record_property("share_of_equal_logprobs", equal)
    record_property("max_abs_logprob_difference", max(differences))
    record_property("max_change_by_quantising", max(changes))
    assert equal >= 0.5 and max(differences) < max(changes)
    assert sum(change <= 1e-4 for change in changes) / len(changes) < 0.1

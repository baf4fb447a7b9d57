"""Run in an environment with transformers: a tiny random model as its makers publish it.

python published.py FAMILY TOKENIZER OUT [MODEL_TYPE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers


def publish(family: str, tokenizer: str, out: str, model_type: str | None = None) -> None:
    """Three layers of transformers' `family`, as in Qwen3Config, with the tokenizer of a folder. `model_type` is what
    config.json says in place of the family's own.
    """
    torch.manual_seed(0)
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # vLLM's attention on a CPU takes no smaller ones
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,  # of 0.02 all tokens would be about equally likely
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(out)
    words.save_pretrained(out)
    if model_type is not None:
        file = Path(out) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": model_type}, indent=2))


if __name__ == "__main__":
    publish(*sys.argv[1:])

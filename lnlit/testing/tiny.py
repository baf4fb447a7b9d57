"""Small real parts for tests of lnlit and of plugins: a two-layer spec, a byte-level tokenizer, a model folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lnlit.checkpoint.folder import save_folder
from lnlit.models.build import build_decoder, init_weights
from lnlit.models.decoder import Decoder
from lnlit.models.weights import canonical_weights
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: 256 bytes and two control tokens.
VOCAB_SIZE = 258


def attention(num_kv_heads: int = 2) -> PartSpec:
    return PartSpec("gqa", {"num_heads": 4, "num_kv_heads": num_kv_heads, "head_dim": 8})


def swiglu(intermediate_size: int = 48, fused: bool = False) -> PartSpec:
    return PartSpec("swiglu_fused" if fused else "swiglu", {"intermediate_size": intermediate_size})


def tiny_spec() -> ModelSpec:
    """A spec of two equal Llama layers of width 32 with tied embeddings."""
    return ModelSpec(VOCAB_SIZE, 32, (BlockSpec(attention(), swiglu()),) * 2, context_length=256, tie_embeddings=True)


def mixed_spec() -> ModelSpec:
    """A spec with every kind of layer: no attention, a narrowed FFN, a fused FFN, single linears, no FFN, two empty
    slots."""
    linear = PartSpec("single_linear")
    return tiny_spec().replace(
        layers=(
            BlockSpec(NOOP, swiglu(32)),
            BlockSpec(attention(4), swiglu(64, fused=True)),
            BlockSpec(attention(1), NOOP),
            BlockSpec(linear, linear),
            BlockSpec(NOOP, NOOP),
            BlockSpec(attention(2), swiglu(16)),
        )
    )


def tiny_decoder(spec: ModelSpec | None = None, seed: int = 0) -> Decoder:
    """A decoder on the CPU with random weights, scaled so that its output distribution is not nearly uniform."""
    decoder = init_weights(build_decoder(spec or tiny_spec(), "cpu"), seed)
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
    return decoder


def tiny_folder(out: Path, spec: ModelSpec | None = None, seed: int = 0) -> Path:
    """A complete model folder: random weights and a byte tokenizer with a ChatML template."""
    decoder = tiny_decoder(spec, seed)
    with tempfile.TemporaryDirectory() as scratch:
        save_tokenizer(Path(scratch))
        weights = canonical_weights(decoder)
        return save_folder(out, decoder.spec, weights, tokenizer_from=Path(scratch), provenance={})


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges, as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHATML
    fast.save_pretrained(str(folder))

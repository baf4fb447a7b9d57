"""One small Llama twice: as transformers' in double precision, and as ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import rms_norm
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.specs import BlockSpec, ModelSpec, PartSpec

_BLOCK = BlockSpec(
    PartSpec("gqa", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}), PartSpec("swiglu", {"intermediate_size": 56})
)
_SPEC = ModelSpec(97, 32, (_BLOCK,) * 3, context_length=128, norm_eps=1e-6, tie_embeddings=True)


def theirs(kind: type[PreTrainedModel], **more: Any) -> Any:
    """Transformers' own norm goes through fp32; this one does not."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        **more,
    )
    model = kind(config).double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(rms_norm, normalized_shape=(32,), weight=module.weight, eps=1e-6)
    return model


def ours() -> Decoder:
    """The same architecture, its weights not yet set."""
    return build_decoder(_SPEC, "cpu", torch.float64)

"""The model class `LnlitForCausalLM`: layers of any registered parts, computed by lnlit's own modules.

vLLM provides attention and the KV cache. lnlit and the packages that provide the parts must be installed where vLLM
runs.

Shape suffixes: T tokens of all requests, D hidden, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.attention import Attention  # pyright: ignore[reportMissingImports]
from vllm.model_executor.models.llama import (  # pyright: ignore[reportMissingImports]
    LlamaForCausalLM,
    LlamaModel,
)
from vllm.model_executor.models.utils import WeightsMapper, extract_layer_index  # pyright: ignore[reportMissingImports]

from lnlit.interfaces import attention_class, inverse_frequencies, make_block, rope_tables
from lnlit.specs import ModelSpec


class PartLayer(nn.Module):
    """One block as lnlit builds it. Its weights have checkpoint names."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        _check(vllm_config)
        spec: ModelSpec = vllm_config.model_config.hf_config.model_spec
        index = extract_layer_index(prefix)
        block = make_block(spec, index, spec.layers[index])
        for name, part in block.named_children():
            self.add_module(name, part)
        self.computes = (block,)  # not a module of its own: its parts are, one level higher
        part = spec.layers[index].attention
        self.rope_dim = attention_class(part).rope_dim(part.args)
        if self.rope_dim:
            self.register_buffer("inverse_f", inverse_frequencies(spec.rope, self.rope_dim), persistent=False)
        asked = _what_attention_asks(block, spec.hidden_size, self.rope_dim)
        if asked is not None:
            heads, kv_heads, size, window = asked
            self.attention = Attention(
                heads,
                size,
                size**-0.5,
                num_kv_heads=kv_heads,
                cache_config=vllm_config.cache_config,
                per_layer_sliding_window=window,
                prefix=f"{prefix}.self_attn.attn",
            )

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream is `hidden_states + residual`; here the first holds all of it."""
        x_TD = hidden_states if residual is None else hidden_states + residual
        rope = {}
        if self.rope_dim:
            rope = {self.rope_dim: rope_tables(self.inverse_f, positions[None], x_TD.dtype)}
        out_TD = self.computes[0](x_TD[None], self._attend, rope)[0]
        return out_TD, torch.zeros_like(out_TD)

    def _attend(self, q_1THd: Tensor, k_1TKd: Tensor, v_1TKd: Tensor, window: int | None = None) -> Tensor:
        q, k, v = (x.flatten(2)[0] for x in (q_1THd, k_1TKd, v_1TKd))
        return self.attention(q, k, v).view(q_1THd.shape)


class PartModel(LlamaModel):
    """vLLM's Llama with `PartLayer`s. Weights that are separate in a checkpoint are not stacked."""

    hf_to_vllm_mapper = WeightsMapper()


class LnlitForCausalLM(LlamaForCausalLM):
    """Any spec of registered parts, on one device and without quantisation."""

    has_noops = True  # the KV cache has one entry per layer with attention, not per layer
    hf_to_vllm_mapper = PartModel.hf_to_vllm_mapper
    packed_modules_mapping: dict[str, list[str]] = {}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = PartLayer) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = PartLayer) -> Any:
        return PartModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)


def _check(vllm_config: VllmConfig) -> None:
    if vllm_config.parallel_config.tensor_parallel_size > 1:
        raise ValueError("parts that only lnlit knows are served on one device; set tensor_parallel_size to 1.")
    if vllm_config.quant_config is not None:
        raise ValueError("parts that only lnlit knows are served as they are; leave quantization away.")


@torch.no_grad()
def _what_attention_asks(block: Any, hidden_size: int, rope_dim: int | None) -> tuple[int, int, int, int | None] | None:
    """(query heads, KV heads, head size, window) that a block passes to attention, found by running it on one token.
    Its weights are not loaded yet, so its output is ignored."""
    asked: list[tuple[int, int, int, int | None]] = []

    def attend(q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, window: int | None = None) -> Tensor:
        asked.append((q_BTHd.shape[2], k_BTKd.shape[2], q_BTHd.shape[3], window))
        return torch.empty_like(q_BTHd)

    tables = {rope_dim: (torch.zeros(1, 1, rope_dim),) * 2} if rope_dim else {}
    block.add_attention(torch.zeros(1, 1, hidden_size), attend, tables)
    return asked[0] if asked else None

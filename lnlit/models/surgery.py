"""Weight surgery without training: the first guess at every smaller variant (Puzzle, Bercovich et al. 2024, App. A).

A slot's weights are a dict of checkpoint names below the block, as `{"mlp.up_proj.weight": ..., ...}`, its norm left
out. Gate and up projections are two tensors also where the part stores one matrix. Results keep the dtype of what they
come from, and may share its memory; products are computed in fp32.
Shape suffixes: N tokens, D hidden, F intermediate, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.specs import PartSpec

Weights = Mapping[str, Tensor]


def channel_contributions(inner_NF: Tensor, down_DF: Tensor) -> Tensor:
    """How much each FFN channel moves the output: `|x_i| * norm(down[:, i])`, averaged over tokens. fp32 [F].

    It is the norm of what the down projection's output loses without the channel. `inner_NF` is that projection's
    input; tokens may have any leading dims.
    """
    return inner_NF.flatten(0, -2).float().abs().mean(0) * down_DF.float().norm(dim=0)


def narrow_ffn(weights: Weights, scores_F: Tensor, width: int) -> dict[str, Tensor]:
    """A gated FFN's `width` highest-scoring channels, in their old order. The output bias stays whole."""
    kept = scores_F.topk(width).indices.sort().values.to(weights["mlp.down_proj.weight"].device)
    along = {"mlp.down_proj.weight": 1, "mlp.down_proj.bias": None}
    return {
        name: tensor if (dim := along.get(name, 0)) is None else tensor.index_select(dim, kept)
        for name, tensor in weights.items()
    }


def ffn_to_linear(weights: Weights) -> dict[str, Tensor]:
    """`down @ up`: the FFN with its gate ignored. Biases are dropped, as the linear has none."""
    return {"mlp.linear_mlp.weight": _product(weights["mlp.down_proj.weight"], weights["mlp.up_proj.weight"])}


def pool_kv_heads(weights: Weights, num_kv_heads: int, pooled: int) -> dict[str, Tensor]:
    """Keys and values of neighbouring heads averaged, from `num_kv_heads` to `pooled` heads (Ainslie et al. 2023).

    `pooled` must divide `num_kv_heads`, so that each query head reads the average of a group that held its own head.
    """
    if num_kv_heads % pooled:
        raise UserError(f"{num_kv_heads} KV heads cannot be averaged to {pooled}; use a divisor.")
    return {
        name: _pool(tensor, num_kv_heads, pooled) if name.startswith(_KEYS_AND_VALUES) else tensor
        for name, tensor in weights.items()
    }


def attention_to_linear(weights: Weights, num_heads: int, num_kv_heads: int) -> dict[str, Tensor]:
    """`O @ V`, each value head repeated for the query heads that read it: attention in which every token attends to
    itself only. Biases are dropped, as the linear has none.
    """
    value_KdD = weights["self_attn.v_proj.weight"].unflatten(0, (num_kv_heads, -1))
    value_HdD = value_KdD.repeat_interleave(num_heads // num_kv_heads, dim=0)
    return {"self_attn.linear_attn.weight": _product(weights["self_attn.o_proj.weight"], value_HdD.flatten(0, 1))}


def convertible(parent: PartSpec, part: PartSpec) -> bool:
    """Whether `convert_part` knows a way from one part to the other."""
    return parent.type != "noop" and (part.type == "noop" or (parent.type, part.type) in _WAYS)


def convert_part(
    parent: PartSpec, part: PartSpec, weights: Weights, scores_F: Tensor | None = None
) -> dict[str, Tensor]:
    """First weights of `part` in the place of `parent`, whose weights are given. `scores_F` rank an FFN's channels and
    are needed to narrow it. Raises `UserError` when no training-free way from the one to the other is known.
    """
    if not convertible(parent, part):
        raise UserError(f"no training-free way from {parent} to {part} is known; leave it out of the candidates.")
    if part.type == "noop":
        return {}
    return _WAYS[parent.type, part.type](parent.args, part.args, weights, scores_F)


#: (parent's type, candidate's type) -> the way between them.
_WAYS: dict[tuple[str, str], Callable[..., dict[str, Tensor]]] = {
    ("gqa", "gqa"): lambda old, new, w, _: pool_kv_heads(w, old["num_kv_heads"], new["num_kv_heads"]),
    ("gqa", "single_linear"): lambda old, _, w, __: attention_to_linear(w, old["num_heads"], old["num_kv_heads"]),
    ("swiglu", "swiglu"): lambda _, new, w, scores_F: narrow_ffn(w, scores_F, new["intermediate_size"]),
    ("swiglu_fused", "swiglu_fused"): lambda _, new, w, scores_F: narrow_ffn(w, scores_F, new["intermediate_size"]),
    ("swiglu", "single_linear"): lambda _, __, w, ___: ffn_to_linear(w),
    ("swiglu_fused", "single_linear"): lambda _, __, w, ___: ffn_to_linear(w),
}
_KEYS_AND_VALUES = ("self_attn.k_proj.", "self_attn.v_proj.")


def _pool(tensor: Tensor, heads: int, pooled: int) -> Tensor:
    groups = tensor.float().unflatten(0, (pooled, heads // pooled, -1))
    return groups.mean(1).flatten(0, 1).to(tensor.dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        return (left.float() @ right.float()).to(left.dtype)

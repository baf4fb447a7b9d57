"""Computes initial weights of smaller variants without training (Puzzle, Bercovich et al. 2024, appendix A).

The weights of a slot are a dict of checkpoint names relative to the block, e.g. `{"mlp.up_proj.weight": ..., ...}`,
without its norm. Gate and up projections are two tensors even if the part stores one matrix. Results have the dtype of
the inputs and may share their memory; products are computed in fp32.

Shape suffixes: N tokens, D hidden, F intermediate, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces.layer import Norm, Weights

_NORM = "post_attention_layernorm.weight"
_GATE, _UP, _DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


def channel_contributions(inner_NF: Tensor, down_DF: Tensor) -> Tensor:
    """The contribution of each FFN channel to the output: `|x_i| * norm(down[:, i])`, averaged over tokens. fp32 [F].

    It is the norm of the change in the down projection's output when the channel is removed. `inner_NF` is the input of
    that projection, with any leading dims.
    """
    return inner_NF.flatten(0, -2).float().abs().mean(0) * down_DF.float().norm(dim=0)


def narrow_ffn(weights: Weights, scores_F: Tensor | None, width: int, output: str = "down_proj") -> dict[str, Tensor]:
    """Keeps the `width` highest-scoring channels of an FFN in their old order. The linear `output` reads the channels
    and all others write them. The bias of the output is kept whole. Raises `UserError` without scores."""
    if scores_F is None:
        raise UserError(
            f"an FFN's channels were not scored, so it cannot have {width}: set `reads_channels` of its part."
        )
    down = f"mlp.{output}.weight"
    kept = scores_F.topk(width).indices.sort().values.to(weights[down].device)
    along = {down: 1, f"mlp.{output}.bias": None}
    return {
        name: tensor if (dim := along.get(name, 0)) is None else tensor.index_select(dim, kept)
        for name, tensor in weights.items()
    }


def ffn_as_matrix(weights: Weights) -> Tensor:
    """`down @ up` [D, D], which ignores the gate of a gated FFN. Biases are left out, because a matrix has none."""
    return _product(weights[f"{_DOWN}.weight"], weights[f"{_UP}.weight"])


def pool_kv_heads(
    weights: Weights, num_kv_heads: int, pooled: int, linears: tuple[str, ...] = ("k_proj", "v_proj")
) -> dict[str, Tensor]:
    """Reduces `num_kv_heads` KV heads to `pooled` by averaging neighbouring heads (Ainslie et al. 2023). `linears` are
    the projections that compute keys and values.

    `pooled` must divide `num_kv_heads`, so that each query head reads the average of a group that contains its own
    head.
    """
    if num_kv_heads % pooled:
        raise UserError(f"{num_kv_heads} KV heads cannot be averaged to {pooled}; use a divisor.")
    return {
        name: _pool(tensor, num_kv_heads, pooled) if name.split(".")[1] in linears else tensor
        for name, tensor in weights.items()
    }


def attention_as_matrix(weights: Weights, num_heads: int, num_kv_heads: int) -> Tensor:
    """`O @ V` [D, D], with each value head repeated for the query heads that read it. It equals attention in which
    every token attends only to itself. Biases are left out, because a matrix has none."""
    value_KdD = weights["self_attn.v_proj.weight"].unflatten(0, (num_kv_heads, -1))
    value_HdD = value_KdD.repeat_interleave(num_heads // num_kv_heads, dim=0)
    return _product(weights["self_attn.o_proj.weight"], value_HdD.flatten(0, 1))


def fuse_ffns(ffns: Sequence[Weights], norm: Norm = "own") -> dict[str, Tensor]:
    """The weights of one gated FFN and its norm that compute `sum_j FFN_j(norm_j(x))`, for any activation of the gate.

    Rows of gate and up [F, D] are stacked, columns of down [D, F] are concatenated (FFN Fusion, Theorem 3.1), and
    biases of down are added. With `norm="own"`, the columns of gate and up are multiplied by the RMSNorm's gain in
    fp32, and the fused gain is one. Every FFN then sees its own norm, exactly up to rounding in the weights' dtype.
    """
    last = ffns[-1][_NORM]
    fused = {_NORM: torch.ones_like(last) if norm == "own" else last}
    for name in (_GATE, _UP):
        rows = [_folded(ffn[f"{name}.weight"], ffn[_NORM]) if norm == "own" else ffn[f"{name}.weight"] for ffn in ffns]
        fused[f"{name}.weight"] = torch.cat(rows)
    fused[f"{_DOWN}.weight"] = torch.cat([ffn[f"{_DOWN}.weight"] for ffn in ffns], dim=1)
    if any(f"{_DOWN}.bias" in ffn for ffn in ffns):
        for name in (_GATE, _UP):
            fused[f"{name}.bias"] = torch.cat([_bias(ffn, name) for ffn in ffns])
        total = torch.stack([_wide(_bias(ffn, _DOWN)) for ffn in ffns]).sum(0)
        fused[f"{_DOWN}.bias"] = total.to(last.dtype)
    return fused


def _folded(weight_FD: Tensor, gain_D: Tensor) -> Tensor:
    return (_wide(weight_FD) * _wide(gain_D)).to(weight_FD.dtype)


def _bias(ffn: Weights, name: str) -> Tensor:
    """The bias of a projection, or zeros if this FFN has none but another one of the group does."""
    weight = ffn[f"{name}.weight"]
    return ffn.get(f"{name}.bias", weight.new_zeros(weight.shape[0]))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _pool(tensor: Tensor, heads: int, pooled: int) -> Tensor:
    groups = tensor.float().unflatten(0, (pooled, heads // pooled, -1))
    return groups.mean(1).flatten(0, 1).to(tensor.dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        return (left.float() @ right.float()).to(left.dtype)

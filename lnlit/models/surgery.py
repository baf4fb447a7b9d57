"""Computes initial weights of smaller variants without training (Puzzle, Bercovich et al. 2024, appendix A).

The weights of a slot are a dict of checkpoint names relative to the block, e.g. `{"mlp.up_proj.weight": ..., ...}`,
without its norm. Gate and up projections are two tensors even if the part stores one matrix. Results have the dtype of
the inputs and may share their memory; averages are computed in fp32.

Shape suffixes: N tokens, D hidden, F intermediate, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces.layer import Norm, Weights

#: What is added to the channels' second moments, in parts of their mean, and the number of turns in which all go.
_DAMPING, _TURNS = 0.01, 32
_NORM = "post_attention_layernorm.weight"
_GATE, _UP, _DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


def removal_order(gram_FF: Tensor, output_DF: Tensor) -> Tensor:
    """The turn in which each FFN channel is removed, the most dispensable first, fp64 [F].

    Removing a channel costs what is left of it when the output's weights of all others make up for it as well as least
    squares can, given those removed before (Optimal Brain Surgeon, Hassibi and Stork 1992; for whole columns, ZipLM,
    Kurtic et al. 2023). `gram_FF` is the sum over tokens of products of two channels, `output_DF` the weight that reads
    the channels. Some are removed at a time, which changes little in the order.
    """
    count = gram_FF.shape[0]
    damped_FF = gram_FF.double().clone()
    damped_FF.diagonal().add_(_DAMPING * damped_FF.diagonal().mean())
    inverse_FF = torch.linalg.inv_ex(
        damped_FF
    ).inverse  # if there is none, because nothing is finite, any order will do
    weight_DF, left_F = output_DF.to(gram_FF.device).double(), torch.arange(count, device=gram_FF.device)
    turn_F = torch.zeros(count, dtype=torch.double, device=gram_FF.device)
    for first in range(0, count, step := max(count // _TURNS, 1)):
        costs_F = weight_DF.square().sum(0) / inverse_FF.diagonal()
        order_F = costs_F.argsort()
        gone, kept = order_F[:step], order_F[step:].sort().values
        turn_F[left_F[gone]] = torch.arange(first, first + len(gone), device=turn_F.device).double()
        spread = torch.linalg.solve_ex(inverse_FF[gone][:, gone], inverse_FF[gone][:, kept]).result
        weight_DF = weight_DF[:, kept] - weight_DF[:, gone] @ spread
        inverse_FF = inverse_FF[kept][:, kept] - inverse_FF[kept][:, gone] @ spread
        left_F = left_F[kept]
    return turn_F


def narrow_ffn(weights: Weights, scores_F: Tensor | None, width: int, output: str = "down_proj") -> dict[str, Tensor]:
    """Keeps the `width` highest-scoring channels of an FFN in their old order. The linear `output` reads the channels
    and all others write them. The bias of the output is kept whole. Raises `UserError` without scores."""
    if scores_F is None:
        raise UserError(
            f"an FFN's channels were not scored, so it cannot have {width}: set `output_linear` of its part."
        )
    down = f"mlp.{output}.weight"
    kept = scores_F.topk(width).indices.sort().values.to(weights[down].device)
    along = {down: 1, f"mlp.{output}.bias": None}
    return {
        name: tensor if (dim := along.get(name, 0)) is None else tensor.index_select(dim, kept)
        for name, tensor in weights.items()
    }


def pool_kv_heads(
    weights: Weights,
    num_kv_heads: int,
    pooled: int,
    linears: tuple[str, ...] = ("k_proj", "v_proj"),
    keep: int | None = None,
) -> dict[str, Tensor]:
    """Reduces `num_kv_heads` KV heads to `pooled`, each made of a group of neighbours: their average (Ainslie et al.
    2023), or the one at the place `keep` in its group. `linears` are the projections that compute keys and values.

    `pooled` must divide `num_kv_heads`, so that each query head reads what its own head's group became.
    """
    if num_kv_heads % pooled:
        raise UserError(f"{num_kv_heads} KV heads cannot be averaged to {pooled}; use a divisor.")
    return {
        name: _pool(tensor, num_kv_heads, pooled, keep) if name.split(".")[1] in linears else tensor
        for name, tensor in weights.items()
    }


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


def _pool(tensor: Tensor, heads: int, pooled: int, keep: int | None) -> Tensor:
    groups = tensor.unflatten(0, (pooled, heads // pooled, -1))
    one = groups.float().mean(1).to(tensor.dtype) if keep is None else groups[:, keep]
    return one.flatten(0, 1)

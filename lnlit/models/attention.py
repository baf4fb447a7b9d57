"""Grouped-query attention.

Shape suffixes: B rows, T tokens, D hidden, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.interfaces import AttentionLayer, LayerContext
from lnlit.interfaces.layer import Args, Attend, Conversion, Parent, SearchSpace
from lnlit.models.norm import RMSNorm
from lnlit.models.rope import apply_rope
from lnlit.models.surgery import pool_kv_heads


class GroupedQueryAttention(nn.Module, AttentionLayer):
    """Softmax attention in which `num_heads` query heads share `num_kv_heads` key/value heads (Ainslie et al. 2023).

    MHA and MQA are the two extremes. `num_heads * head_dim` need not equal the hidden size. `bias` adds a bias to all
    four projections, as Hugging Face's `attention_bias` does, and `output_bias: false` removes that of the output
    projection. `qk_norm` normalises each query and key head before the rotation (Henry et al. 2020). `rotary_dim` is
    the number of leading entries of each head that are rotated: all by default, none if it is 0. `window` is the
    largest number of tokens that a token attends to.
    """

    output_linear = "o_proj"
    tensor_parallel = {
        **{"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "o_proj": "rowwise"},
        **{"q_norm": "per_head", "k_norm": "per_head"},
    }

    def __init__(
        self,
        context: LayerContext,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool = False,
        output_bias: bool | None = None,
        qk_norm: bool = False,
        rotary_dim: int | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        where = f"layers[{context.layer_index}].attention"
        if min(num_heads, num_kv_heads, head_dim) < 1 or num_heads % num_kv_heads:
            raise UserError(
                f"{where}: num_heads ({num_heads}) must be a positive multiple of num_kv_heads ({num_kv_heads})"
            )
        rotated = head_dim if rotary_dim is None else rotary_dim
        if rotated % 2 or not 0 <= rotated <= head_dim:
            name = "head_dim" if rotary_dim is None else "rotary_dim"
            raise UserError(f"{where}: {name} must be even for rotary embedding, and at most {head_dim}, got {rotated}")
        if window is not None and window < 1:
            raise UserError(f"{where}: window must be a positive number of tokens, got {window}")
        self.head_dim, self.rotary_dim, self.window = head_dim, rotated, window
        self.q_proj = nn.Linear(context.hidden_size, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(context.hidden_size, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(context.hidden_size, num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(
            num_heads * head_dim, context.hidden_size, bias=bias if output_bias is None else output_bias
        )
        self.q_norm, self.k_norm = (
            RMSNorm(head_dim, eps=context.norm_eps) if qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        # -1 heads: under tensor parallelism each rank holds a part of them.
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHd = self._rotated(self.q_norm(self.q_proj(x_BTD).view(heads)), rope)
        k_BTKd = self._rotated(self.k_norm(self.k_proj(x_BTD).view(heads)), rope)
        v_BTKd = self.v_proj(x_BTD).view(heads)
        return self.o_proj(attend(q_BTHd, k_BTKd, v_BTKd, self.window).flatten(2))

    def _rotated(self, x_BTHd: Tensor, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        if self.rotary_dim == 0:
            return x_BTHd
        if self.rotary_dim == self.head_dim:
            return apply_rope(x_BTHd, *rope[self.rotary_dim])
        turned, kept = x_BTHd.split((self.rotary_dim, self.head_dim - self.rotary_dim), dim=-1)
        return torch.cat((apply_rope(turned, *rope[self.rotary_dim]), kept), dim=-1)

    @classmethod
    def kv_cache_shape(cls, args: Args) -> tuple[int, int]:
        return args["num_kv_heads"], args["head_dim"]

    @classmethod
    def rope_dim(cls, args: Args) -> int | None:
        rotated = args.get("rotary_dim")
        return (args["head_dim"] if rotated is None else rotated) or None

    @classmethod
    def whole_units(cls, args: Args) -> Mapping[str, int]:
        return {"query heads": args["num_heads"], "KV heads": args["num_kv_heads"]}

    @classmethod
    def flops(cls, args: Args, weights: int, attended: float) -> float:
        """In addition to the matrices, the products q @ k' and attention @ v cost 4 * heads * head size for each token
        attended to (PaLM, Chowdhery et al. 2022, appendix B)."""
        seen = min(attended, args.get("window") or attended)
        return 2.0 * weights + 4.0 * args["num_heads"] * args["head_dim"] * seen

    @classmethod
    def short_name(cls, args: Args) -> str:
        return f"kv{args['num_kv_heads']}"

    @classmethod
    def smaller(cls, args: Args, space: SearchSpace) -> Iterator[Args]:
        return ({**args, "num_kv_heads": count} for count in space.fewer_heads(args["num_kv_heads"]))

    @classmethod
    def conversions(cls, args: Args, parent: Parent) -> Sequence[Conversion]:
        """The averages of neighbouring heads, or one of each so many neighbours: the first, the second, ..."""
        pooled = args["num_kv_heads"]
        if parent.layer is not cls or {**parent.args, "num_kv_heads": pooled} != args:
            return ()
        if (heads := parent.args["num_kv_heads"]) % pooled:
            return ()
        return [_pooling(heads, pooled, keep) for keep in (None, *range(heads // pooled))]


def _pooling(heads: int, pooled: int, keep: int | None) -> Conversion:
    return lambda weights, scores_F: pool_kv_heads(weights, heads, pooled, keep=keep)

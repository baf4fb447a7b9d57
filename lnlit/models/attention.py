"""Grouped-query attention.

Shape suffixes: B rows, T tokens, D hidden, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.interfaces import AttentionLayer, LayerContext
from lnlit.interfaces.layer import Args, Attend, Conversion, Parent, SearchSpace, Weights
from lnlit.models.rope import apply_rope
from lnlit.models.surgery import attention_as_matrix, pool_kv_heads


class GroupedQueryAttention(nn.Module, AttentionLayer):
    """Softmax attention with `num_heads` query heads sharing `num_kv_heads` key/value heads (Ainslie et al. 2023).

    MHA and MQA are the two ends. `num_heads * head_dim` need not be the hidden size. `bias` puts one on all four
    projections, as Hugging Face's `attention_bias` does.
    """

    tensor_parallel = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "o_proj": "rowwise"}

    def __init__(
        self, context: LayerContext, *, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool = False
    ) -> None:
        super().__init__()
        where = f"layers[{context.layer_index}].attention"
        if min(num_heads, num_kv_heads, head_dim) < 1 or num_heads % num_kv_heads:
            raise UserError(
                f"{where}: num_heads ({num_heads}) must be a positive multiple of num_kv_heads ({num_kv_heads})"
            )
        if head_dim % 2:
            raise UserError(f"{where}: head_dim must be even for rotary embedding, got {head_dim}")
        self.head_dim = head_dim
        self.q_proj = nn.Linear(context.hidden_size, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(context.hidden_size, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(context.hidden_size, num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, context.hidden_size, bias=bias)

    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        # -1 heads: under tensor parallelism each rank holds a part of them.
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        cos_BTd, sin_BTd = rope[self.head_dim]
        q_BTHd = apply_rope(self.q_proj(x_BTD).view(heads), cos_BTd, sin_BTd)
        k_BTKd = apply_rope(self.k_proj(x_BTD).view(heads), cos_BTd, sin_BTd)
        v_BTKd = self.v_proj(x_BTD).view(heads)
        return self.o_proj(attend(q_BTHd, k_BTKd, v_BTKd).flatten(2))

    @classmethod
    def kv_cache_shape(cls, args: Args) -> tuple[int, int]:
        return args["num_kv_heads"], args["head_dim"]

    @classmethod
    def whole_units(cls, args: Args) -> Mapping[str, int]:
        return {"query heads": args["num_heads"], "KV heads": args["num_kv_heads"]}

    @classmethod
    def flops(cls, args: Args, weights: int, attended: float) -> float:
        """Beside the matrices, q k' and its product with v: 4 x heads x head size for each token attended to (PaLM,
        Chowdhery et al. 2022, appendix B).
        """
        return 2.0 * weights + 4.0 * args["num_heads"] * args["head_dim"] * attended

    @classmethod
    def short_name(cls, args: Args) -> str:
        return f"kv{args['num_kv_heads']}"

    @classmethod
    def smaller(cls, args: Args, space: SearchSpace) -> Iterator[Args]:
        return ({**args, "num_kv_heads": count} for count in space.fewer_heads(args["num_kv_heads"]))

    @classmethod
    def conversion(cls, args: Args, parent: Parent) -> Conversion | None:
        if parent.layer is not cls:
            return None
        return lambda weights, scores_F: pool_kv_heads(weights, parent.args["num_kv_heads"], args["num_kv_heads"])

    @classmethod
    def as_matrix(cls, args: Args) -> Callable[[Weights], Tensor]:
        return lambda weights: attention_as_matrix(weights, args["num_heads"], args["num_kv_heads"])

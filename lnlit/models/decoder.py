"""The heterogeneous decoder: a stack of registry-built blocks.

Shape suffixes: B batch rows, T tokens, D hidden, V vocabulary, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.models.block import Packed, make_block
from lnlit.models.kernels import make_segments, select_kernel
from lnlit.models.norm import RMSNorm
from lnlit.models.packed_attention import AttentionContext, PackedAttention, SharedAttention
from lnlit.models.parts import attention_class
from lnlit.models.recompute import recomputed
from lnlit.models.rope import inverse_frequencies, rope_tables
from lnlit.models.vocabulary import embedded, logits
from lnlit.specs import ModelSpec

#: (hidden_BTD after the final norm, head weight [V, D]) -> anything. Runs inside `forward`, so that DDP and FSDP2 see
#: one forward pass and a loss can avoid ever holding all logits. Under tensor parallelism the weight is a `DTensor` of
#: which each rank has some rows.
ReadOut = Callable[[Tensor, Tensor], Any]
#: (block index, its output_BTD), called after each block.
OnBlock = Callable[[int, Tensor], None]


def _read(read_out: ReadOut, x_BTD: Tensor, weight_VD: Tensor) -> Any:
    try:
        return read_out(x_BTD, weight_VD)
    except RuntimeError as error:
        if "mixed torch.Tensor and DTensor" not in str(error):
            raise
        raise UserError(
            "tensor_parallel_size: the training method multiplies by the head's weight itself, of which each rank has "
            "some rows. Let it call lnlit.interfaces.logits(hidden, weight), or set tensor_parallel_size: 1."
        ) from error


class Decoder(nn.Module):
    """A decoder: embedding, blocks, final norm, head. Parameters have Hugging Face's Llama names without the leading
    `model.`.

    `attention_kernel` is a registry name or "auto". `activation_checkpointing` recomputes each block in the backward
    pass: a third more compute in exchange for storing the activations of only one block at a time. "offload" also keeps
    the blocks' inputs in host memory until then.
    """

    def __init__(
        self,
        spec: ModelSpec,
        attention_kernel: str = "auto",
        activation_checkpointing: bool | Literal["offload"] = False,
    ) -> None:
        super().__init__()
        self.spec, self.attention_kernel, self.activation_checkpointing = (
            spec,
            attention_kernel,
            activation_checkpointing,
        )
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(make_block(spec, index, block) for index, block in enumerate(spec.layers))
        self.norm = RMSNorm(spec.hidden_size, eps=spec.norm_eps)
        self.lm_head = None if spec.tie_embeddings else nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        attentions = [block.attention for block in spec.layers]
        self._rope_sizes = {size for part in attentions if (size := attention_class(part).rope_dim(part.args))}
        self._rope_cache: dict[Any, Tensor] = {}
        self._kernels: dict[str, Any] = {}

    @property
    def head_weight(self) -> Tensor:
        """The output projection [V, D]; the embedding's weight if the two are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        gather_index: Tensor | None = None,
        *,
        attention: AttentionContext | None = None,
        read_out: ReadOut | None = None,
        on_block: OnBlock | None = None,
    ) -> Any:
        """Returns logits [B, T, V], or the result of `read_out`.

        `lengths` are the lengths of the documents in a packed batch, row by row, and `gather_index` the gather index of
        their tokens if documents share some (see `TokenBatch`). Without `lengths`, each row is one document.
        `positions_BT` default to 0..T-1. `attention` replaces packed attention, e.g. by attention with a KV cache.
        `on_block` is called with every block's output. A loss that it computes from the outputs is differentiable, and
        must be part of `read_out`'s result.
        """
        x_BTD = self.embed(tokens_BT)
        attention, rope = self.block_inputs(tokens_BT, x_BTD.dtype, positions_BT, lengths, gather_index, attention)
        for index, block in enumerate(self.layers):
            attend = attention.layer(index)
            if self.activation_checkpointing and self.training:
                x_BTD = recomputed(block, x_BTD, attend, rope, self.activation_checkpointing == "offload")
            else:
                x_BTD = block(x_BTD, attend, rope)
            if on_block is not None:
                on_block(index, x_BTD)
        x_BTD = self.norm(x_BTD)
        if read_out is not None:
            return _read(read_out, x_BTD, self.head_weight)
        return logits(x_BTD, self.head_weight)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """The residual stream before the first block [B, T, D], in the compute dtype."""
        x_BTD = embedded(tokens_BT, self.embed_tokens)
        if torch.is_autocast_enabled(x_BTD.device.type):  # keep the residual stream in the compute dtype
            x_BTD = x_BTD.to(torch.get_autocast_dtype(x_BTD.device.type))
        return x_BTD

    def block_inputs(
        self,
        tokens_BT: Tensor,
        dtype: torch.dtype,
        positions_BT: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        gather_index: Tensor | None = None,
        attention: AttentionContext | None = None,
    ) -> tuple[AttentionContext, Mapping[int, tuple[Tensor, Tensor]]]:
        """The inputs of a block other than the residual stream (of type `dtype`): attention and rope tables. Arguments
        are those of `forward`.

        No weights are used, so a decoder on the meta device can prepare the inputs of blocks that are run one by one.
        """
        rows, tokens = tokens_BT.shape
        if positions_BT is None:
            positions_BT = torch.arange(tokens, device=tokens_BT.device).expand(rows, tokens)
        if attention is None:
            segments = make_segments(lengths or [tokens] * rows, tokens_BT.device)
            kernel = self._kernel(tokens_BT.device.type)
            attention = (
                PackedAttention(kernel, segments)
                if gather_index is None
                else SharedAttention(kernel, segments, gather_index, tokens_BT.numel())
            )
        return attention, self._rope(positions_BT, dtype)

    def packed_weights(self) -> dict[str, Packed]:
        """Maps the name of each parameter that stacks several weights along dim 0 to these weights. All names are
        relative to the decoder."""
        return {
            f"layers.{index}.{name}": Packed(tuple(f"layers.{index}.{part}" for part in packed.parts), packed.runs)
            for index, block in enumerate(self.layers)
            for name, packed in block.packed_weights().items()  # type: ignore[operator]
        }

    def _kernel(self, device_type: str) -> Any:
        if device_type not in self._kernels:
            self._kernels[device_type] = select_kernel(self.attention_kernel, device_type)
        return self._kernels[device_type]

    def _rope(self, positions_BT: Tensor, dtype: torch.dtype) -> Mapping[int, tuple[Tensor, Tensor]]:
        tables = {}
        for size in self._rope_sizes:
            key = (size, positions_BT.device)
            if key not in self._rope_cache:
                self._rope_cache[key] = inverse_frequencies(self.spec.rope, size, positions_BT.device)
            tables[size] = rope_tables(self._rope_cache[key], positions_BT, dtype)
        return tables

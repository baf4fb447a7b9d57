"""A frozen teacher that is checked, loaded and sharded like the trained model, but never trained or saved.

Shape suffixes: B rows, T tokens, N positions with loss, E the teacher's hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lnlit.checkpoint.formats import resolve
from lnlit.checkpoint.load import frozen_decoder
from lnlit.checkpoint.vocabulary import differing, same_tokenizer_file, token_ids
from lnlit.errors import UserError
from lnlit.interfaces import TokenBatch
from lnlit.models.decoder import Decoder
from lnlit.specs import ModelSpec


class Target(NamedTuple):
    """The teacher's results for one batch: the inputs of its head, and block outputs by block index."""

    hidden_NE: Tensor
    head_VE: Tensor
    blocks: dict[int, Tensor]  # [B, T, E]


class Teacher:
    """A frozen decoder that is deliberately not an `nn.Module`: as an attribute of a training method it is then not
    part of checkpoints, optimizers and DDP buckets.

    Args:
        decoder: The frozen model.
        layers: The indices of the blocks whose outputs to keep.
    """

    def __init__(self, decoder: Decoder, layers: Sequence[int]) -> None:
        self.decoder = decoder
        self.layers = frozenset(layers)

    @torch.no_grad()
    def __call__(self, batch: TokenBatch, counts_BT: Tensor) -> Target:
        blocks: dict[int, Tensor] = {}

        def keep(index: int, output_BTE: Tensor) -> None:
            if index in self.layers:
                blocks[index] = output_BTE

        def read_out(hidden_BTE: Tensor, head_VE: Tensor) -> tuple[Tensor, Tensor]:
            # FSDP2 leaves the root's parameters gathered after its forward pass, so the head can be used outside.
            return hidden_BTE[counts_BT], head_VE.detach()

        hidden_NE, head_VE = self.decoder(
            batch.tokens, batch.positions, batch.lengths, batch.gather_index, read_out=read_out, on_block=keep
        )
        return Target(hidden_NE, head_VE, blocks)


def load_teacher(
    path: str,
    spec: ModelSpec,
    device: torch.device,
    mesh: DeviceMesh | None,
    dtype: torch.dtype | None,
    attention_kernel: str,
) -> Decoder:
    """Calls `frozen_decoder`, which has the same arguments; `spec` is the spec at `path`."""
    return frozen_decoder(path, device, dtype, mesh=mesh, attention_kernel=attention_kernel)


def check_teacher(path: str, teacher: ModelSpec, model: str, student: ModelSpec) -> None:
    """Raises `UserError` unless both models predict the same tokens."""
    if teacher.vocab_size != student.vocab_size:
        raise UserError(
            f"teacher: {path} has a vocabulary of {teacher.vocab_size:,} tokens, the model {student.vocab_size:,}. "
            "Distillation compares their predictions token by token; use a teacher with the same tokenizer."
        )
    if same_tokenizer_file(resolve(path), model):
        return
    ours, theirs = token_ids(model), token_ids(path)
    if ours and theirs and (what := differing(ours, theirs)):
        raise UserError(
            f"teacher: {path} has another tokenizer: {what}. Distillation compares their predictions token by token; "
            "use a teacher with the same tokenizer."
        )

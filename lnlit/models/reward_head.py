"""The scalar head of a reward model and its file.

Shape suffixes: B rows, T positions, N positions with a label (row by row), S samples, D hidden.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.interfaces import IGNORE, TokenBatch
from lnlit.models.decoder import Decoder

#: The file of the head, beside the weights of a model folder.
FILE = "reward_head.safetensors"


class RewardHead(nn.Linear):
    """A linear layer from a hidden state to a number. It starts at zero, so that all completions have the same reward
    at first."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Maps [..., D] to [...], in fp32 or wider, because bf16 is too coarse to rank good completions."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.to(dtype), self.weight.to(dtype))[..., 0]


def scores(decoder: Decoder, head: RewardHead, batch: TokenBatch, sample_N: Tensor, samples: int) -> Tensor:
    """The head's output at each sample's last labelled token, which ends its turn, [S]. `sample_N` is the sample that
    each label belongs to, as in `PreferenceBatch`."""
    positions_N = (batch.labels != IGNORE).flatten().nonzero()[:, 0]
    before_S = positions_N.new_zeros(samples).scatter_reduce(0, sample_N, positions_N, "amax")

    def read_out(hidden_BTD: Tensor, _: Tensor) -> Tensor:
        return head(hidden_BTD.flatten(0, 1)[before_S + 1])  # a label stands one position before its token

    return decoder(batch.tokens, batch.positions, batch.lengths, read_out=read_out)


def save_head(head: RewardHead, folder: Path) -> None:
    file = folder / FILE
    save_file({"weight": head.weight.detach().float().cpu().contiguous()}, file)
    file.chmod(0o644)  # safetensors makes it private


def load_head(head: RewardHead, folder: Path) -> None:
    """Loads the head's weight from a folder. Raises `UserError` if there is no head or if it has another width."""
    file = folder / FILE
    if not file.is_file():
        raise UserError(
            f"{folder}: no reward model, there is no {FILE}. Train one with RewardModel and ExportModel, or give the "
            "folder that they wrote."
        )
    try:
        weight = load_file(file).get("weight")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read: {error}. Export the model again.") from error
    if weight is None or weight.shape != head.weight.shape:
        found = "no weight" if weight is None else f"a weight of shape {list(weight.shape)}"
        raise UserError(f"{file}: {found}, the model in this folder needs {list(head.weight.shape)}.")
    with torch.no_grad():
        head.weight.copy_(weight)

"""What each of two ranks reads, holds and exchanges, as a script: ... rank_parts.py MODEL OUT"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from lnlit.checkpoint.load import frozen_decoder
from lnlit.checkpoint.safetensors_folder import SafetensorsFolder
from lnlit.models.ranks import _exchange, all_gather, streamed
from lnlit.models.weights import canonical_weights
from lnlit.objectives import chunked_head, log_probs
from lnlit.objectives.cross_entropy import linear_cross_entropy
from lnlit.objectives.distill import linear_distillation
from lnlit.objectives.log_probs import linear_log_probs

#: The time limit of the process group, and for how long rank 1 is busy.
LIMIT_S, BUSY_S = 8, 11


def reading(model: str, sizes: tuple[int, int]) -> dict[str, object]:
    """The bytes that a rank asks files for, to have its part of the model, and a digest of what all have together."""
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("data_parallel", "tensor_parallel"))
    read, given = 0, SafetensorsFolder.read

    def counted(*arguments) -> torch.Tensor:
        nonlocal read
        found = given(*arguments)
        read += found.nbytes
        return found

    SafetensorsFolder.read = counted
    try:
        decoder = frozen_decoder(model, "cpu", mesh=mesh)
    finally:
        SafetensorsFolder.read = given
    total = {name: float(tensor.double().sum()) for name, tensor in canonical_weights(decoder)}
    return {"bytes": read, "sums": total}


def widest_logits(model: str) -> dict[str, int]:
    """The most columns of logits that any loss of a head holds at once."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    decoder = frozen_decoder(model, "cpu", mesh=mesh)
    seen: list[int] = []
    product = chunked_head.head_logits

    def noted(hidden_CD, weight_VD, rounded):
        logits_CV = product(hidden_CD, weight_VD, rounded)
        seen.append(logits_CV.shape[1])
        return logits_CV

    hidden, tokens = torch.randn(20, decoder.spec.hidden_size), torch.arange(20)
    chunked_head.head_logits = log_probs.head_logits = noted
    try:
        linear_cross_entropy(hidden, decoder.head_weight, tokens)
        linear_log_probs(hidden, decoder.head_weight, tokens)
        linear_distillation(hidden, decoder.head_weight, hidden, decoder.head_weight, tokens)
    finally:
        chunked_head.head_logits = log_probs.head_logits = product
    return {"calls": len(seen), "columns": max(seen)}


if __name__ == "__main__":
    model, out = sys.argv[1:]
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    found = {"fsdp": reading(model, (2, 1)), "tp": reading(model, (1, 2)), "logits": widest_logits(model)}
    found["streamed"] = list(streamed({"key": 1}, lambda key: f"{key} of {rank}"))
    found["gathered"] = all_gather(f"of {rank}")
    options = _exchange()._get_backend(torch.device("cpu")).options
    found["exchange"] = [distributed.get_backend(_exchange()), options._timeout.total_seconds()]
    Path(f"{out}.{rank}").write_text(json.dumps(found))
    distributed.destroy_process_group()

"""What checkpoints of blockwise distillation hold of a candidate, and how a strategy of sharded models writes them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor

from lnlit.errors import UserError
from lnlit.search.train import Trainee

#: The methods of a strategy that save and load.
_WAYS = (
    "save_checkpoint",
    "load_checkpoint",
    "lightning_module_state_dict",
    "load_model_state_dict",
    "optimizer_state",
)


def save_in_one_file(strategy: Strategy) -> None:
    """Has a strategy of sharded models save and load as those do that shard nothing, until `save_as_before`. Its own
    ways are for the sharded parameters of a module; that of blockwise distillation has none, and rank 0 gets what is to
    be saved."""
    for name in _WAYS if isinstance(strategy, ModelParallelStrategy) else ():
        setattr(strategy, name, partial(getattr(Strategy, name), strategy))


def save_as_before(strategy: Strategy) -> None:
    for name in _WAYS:
        vars(strategy).pop(name, None)


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def state_of(trainee: Trainee, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A candidate's weights, the order of their rows and their moments, on the CPU."""
    named: dict[str, Tensor] = dict(trainee.block.named_parameters())
    moments = {name: on_cpu(optimizer.state[parameter]) for name, parameter in named.items()}
    return {"weights": on_cpu(named), "moments": moments, "packed_runs": _runs(trainee)}


@torch.no_grad()
def restore(trainee: Trainee, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `state_of`. Raises `UserError` for packed weights whose rows have another order."""
    for name, runs in _runs(trainee).items():
        if state.get("packed_runs", {}).get(name, 1) != runs:
            raise UserError(
                f"ckpt_path: {trainee.at} has the rows of {name} in another order than this lnlit; start the run anew."
            )
    for name, parameter in trainee.block.named_parameters():
        parameter.copy_(state["weights"][name])
        for key, moment in state["moments"][name].items():
            optimizer.state[parameter][key] = moment.to(parameter.device)


def _runs(trainee: Trainee) -> dict[str, int]:
    return {name: packed.runs for name, packed in trainee.block.packed_weights().items()}

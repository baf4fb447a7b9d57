"""AdamW and its learning-rate schedule, as plain configuration."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lnlit.errors import UserError
from lnlit.schema import check


@dataclass(frozen=True)
class AdamW:
    """AdamW with linear warm-up, then a constant rate or a cosine to a floor (Llama-Nemotron section 4).

    Args:
        learning_rate: Peak rate.
        schedule: "cosine" decays to `final_learning_rate` at the last step; "constant" stays at the peak.
        warmup_ratio: Fraction of all steps during which the rate rises linearly from 0 (the paper's LN-Ultra: 0.1).
        final_learning_rate: Floor of the cosine.
        weight_decay: Decoupled decay of matrices; norms and biases have none.
        betas: Moment decay rates.
        eps: Denominator floor.
    """

    learning_rate: float
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = 0.1
    final_learning_rate: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check(self, "optimizer")
        if not 0 <= self.final_learning_rate <= self.learning_rate or not 0 < self.learning_rate < math.inf:
            raise UserError(
                f"optimizer: needs 0 <= final_learning_rate <= learning_rate and learning_rate > 0, got "
                f"{self.final_learning_rate} and {self.learning_rate}"
            )
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(f"optimizer.warmup_ratio: expected 0 <= ratio < 1, got {self.warmup_ratio}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"optimizer.weight_decay: expected a number of 0 or more, got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas: expected two numbers, 0 <= beta < 1, got {self.betas}")
        if not 0 < self.eps < math.inf:
            raise UserError(f"optimizer.eps: expected a positive number, got {self.eps}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """Builds an optimizer with one group with weight decay and one without, however the parameters are sharded.
        Checkpoints hold the groups, and must fit another division of the model."""
        groups: dict[bool, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            if parameter.requires_grad:
                groups[parameter.dim() > 1].append(parameter)
        settings = [
            {"params": members, "weight_decay": self.weight_decay if is_matrix else 0.0}
            for is_matrix, members in groups.items()
        ]
        return _ByMesh(settings, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True)

    def factor(self, step: int, total_steps: int) -> float:
        """The learning rate at optimizer step `step` (from 0), as a fraction of `learning_rate`."""
        warmup = max(round(self.warmup_ratio * total_steps), 1) if self.warmup_ratio else 0
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        floor = self.final_learning_rate / self.learning_rate
        progress = min((step - warmup) / max(total_steps - 1 - warmup, 1), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class _ByMesh(torch.optim.AdamW):
    """AdamW for groups of plain and sharded tensors on several device meshes. A fused step takes tensors of one mesh
    only, so it makes one step per mesh."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        groups = self.param_groups
        by_mesh: dict[tuple[int, object], list[nn.Parameter]] = defaultdict(list)
        for index, group in enumerate(groups):
            for parameter in group["params"]:
                by_mesh[index, getattr(parameter, "device_mesh", None)].append(parameter)
        self.param_groups = [{**groups[index], "params": members} for (index, _), members in by_mesh.items()]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


def numbered_like_the_model(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]
) -> dict[str, Any]:
    """The optimizer's state dict, with parameters numbered in the order of the model instead of the optimizer's.

    torch can load both. When Lightning spreads a single file over a sharded model, it assumes the model's order, and
    would silently give moments to the wrong parameters of equal shape. Names are kept.
    """
    place = {parameter: index for index, parameter in enumerate(parameters)}
    number = [place[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    if not all(isinstance(key, int) for key in state["state"]):
        return state
    groups = [{**group, "params": [number[own] for own in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[own]: value for own, value in state["state"].items()}, "param_groups": groups}

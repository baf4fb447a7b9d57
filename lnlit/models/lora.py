"""Low-rank adapters (Hu et al. 2021): chosen linears are replaced by torchtune's `LoRALinear`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder
from lnlit.models.shards import own_part

_ADAPTER_LEAVES = {"lora_a", "lora_b"}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters: `W x + (alpha / rank) B A x`, where only A and B are trained.

    Args:
        rank: Inner size of the adapters.
        alpha: Scale of the adapters before division by `rank`.
        dropout: Dropout probability on the adapters' input.
        targets: Names of the linears that get adapters.
        base_dtype: Dtype of the frozen weights; null is the run's. With bf16-mixed, "bfloat16" gives the same step in
            half of their memory, as that is what they are computed in; what is written has it too.
        adapter: PEFT folder whose adapters training goes on from. It has the same rank, alpha and targets; null begins
            with new ones.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    base_dtype: Literal["bfloat16"] | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise UserError(f"lora.rank: expected a positive integer, got {self.rank}")
        if not 0 < self.alpha < math.inf:  # 0 would train nothing
            raise UserError(f"lora.alpha: expected a positive number, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout: expected 0 <= dropout < 1, got {self.dropout}")
        if not self.targets:
            raise UserError("lora.targets: the list is empty, so nothing would be trained; leave lora out instead")

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint says of its adapters: everything but where they began."""
        said = {**asdict(self), "targets": list(self.targets)}
        del said["adapter"]
        return said


def add_lora(decoder: Decoder, lora: LoRA) -> None:
    """Adds adapters to all targets and freezes all other parameters, in place. Call `init_lora` when the weights have
    storage."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # torchtune imports it, and it reports foreign kernels
    from torchtune.modules.peft import LoRALinear, get_adapter_params, set_trainable_params

    linears = {name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    names = {name.rpartition(".")[2] for name in linears if name.startswith("layers.")}
    if unknown := set(lora.targets) - names:
        raise UserError(
            f"lora.targets: no linear is called {', '.join(sorted(unknown))}. Present: {', '.join(sorted(names))}."
        )
    for name, linear in linears.items():
        parent, _, leaf = name.rpartition(".")
        if leaf in lora.targets and parent:
            with torch.device(linear.weight.device):
                adapted = LoRALinear(
                    linear.in_features,
                    linear.out_features,
                    lora.rank,
                    lora.alpha,
                    lora.dropout,
                    linear.bias is not None,
                )
            setattr(decoder.get_submodule(parent), leaf, adapted.to(linear.weight.dtype))
    set_trainable_params(decoder, get_adapter_params(decoder))
    if lora.base_dtype is not None:
        for _, parameter in base_parameters(decoder):
            parameter.data = parameter.data.to(getattr(torch, lora.base_dtype))


@torch.no_grad()
def init_lora(decoder: Decoder) -> None:
    """Initialises A Kaiming-uniform and B with zeros (Hu et al. 2021), so that the adapted model equals the base model
    at first.

    Whole matrices are drawn, of which each rank takes its part, because ranks with equal seeds would otherwise fill
    their shards with equal rows.
    """
    for module in decoder.modules():
        if is_adapted(module):
            for part, draw in ((module.lora_a, True), (module.lora_b, False)):
                weight: Tensor = part.weight  # type: ignore[union-attr, assignment]
                full = torch.zeros(weight.shape, device=weight.device)
                if draw:
                    nn.init.kaiming_uniform_(full, a=math.sqrt(5))
                put(weight, full)


@torch.no_grad()
def put(parameter: Tensor, whole: Tensor) -> None:
    """Copies this rank's part of `whole` into a parameter."""
    own, shape, offset = own_part(parameter)
    own.copy_(whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))])


def is_adapted(module: nn.Module) -> bool:
    """True for a linear with an adapter."""
    return hasattr(module, "lora_a")


def base_parameters(decoder: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The decoder's named parameters without adapters."""
    for name, parameter in decoder.named_parameters():
        if not _ADAPTER_LEAVES.intersection(name.split(".")):
            yield name, parameter


def merged(decoder: Decoder, name: str, whole: Callable[[str], Tensor]) -> Tensor:
    """The parameter called `name`, with its adapter added if it has one. `whole(name)` returns the full value of a
    parameter."""
    weight = whole(name)
    module_name, _, leaf = name.rpartition(".")
    module = decoder.get_submodule(module_name)
    if leaf != "weight" or not is_adapted(module):
        return weight
    a, b = (whole(f"{module_name}.{part}.weight") for part in ("lora_a", "lora_b"))
    return with_adapter(weight, a, b, module.alpha / module.rank)  # type: ignore[operator]


def with_adapter(weight: Tensor, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None = None) -> Tensor:
    """`weight + scale * b @ a`, computed in fp32 at least and rounded once to the dtype of `weight`. With DoRA its rows
    get the lengths `magnitude`."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    a, b = a.to(weight.device, wide), b.to(weight.device, wide)
    total = weight.to(wide) + scale * (b @ a)
    if magnitude is not None:
        total *= (magnitude.to(total) / total.norm(dim=1))[:, None]
    return total.to(weight.dtype)

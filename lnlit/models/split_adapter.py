"""Tensor parallelism of a linear with a low-rank adapter, which is split as the linear alone would be."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle


class SplitAdapter(ParallelStyle):
    """Splits torchtune's `LoRALinear`: by its outputs ("colwise" and "gathered") with its B, or by its inputs
    ("rowwise") with its A. The other factor is whole on each rank.

    Inputs and outputs are those of torch's own styles: plain tensors, whole or this rank's part.
    """

    def __init__(self, style: str) -> None:
        self.by_inputs, self.is_gathered = style == "rowwise", style != "colwise"

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, self._split, self._take, self._give)  # type: ignore[arg-type]

    def _split(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        own, split, whole = dict(module.named_parameters(recurse=False)), Shard(int(self.by_inputs)), Replicate()
        for key, parameter in own.items():
            is_split = name in ("", "lora_a" if self.by_inputs else "lora_b")
            if key == "bias" and self.by_inputs:
                is_split = False
            placed = distribute_tensor(parameter.detach(), mesh, [split if is_split else whole])
            setattr(module, key, nn.Parameter(placed, requires_grad=parameter.requires_grad))

    def _take(self, module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
        placement = Shard(inputs[0].dim() - 1) if self.by_inputs else Replicate()
        return (DTensor.from_local(inputs[0], mesh, [placement], run_check=False), *inputs[1:])

    def _give(self, module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Any:
        placement = Replicate() if self.is_gathered else Shard(output.dim() - 1)
        return output.redistribute(placements=[placement]).to_local()

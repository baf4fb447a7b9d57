"""What a run trains, in how large steps and on what, in four lines at its start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lnlit.data.planned import PlannedData
from lnlit.models.decoder import Decoder
from lnlit.models.parts import short_name
from lnlit.specs import ModelSpec

_GIB = 2**30
_KINDS = 5  # of layers in one line


@runtime_checkable
class TrainsDecoder(Protocol):
    """A method that trains a decoder of ours."""

    model: str
    decoder: Decoder

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def trained(self) -> Iterator[nn.Parameter]: ...
    def data_parallel_size(self) -> int: ...


class RunSummary(L.Callback):
    """Prints what is trained, its layers by kind, how many tokens a step has, and the machine with its memory.

    It stands in the place of Lightning's table, which counts the parameters of a whole decoder in one row. The memory
    is that of weights, gradients and AdamW's moments of one rank, without activations. Switched off by
    `trainer.enable_model_summary: false`.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for line in self.lines(trainer, pl_module):
            rank_zero_info(line)

    def lines(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[str]:
        """The lines, one after another. A module with a decoder of ours has all four."""
        memory = ""
        if isinstance(pl_module, TrainsDecoder):
            yield f"{type(pl_module).__name__} of {pl_module.model}: {_trained(pl_module)}"
            yield kinds(pl_module.decoder.spec)
            held = memory_bytes(pl_module.parameters(), pl_module.trained())
            memory = f"; weights, gradients and moments: {held / _GIB:.2f} GiB a rank"
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, PlannedData):
            ranks = pl_module.data_parallel_size() if isinstance(pl_module, TrainsDecoder) else trainer.world_size
            micro_batches = trainer.accumulate_grad_batches
            total = data.micro_batch_tokens * micro_batches * ranks
            yield (
                f"a step: {total:,} tokens; micro-batches of {data.micro_batch_tokens:,}, {micro_batches} accumulated, "
                f"ranks with rows of their own: {ranks}"
            )
        yield f"on {_machine(trainer.strategy)}, precision {trainer.precision}{memory}"


def kinds(spec: ModelSpec) -> str:
    """The layers by kind, the commonest first: "layers: 28 x kv3 + i1536, 2 x noop + linear"."""
    found = Counter(
        f"{short_name('attention', block.attention)} + {short_name('ffn', block.ffn)}" for block in spec.layers
    )
    named = [f"{count} x {kind}" for kind, count in found.most_common(_KINDS)]
    if rest := len(found) - len(named):
        left = len(spec.layers) - sum(count for _, count in found.most_common(_KINDS))
        named.append(f"{left} of other kinds ({rest})")
    return f"layers: {', '.join(named)}"


def memory_bytes(parameters: Iterable[nn.Parameter], trained: Iterable[nn.Parameter]) -> int:
    """The bytes of this rank's shards of weights, and of gradients and two moments of those that are trained."""
    learning = sum(_bytes(parameter) for parameter in trained if parameter.requires_grad)
    return sum(map(_bytes, parameters)) + 3 * learning


def _bytes(parameter: Tensor) -> int:
    own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return own.numel() * own.element_size()


def _trained(module: TrainsDecoder) -> str:
    every = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.trained() if parameter.requires_grad)
    return f"{every:,} parameters, " + ("all trained" if trained == every else f"{trained:,} of them trained")


def _machine(strategy: Strategy) -> str:
    device = strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if isinstance(strategy, ModelParallelStrategy):
        sizes = {axis: strategy.device_mesh[axis].size() for axis in ("data_parallel", "tensor_parallel")}
        return f"{name}, FSDP2 over {sizes['data_parallel']} ranks x tensor parallelism over {sizes['tensor_parallel']}"
    return f"{strategy.world_size} x {name}, DDP" if isinstance(strategy, DDPStrategy) else name

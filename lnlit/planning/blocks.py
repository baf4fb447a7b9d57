"""What the stages of a search take that run a parent layer by layer: its library, blockwise distillation, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lnlit.planning.gpus import Gpu
from lnlit.planning.plan import MFU, Plan, advised, meshes
from lnlit.planning.sizes import Mesh, Unit, alone, block_flops, sized
from lnlit.search.choice import SLOTS
from lnlit.search.space import Candidates
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

#: A candidate: its slot and its part.
Tried = tuple[str, PartSpec]
#: The residual stream before, within and behind the current layer (lnlit/search/walk.py).
_STREAMS = 3


def tried(spec: ModelSpec, candidates: Candidates) -> list[list[Tried]]:
    """The candidates of each layer."""
    return [
        [(slot, part) for slot in SLOTS for part in candidates.of(slot, getattr(block, slot)).values()]
        for block in spec.layers
    ]


def library_bytes(spec: ModelSpec, layers: Sequence[Sequence[Tried]], size: int = 2) -> int:
    """The bytes on disk of a library whose numbers have `size` bytes."""
    return size * sum(_parameters(spec, each) for layer in layers for each in layer)


def _parameters(spec: ModelSpec, candidate: Tried) -> int:
    return Unit.of(alone(spec, *candidate)).parameters


@dataclass(frozen=True)
class Text:
    """Rows of a text on which candidates are tried, or that go through a block together."""

    tokens: int
    batch_tokens: int


def layer_by_layer(
    stage: str, spec: ModelSpec, text: Text, gpu: Gpu, bf16: bool, scored: bool = False, disk: Mapping[str, int] = {}
) -> Plan:
    """A stage for which one layer of the parent is in memory at a time, beside embedding, norm and head, and the whole
    text in front of it. If it is `scored`, the parent's hidden state of each token waits at the end, and in fp32 the
    mean row of the head that it predicts."""
    size = 2 if bf16 else 4
    model = sized(spec, 1, torch.bfloat16 if bf16 else torch.float32)
    activations = max(model.quiet(layer, text.batch_tokens) for layer in _kinds(spec))
    parts = {
        "root": model.root.parameters * size,
        "a layer, read ahead": 2 * model.largest_unit * size,
        "residual streams": _STREAMS * text.tokens * spec.hidden_size * size,
        "the parent's predictions": text.tokens * spec.hidden_size * (size + 4) * scored,
        "activations": activations,
    }
    return Plan(stage, gpu, Mesh(1, 1), {"run": parts}, disk=dict(disk))


@dataclass(frozen=True)
class BlockDistillation:
    """Blockwise distillation: candidates are divided over the ranks, and so is the parent, which every rank runs on its
    own rows; of one layer at a time, all ranks have the residual streams of all rows.

    Args:
        spec: The parent.
        layers: The candidates of each layer.
        layers_at_once: The number of layers that train together.
        micro_batch_tokens: Tokens of a rank's micro-batch.
        batch_tokens: Tokens that go through a block together.
        bf16: Whether products are computed in bfloat16; weights and moments of candidates are in fp32.
        steps: The number of optimizer steps of all groups together, if it is known.
    """

    spec: ModelSpec
    layers: Sequence[Sequence[Tried]]
    layers_at_once: int
    micro_batch_tokens: int
    batch_tokens: int
    bf16: bool
    steps: int | None = None

    def advised(self, stage: str, gpu: Gpu, mesh: Mesh) -> Plan:
        """The plan on a mesh and, if it does not fit, advice which one does."""
        return advised(lambda tried: self.plan(stage, gpu, tried), mesh, meshes((1,)))

    def plan(self, stage: str, gpu: Gpu, mesh: Mesh) -> Plan:
        spec, size = self.spec, 2 if self.bf16 else 4
        model = sized(spec, 1, torch.bfloat16 if self.bf16 else torch.float32)
        tokens = self.micro_batch_tokens * mesh.gpus
        largest = max(self._groups(), key=lambda group: max(_loads(spec, group, mesh.gpus)))
        own = max(_loads(spec, largest, mesh.gpus))
        parts = {
            "parent": -(-model.parameters // mesh.gpus) * size,
            "candidates": 4 * own,
            "gradients": 4 * own,
            "optimizer": 8 * own,
            "a gathered layer": model.largest_unit * size if mesh.gpus > 1 else 0,
            "residual streams": _STREAMS * (tokens + self.micro_batch_tokens) * spec.hidden_size * size,
            "activations": self._activations(),
        }
        parameters = sum(_parameters(spec, each) for layer in self.layers for each in layer)
        disk = {
            "library": 2 * parameters,
            "checkpoints": 2 * 12 * max(sum(_loads(spec, group, mesh.gpus)) for group in self._groups()),
        }
        flops, seconds = self._work(gpu, mesh, tokens)
        return Plan(stage, gpu, mesh, {"train": parts}, {}, disk, flops, seconds, self.steps)

    def _groups(self) -> list[list[Tried]]:
        with_candidates = [layer for layer in self.layers if layer]
        starts = range(0, len(with_candidates), self.layers_at_once)
        return [
            [each for layer in with_candidates[start : start + self.layers_at_once] for each in layer]
            for start in starts
        ]

    def _activations(self) -> int:
        """Activations of the largest candidate, with the parent's FFN behind it where it is one of attention."""
        found = 0
        mixed = torch.bfloat16 if self.bf16 else None
        for layer in _kinds(self.spec):
            for slot, part in self.layers[layer]:
                block = self.spec.layers[layer].replace(**{slot: part})
                block = block if slot == "attention" else BlockSpec(NOOP, part)
                use = sized(self.spec.replace(layers=(block,))).use(
                    0, self.batch_tokens, compiled=False, mixed=mixed, frees_gradients=True
                )
                found = max(found, use.forward, use.backward)
        return found

    def _work(self, gpu: Gpu, mesh: Mesh, tokens: int) -> tuple[float, tuple[float, float] | None]:
        """(FLOPs of a mean step on all devices, its shortest and longest time). The parent runs as far as the last
        layer of the group, on average half of it."""
        attended = self.micro_batch_tokens / 2
        parent = sum(block_flops(self.spec, block, attended) for block in self.spec.layers) / 2
        empty = BlockSpec(NOOP, NOOP)
        own = sum(
            3 * block_flops(self.spec, empty.replace(**{slot: part}), attended)
            for layer in self.layers
            for slot, part in layer
        ) / max(len(self._groups()), 1)
        flops = tokens * (parent + own)
        if gpu.bf16_flops is None:
            return flops, None
        compute = flops / mesh.gpus / gpu.bf16_flops
        return flops, (compute / MFU[1], compute / MFU[0])


def _loads(spec: ModelSpec, group: Sequence[Tried], ranks: int) -> list[int]:
    """Parameters of each rank's candidates: the largest first, each to the rank with the least."""
    loads = [0] * ranks
    for size in sorted((_parameters(spec, each) for each in group), reverse=True):
        loads[loads.index(min(loads))] += size
    return loads


def _kinds(spec: ModelSpec) -> list[int]:
    return list({block: layer for layer, block in enumerate(spec.layers)}.values())

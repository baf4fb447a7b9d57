"""What the stages of a search take that run a parent layer by layer: its library, blockwise distillation, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lnlit.models.build import build_block
from lnlit.models.least_squares import work_bytes
from lnlit.models.parts import layer_class
from lnlit.planning.gpus import Gpu
from lnlit.planning.plan import Plan, compute_seconds
from lnlit.planning.sizes import Mesh, block_flops, divides, part_unit, sized
from lnlit.planning.training import Bytes
from lnlit.search.choice import SLOTS, Half, alone
from lnlit.search.library import MODULES
from lnlit.search.space import Candidates
from lnlit.search.train import divided
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

#: A candidate: its slot and its part.
Tried = tuple[Half, PartSpec]
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
    return size * sum(part_unit(spec, *each).parameters for layer in layers for each in layer)


def layer_by_layer(spec: ModelSpec, tokens: int, batch_tokens: int, dtype: torch.dtype, scored: bool = False) -> Bytes:
    """What a stage takes for which one layer of the parent is in memory at a time, beside embedding, norm and head, and
    all tokens in front of it, of which `batch_tokens` go through it together. If it is `scored`, the parent's hidden
    state of each token waits at the end, and in fp32 the mean row of the head that it predicts."""
    model, size = sized(spec, 1, dtype), dtype.itemsize
    return {
        "root": model.root.parameters * size,
        "a layer, read ahead": 2 * model.largest_unit * size,
        "residual streams": _STREAMS * tokens * spec.hidden_size * size,
        "the parent's predictions": tokens * spec.hidden_size * (size + 4) * scored,
        "activations": max(model.quiet(layer, batch_tokens) for layer in model.kinds),
    }


def fitting(spec: ModelSpec, layers: Sequence[Sequence[Tried]], tokens: int, dtype: torch.dtype) -> tuple[int, int]:
    """What a library takes beside a layer to fit its candidates, in bytes: the outputs of one half of the parent's
    layer, which are on the GPU, and sums of products, which are on the CPU if there is no room for them."""
    fitted = {each for layer in layers for each in layer}
    scored: set[Tried] = {
        ("ffn", block.ffn) for block, layer in zip(spec.layers, layers, strict=True) if "ffn" in dict(layer)
    }
    width = 0
    for slot, part in fitted | scored:
        if (name := layer_class(slot, part).output_linear) is not None:
            linear = build_block(spec, 0, alone(slot, part)).get_submodule(f"{MODULES[slot]}.{name}")
            width = max(width, linear.in_features)  # type: ignore[arg-type, type-var]
    sums = work_bytes(width, spec.hidden_size)
    return tokens * spec.hidden_size * dtype.itemsize, sums


@dataclass(frozen=True)
class BlockDistillation:
    """Blockwise distillation: candidates are divided over the ranks, and so is the parent, which every rank runs on its
    own rows; of one layer at a time, all ranks have all weights and the residual streams of all rows.

    Args:
        name: The stage's name.
        spec: The parent.
        layers: The candidates of each layer.
        layers_at_once: The number of layers that train together.
        micro_batch_tokens: Tokens of a rank's micro-batch.
        batch_tokens: Tokens that go through a block together.
        dtype: The dtype of the parent and of products; weights and moments of candidates are in fp32.
        steps: The number of optimizer steps of all groups together, if it is known.
        replicas: The number of groups of ranks that hold all of the parent.
    """

    name: str
    spec: ModelSpec
    layers: Sequence[Sequence[Tried]]
    layers_at_once: int
    micro_batch_tokens: int
    batch_tokens: int
    dtype: torch.dtype
    steps: int | None = None
    replicas: int = 1

    def plan(self, gpu: Gpu, mesh: Mesh) -> Plan:
        spec, size = self.spec, self.dtype.itemsize
        model, shared = sized(spec, 1, self.dtype), sized(spec, mesh.tensor_parallel, self.dtype)
        tokens = self.micro_batch_tokens * mesh.data_parallel
        groups = self._groups()
        own = max(_largest_load(group, mesh.gpus) for group in groups)
        parts = {
            "parent": -(-shared.local.parameters * self.replicas // mesh.data_parallel) * size,
            "candidates": 4 * own,
            "gradients": 4 * own,
            "optimizer": 8 * own,
            "a gathered layer": model.largest_unit * size if mesh.gpus > 1 else 0,
            "residual streams": _STREAMS * (tokens + self.micro_batch_tokens) * spec.hidden_size * size,
            "activations": self._activations(model.kinds),
        }
        disk = {"library": library_bytes(spec, self.layers), "checkpoints": 2 * 12 * max(map(sum, groups))}
        flops = tokens * self._flops_per_token(len(groups))
        seconds = None if gpu.bf16_flops is None else compute_seconds(flops, mesh, gpu.bf16_flops)
        why = divides(spec, mesh.tensor_parallel)
        problems = (f"{mesh.tensor_parallel} ranks share no layer: {why}",) if why else ()
        return Plan(self.name, gpu, mesh, {"train": parts}, {}, disk, flops, seconds, self.steps, problems)

    def _groups(self) -> list[list[int]]:
        """The parameters of the candidates of each group of layers that train together."""
        sizes = [[part_unit(self.spec, *each).parameters for each in layer] for layer in self.layers if layer]
        starts = range(0, len(sizes), self.layers_at_once)
        return [[size for layer in sizes[start : start + self.layers_at_once] for size in layer] for start in starts]

    def _activations(self, layers: Sequence[int]) -> int:
        """Activations of the largest candidate, with the parent's FFN behind it where it is one of attention."""
        found = 0
        how = {"compiled": False, "mixed": None if self.dtype == torch.float32 else self.dtype, "frees_gradients": True}
        for layer in layers:
            for slot, part in self.layers[layer]:
                ffn = self.spec.layers[layer].ffn
                block = BlockSpec(part, ffn) if slot == "attention" else BlockSpec(NOOP, part)
                use = sized(self.spec.replace(layers=(block,))).use(0, self.batch_tokens, **how)
                found = max(found, use.forward, use.backward)
        return found

    def _flops_per_token(self, groups: int) -> float:
        """FLOPs of a mean step. The parent runs as far as the last layer of the group, on average half of it."""
        attended = self.micro_batch_tokens / 2
        parent = sum(block_flops(self.spec, block, attended) for block in self.spec.layers) / 2
        own = sum(
            3 * block_flops(self.spec, alone(slot, part), attended) for layer in self.layers for slot, part in layer
        )
        return parent + own / groups


def _largest_load(sizes: Sequence[int], ranks: int) -> int:
    """The most parameters that a rank gets of candidates."""
    loads = [0] * ranks
    for candidate, rank in divided(dict(enumerate(sizes)), ranks).items():
        loads[rank] += sizes[candidate]
    return max(loads)

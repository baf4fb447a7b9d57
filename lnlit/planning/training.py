"""The memory of one rank while a model trains: the peak of each phase, and what it consists of.

FSDP2 gathers a unit's weights in the compute dtype, and the next unit's while it computes; after a unit's backward pass
its gradients are in the compute dtype too, beside one buffer in the reduce dtype that is scattered over the ranks
(torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py). The root unit (embedding, norm, head) stays gathered.

Shape suffixes: B rows, T tokens, N positions with loss, D hidden, E another model's hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lnlit.models.lora import LoRA
from lnlit.objectives.chunked_head import CHUNK_SIZE
from lnlit.objectives.cosine import cosine_distance
from lnlit.objectives.cross_entropy import linear_cross_entropy
from lnlit.objectives.distill import linear_distillation
from lnlit.objectives.log_probs import linear_log_probs
from lnlit.planning.sizes import Mesh, Sized, Unit, sized
from lnlit.planning.traced import Trace, Use, fake, traced
from lnlit.specs import ModelSpec

#: Bytes by what they are for.
Bytes = Mapping[str, int]
#: Bytes of a number that AdamW keeps, and of a sharded or accumulated gradient under mixed precision.
_FP32 = 4


@dataclass(frozen=True)
class Frozen:
    """A model beside the trained one, which only computes: a teacher, a reference, a judge.

    Args:
        role: What it is called in tables.
        spec: The architecture.
        sharded: Whether it is divided like the trained model; otherwise each rank has all of it.
        bf16: Whether its weights are in bfloat16.
        kept_layers: How many of its layers' outputs wait for the trained model's.
        tokens: The number of tokens in one of its passes; None is as many as in a micro-batch.
        saved: Whether checkpoints hold it.
    """

    role: str
    spec: ModelSpec
    sharded: bool
    bf16: bool
    kept_layers: int = 0
    tokens: int | None = None
    saved: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32


@dataclass(frozen=True)
class Training:
    """All that the memory and the time of a step depend on.

    Args:
        spec: The trained model.
        tokens: The number of tokens in a rank's micro-batch.
        micro_batches: The number of micro-batches of an optimizer step, on each rank.
        precision: "32-true", "bf16-mixed" or "bf16-true".
        sharded: Whether FSDP2 divides the model over the data-parallel ranks.
        loss: What stands behind the head.
        checkpointing: Whether blocks are computed again in the backward pass.
        offload: Whether their inputs wait in host memory meanwhile.
        compiled: Whether blocks are compiled.
        lora: Adapters that are trained in place of the model.
        frozen: Models beside it.
        attended: The mean number of tokens that a token attends to.
        replicas: The number of groups of data-parallel ranks that hold all of the model (HSDP).
    """

    spec: ModelSpec
    tokens: int
    micro_batches: int = 1
    precision: str = "32-true"
    sharded: bool = False
    loss: Literal["cross_entropy", "distillation", "log_probs", "scores"] = "cross_entropy"
    checkpointing: bool = False
    compiled: bool = False
    fuse_gate_up: bool = False
    lora: LoRA | None = None
    frozen: tuple[Frozen, ...] = ()
    attended: float = 1.0
    offload: bool = False
    replicas: int = 1

    def on(self, mesh: Mesh) -> OnMesh:
        return OnMesh(self, mesh)


class OnMesh:
    """A training on a mesh. Every method returns bytes of one rank."""

    def __init__(self, training: Training, mesh: Mesh) -> None:
        self.training, self.mesh = training, mesh
        bf16, mixed = "bf16" in training.precision, "mixed" in training.precision
        #: Whether FSDP2 holds the shards: without other data-parallel ranks, tensor parallelism stands alone.
        self.sharded = training.sharded and (mesh.data_parallel > 1 or mesh.tensor_parallel == 1)
        self.compute = torch.bfloat16 if bf16 else torch.float32
        #: Bytes of a parameter and of an activation in the compute dtype, and of a parameter that rests.
        self.held, self.stored = self.compute.itemsize, 2 if training.precision == "bf16-true" else _FP32
        half = training.lora is not None and training.lora.base_dtype is not None
        self.stored_frozen = 2 if half else self.stored
        self.cast = self.compute if mixed and not self.sharded else None  # FSDP2 casts what it gathers
        self.frees_gradients = training.micro_batches > 1 and not self.sharded
        dtype = torch.float32 if self.cast is not None else self.compute
        adapted = training.lora, training.fuse_gate_up
        self.model = sized(training.spec, mesh.tensor_parallel, dtype, *adapted, training.loss != "scores")
        self.others = [
            (each, sized(each.spec, mesh.tensor_parallel if each.sharded else 1, each.dtype))
            for each in training.frozen
        ]
        #: The number of layers whose outputs are compared with another model's.
        self.compared = sum(each.kept_layers for each in training.frozen)

    def _share(self, count: int, sharded: bool) -> int:
        return -(-count * self.training.replicas // self.mesh.data_parallel) if sharded else count

    @cached_property
    def resting(self) -> dict[str, int]:
        """What stays between steps."""
        local = self.model.local
        found = {
            "parameters": self._share(local.parameters - local.trained, self.sharded) * self.stored_frozen
            + self._share(local.trained, self.sharded) * self.stored,
            "optimizer": 2 * self._share(local.trained, self.sharded) * self.stored,
        }
        for frozen, other in self.others:
            is_sharded = frozen.sharded and self.sharded
            found[frozen.role] = self._share(other.local.parameters, is_sharded) * frozen.dtype.itemsize
        return found

    @cached_property
    def gradients(self) -> int:
        return self._share(self.model.local.trained, self.sharded) * self.stored

    @cached_property
    def roots(self) -> int:
        """Root units that FSDP2 leaves gathered."""
        if not self.sharded:
            return 0
        theirs = (other.root.parameters * frozen.dtype.itemsize for frozen, other in self.others if frozen.sharded)
        return self.model.root.parameters * self.held + sum(theirs)

    def _gathered(self, model: Sized, layer: int, step: int, size: int) -> int:
        """The layer's weights and those of the next one, forwards (`step` 1) or backwards (-1)."""
        if not self.sharded:
            return 0
        following = layer + step
        ahead = model.units[following].parameters if 0 <= following < len(model.units) else 0
        return (model.units[layer].parameters + ahead) * size

    # what is traced

    def _use(self, layer: int) -> Use:
        how = {"compiled": self.training.compiled, "mixed": self.cast, "frees_gradients": self.frees_gradients}
        return self.model.use(layer, self.training.tokens, **how)

    @property
    def stream(self) -> int:
        """The residual stream."""
        return self.training.tokens * self.training.spec.hidden_size * self.held

    @cached_property
    def kept(self) -> list[int]:
        """What each layer keeps for its backward pass."""
        if not self.training.checkpointing:
            return [self._use(layer).kept for layer in range(len(self.model.units))]
        here = 0 if self.training.offload else self.stream
        return [here * bool(unit.parameters) for unit in self.model.units]

    @property
    def offloaded(self) -> int:
        """Inputs of blocks in host memory."""
        return self.stream * sum(bool(unit.parameters) for unit in self.model.units) * self.training.offload

    @cached_property
    def head(self) -> Use:
        """The final norm, the head and the loss of all tokens, as if each had one. They go through the head in chunks,
        so beyond a few of these every token takes the same."""
        tokens, few = self.training.tokens, 4 * CHUNK_SIZE
        if tokens <= few:
            return self._head(tokens)
        half, whole = self._head(few // 2), self._head(few)
        ends = zip(vars(half).values(), vars(whole).values(), strict=True)
        return Use(*(low + (high - low) * (tokens - few // 2) // (few // 2) for low, high in ends))

    def _head(self, tokens: int) -> Use:
        training, weight_VD = self.training, self.model.decoder.head_weight
        hidden = training.spec.hidden_size
        teacher = next((each.spec for each in training.frozen if training.loss == "distillation"), training.spec)
        with fake():
            x_BTD = torch.empty(1, tokens, hidden, dtype=self.compute, requires_grad=True)
            labels_N = torch.empty(tokens, dtype=torch.long)
            target_NE = torch.empty(tokens, teacher.hidden_size, dtype=self.compute)
            target_VE = torch.empty(weight_VD.shape[0], teacher.hidden_size, dtype=self.compute)

        def run(trace: Trace) -> Tensor:
            hidden_ND = self.model.decoder.norm(x_BTD).flatten(0, 1).index_select(0, labels_N)
            if training.loss == "distillation":
                return linear_distillation(hidden_ND, weight_VD, target_NE, target_VE, labels_N).loss
            if training.loss == "log_probs":
                return linear_log_probs(hidden_ND, weight_VD, labels_N).log_probs_N.sum()
            if training.loss == "scores":
                return hidden_ND.sum()
            return linear_cross_entropy(hidden_ND, weight_VD, labels_N)

        how = {"mixed": self.cast, "frees_gradients": self.frees_gradients}
        return traced(run, iter([weight_VD]), **how)  # type: ignore[list-item]

    @cached_property
    def matching(self) -> Use:
        """The comparison of one layer's output with a teacher's."""
        shape = (1, self.training.tokens, self.training.spec.hidden_size)
        with fake():
            states = torch.empty(shape, dtype=self.compute, requires_grad=True)
            target = torch.empty(shape, dtype=self.compute)
        return traced(lambda trace: cosine_distance(states, target).sum(), iter(()))

    # phases

    def at_least(self) -> Bytes:
        """What a step takes whatever its tokens: the largest unit gathered, with its gradients and their sum."""
        largest = max(self.model.units, key=lambda unit: unit.parameters)
        gathered = largest.parameters * self.held if self.sharded else 0
        return self._moment(self.gradients, gathered=gathered, reduction=self._reduce(largest))

    def train(self) -> Bytes:
        """The peak of an optimizer step."""
        return max((*self._forward(), *self._backward()), key=total)

    def _moment(self, gradients: int, **parts: int) -> dict[str, int]:
        buckets = 0 if self.sharded or self.mesh.gpus == 1 else self.model.local.trained * self.stored  # of DDP
        return {**self.resting, "gradients": gradients, "roots": self.roots, "DDP buckets": buckets, **parts}

    def _forward(self) -> Sequence[Bytes]:
        """A teacher's or reference's pass, and the end of the model's own, where all is kept that ever is."""
        old = self.gradients if self.training.micro_batches > 1 else 0  # of the micro-batches before this one
        moments = []
        targets = 0
        for frozen, other in self.others:
            targets += frozen.kept_layers * self.training.tokens * frozen.spec.hidden_size * self.held
            size = frozen.dtype.itemsize if frozen.sharded else 0
            for layer in other.kinds:
                passing = other.quiet(layer, frozen.tokens or self.training.tokens)
                gathered = self._gathered(other, layer, 1, size)
                moments.append(self._moment(old, gathered=gathered, activations=passing, targets=targets))
        copies = self._copies() if self.training.checkpointing else 0
        kept = sum(self.kept) + self.stream
        moments.append(
            self._moment(
                old, activations=kept + copies, targets=max(targets, self.compared * self.matching.kept),
                head=max(self.head.forward, self.matching.forward if self.compared else 0),
            )
        )  # fmt: skip
        return moments

    def _copies(self) -> int:
        """What autocast has cast by the end of the forward pass; compiled blocks cast for themselves."""
        if self.cast is None or self.training.compiled:
            return 0
        return sum(unit.matrices for unit in self.model.units) * self.held

    def _backward(self) -> Sequence[Bytes]:
        waiting = self.compared * self.matching.kept
        full = self.sharded or self.training.micro_batches > 1
        later = self.gradients if full else 0
        head = self.model.decoder.head_weight.numel() * (self.held if self.sharded else 0 if full else self.stored)
        before = sum(self.kept) + self.stream
        moments = [self._moment(later, activations=before, targets=waiting, head=self.head.backward)]
        share = waiting // max(len([unit for unit in self.model.units if unit.parameters]), 1)
        for layer in reversed(range(len(self.model.units))):
            unit, kept = self.model.units[layer], self.kept[layer]
            if not unit.parameters:
                continue
            use = self._use(layer)
            peak = max(use.forward, use.backward) + self.stream if self.training.checkpointing else use.backward
            around = {"targets": waiting, "head": head, "gathered": self._gathered(self.model, layer, -1, self.held)}
            moments.append(self._moment(later, activations=before - kept + peak, **around))
            moments.append(self._moment(later, activations=before, reduction=self._reduce(unit), **around))
            before, waiting = before - kept, waiting - share
            later += 0 if full else unit.trained * self.stored
        embedding = self._moment(self.gradients, activations=self.stream, reduction=self._reduce(self.model.root))
        return [*moments, embedding]

    def _reduce(self, unit: Unit) -> int:
        """A unit's gradients in the compute dtype and the buffer in which FSDP2 sums them over the ranks."""
        if not self.sharded:
            return 0
        return unit.trained * (self.held + (_FP32 if self.training.precision == "bf16-mixed" else self.held))

    def validate(self) -> Bytes:
        """A pass without gradients, of the model and of those beside it."""
        moments = []
        frozen = (
            (each, about.dtype.itemsize if about.sharded else 0, about.tokens or self.training.tokens)
            for about, each in self.others
        )
        for model, size, tokens in ((self.model, self.held, self.training.tokens), *frozen):
            for layer in model.kinds:
                around = {"roots": self.roots, "gathered": self._gathered(model, layer, 1, size)}
                moments.append({**self.resting, **around, "activations": model.quiet(layer, tokens)})
        return max(moments, key=total)

    def save(self) -> Bytes:
        """Checkpoint and export: the largest tensor is gathered whole."""
        largest = self.model.largest * self.stored if self.mesh.gpus > 1 else 0
        return {**self.resting, "gathered": largest}


def total(parts: Bytes) -> int:
    """The sum of all parts."""
    return sum(parts.values())

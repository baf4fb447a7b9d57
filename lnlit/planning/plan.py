"""What a stage takes on a mesh, whether it fits, and the smallest mesh on which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from lnlit.interfaces import EngineMemory, EngineSize, RolloutEngine
from lnlit.models.parts import kv_elements
from lnlit.planning.gpus import CPU, NETWORK_BYTES_PER_S, Gpu
from lnlit.planning.sizes import ALONE, Mesh, Sized, divides, sized
from lnlit.planning.training import Bytes, OnMesh, Training, total
from lnlit.rollout.shared import indivisible
from lnlit.specs import ModelSpec

GB = 10**9
#: Model FLOPs utilisation that a time is stated for, an assumption: from a run that is bound by something else as well
#: to a good one.
MFU = (0.25, 0.45)
#: The share of a memory's bandwidth that decoding reaches, an assumption.
DECODING = (0.4, 0.8)
#: Memory of a node, an assumption: that of the paper's nodes (section 5.2.2) and of a DGX H100.
HOST_BYTES = 2000 * GB
#: Bytes of a parameter in an export.
EXPORT = 4
#: Numbers of nodes that are tried, in this order.
_NODES = (1, 2, 4, 8, 9, 12, 16, 24, 32, 48, 64, 72, 96, 128)


@dataclass(frozen=True)
class Plan:
    """What one stage takes.

    Attributes:
        stage: Its name.
        gpu: The device.
        mesh: The devices.
        phases: The peak of each phase in bytes of one device, by what they are for.
        host: Bytes of a node's memory, by what they are for.
        disk: Bytes on disk, by what they are for.
        flops: FLOPs of an optimizer step, on all devices together; 0 if that is not known.
        seconds: The shortest and longest time of an optimizer step, with its share of a rollout.
        steps: The number of steps, if it is known.
        problems: Why the stage cannot run, other than bytes.
        notes: What is assumed or not counted.
        advice: What to do if it does not fit: a sentence with a space before it.
    """

    stage: str
    gpu: Gpu
    mesh: Mesh = ALONE
    phases: Mapping[str, Bytes] = field(default_factory=dict)
    host: Bytes = field(default_factory=dict)
    disk: Bytes = field(default_factory=dict)
    flops: float = 0.0
    seconds: tuple[float, float] | None = None
    steps: int | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    advice: str = ""

    @property
    def room(self) -> int:
        """The bytes that a device has for tensors."""
        return self.gpu.memory_bytes - self.gpu.overhead_bytes

    @property
    def host_room(self) -> int:
        return self.gpu.memory_bytes if self.gpu.name == CPU else HOST_BYTES

    @property
    def peak(self) -> tuple[str, Bytes]:
        """The phase that needs most, and its parts."""
        return max(self.phases.items(), key=lambda phase: total(phase[1]), default=("", {}))

    @property
    def peak_bytes(self) -> int:
        return total(self.peak[1])

    @property
    def gpu_hours(self) -> tuple[float, float] | None:
        """The shortest and longest time of the whole stage, times the number of devices."""
        if self.seconds is None or self.steps is None:
            return None
        low, high = (each * self.steps * self.mesh.gpus / 3600 for each in self.seconds)
        return low, high

    @property
    def fits(self) -> bool:
        return not self.obstacles

    @cached_property
    def obstacles(self) -> list[str]:
        """Why the stage cannot run like this; empty if it can."""
        found = list(self.problems)
        phase, parts = self.peak
        if self.peak_bytes > self.room:
            found.append(
                f"{phase} needs {gigabytes(self.peak_bytes)} GB of each GPU, and a {self.gpu.name} has "
                f"{gigabytes(self.room)} GB beside CUDA's own: {largest(parts)}"
            )
        if (needed := total(self.host)) > self.host_room:
            found.append(
                f"a node needs {gigabytes(needed)} GB of its own memory, and has {gigabytes(self.host_room)} GB: "
                f"{largest(self.host)}"
            )
        return found


def gigabytes(size: float) -> str:
    return f"{size / GB:,.1f}" if size < 100 * GB else f"{size / GB:,.0f}"


def largest(parts: Bytes, count: int = 4) -> str:
    """The largest parts as text, e.g. "activations 21.5, parameters 8.2"."""
    ordered = sorted(parts.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in ordered if size)


@dataclass(frozen=True)
class Sampling:
    """The rollouts of a training, with the settings that `data.rollout` has. Every `memory.gpus` devices have one
    engine."""

    engine: RolloutEngine
    prompts_per_rollout: int
    samples_per_prompt: int
    max_new_tokens: int
    updates_per_rollout: int
    sleep_engine_while_training: bool

    def phases(self, memory: EngineMemory, run: OnMesh) -> dict[str, Bytes]:
        """While the engine generates, and while it takes over weights: each of them is gathered whole in fp32."""
        moved = self._moved(run)
        trainer = {name: size for name, size in run.resting.items() if name not in moved}
        gathered = run.model.largest * 4 if run.mesh.gpus > 1 else 0
        return {
            "rollout": {**trainer, "engine": memory.reserved},
            "sync": {**run.resting, "engine": memory.weights, "gathered": gathered},
        }

    def host(self, memory: EngineMemory, run: OnMesh) -> dict[str, int]:
        gpus = run.mesh.gpus_per_node
        moved = total(self._moved(run)) * gpus
        return {"weights for engines": memory.sync * max(gpus // memory.gpus, 1), "trainer that waits": moved}

    def _moved(self, run: OnMesh) -> Bytes:
        """What the trainer moves away while the engine generates; models beside it stay."""
        return {name: run.resting[name] for name in ("parameters", "optimizer") if self.sleep_engine_while_training}

    def seconds(self, memory: EngineMemory, run: OnMesh, gpu: Gpu) -> tuple[float, float] | None:
        """Seconds of a rollout per optimizer step if all completions have the full length: each token reads the weights
        and, on average, half of each cache from memory."""
        if gpu.memory_bytes_per_s is None:
            return None
        engines = max(run.mesh.gpus // memory.gpus, 1)
        each = -(-self.prompts_per_rollout // engines) * self.samples_per_prompt
        context, tokens = run.model.spec.context_length, self.max_new_tokens
        cache = memory.sequence / context * tokens if context else 0
        room = max(memory.reserved - memory.weights, 1)
        together = max(min(each, memory.concurrent, int(room // max(cache, 1))), 1)
        read = -(-each // together) * tokens * (memory.weights + together * cache / 2) / self.updates_per_rollout
        slow, fast = (gpu.memory_bytes_per_s * share for share in DECODING)
        return read / fast, read / slow


def engine_memory(engine: RolloutEngine, model: Sized, gpu: Gpu) -> EngineMemory | None:
    """What an engine takes that holds this model, or None if it does not say."""
    spec, around = model.spec, model.embeddings
    size = EngineSize(model.parameters - around, around, kv_elements(spec), spec.context_length, gpu.memory_bytes)
    return engine.memory(size)


def lacking_cache(memory: EngineMemory) -> list[str]:
    """Why an engine cannot start, if it has less than one sequence needs."""
    needed = memory.weights + memory.sequence
    if memory.reserved >= needed:
        return []
    return [
        f"the engine may take {gigabytes(memory.reserved)} GB of each GPU, and weights with the cache of one sequence "
        f"are {gigabytes(needed)} GB (weights {gigabytes(memory.weights)})"
    ]


def served(stage: str, spec: ModelSpec, engine: RolloutEngine, gpu: Gpu) -> Plan:
    """A stage in which an engine alone generates, on a node of eight."""
    memory = engine_memory(engine, sized(spec), gpu)
    if memory is None:
        return Plan(stage, gpu)
    problems = lacking_cache(memory)
    if memory.gpus > 8:
        problems.append(f"tensor_parallel_size {memory.gpus} is more than a node's 8 GPUs")
    phases = {"rollout": {"weights": memory.weights, "cache": max(memory.reserved - memory.weights, 0)}}
    host = {"weights for engines": memory.sync}
    return Plan(stage, gpu, Mesh(1, memory.gpus), phases, host, problems=tuple(problems))


@dataclass(frozen=True)
class Fit:
    """A training stage, as its configuration says.

    Args:
        name: The stage's name.
        training: What is trained, and how.
        steps: The number of optimizer steps, if it says so.
        sampling: The rollouts, if there are any.
        saves: The number of checkpoints that are kept, with the one that is being written.
    """

    name: str
    training: Training
    steps: int | None = None
    sampling: Sampling | None = None
    saves: int = 2

    def plan(self, gpu: Gpu, mesh: Mesh) -> Plan:
        if why := self._refusal(mesh):
            return Plan(self.name, gpu, mesh, problems=(why,))
        if not (first := self.least(gpu, mesh)).fits:
            return first  # the rest is no matter, and takes time to find out
        run = self.training.on(mesh)
        phases = {"train": run.train(), "validate": run.validate(), "save": run.save()}
        host = {"inputs of blocks": run.offloaded * mesh.gpus_per_node}
        seconds, problems = step_seconds(run, gpu), list[str]()
        if (sampling := self.sampling) and (memory := engine_memory(sampling.engine, run.model, gpu)):
            phases |= sampling.phases(memory, run)
            host |= sampling.host(memory, run)
            problems = lacking_cache(memory)
            rollout = sampling.seconds(memory, run, gpu)
            seconds = seconds and rollout and (seconds[0] + rollout[0], seconds[1] + rollout[1])
        parameters = run.model.parameters
        trained = run.model.local.trained if self.training.lora else parameters
        saved = (parameters - trained) * run.stored_frozen + 3 * trained * run.stored
        saved += sum(other.parameters * frozen.dtype.itemsize for frozen, other in run.others if frozen.saved)
        disk = {"checkpoints": self.saves * saved, "export": parameters * EXPORT}
        notes = ("activations of compiled blocks are an estimate",) if self.training.compiled else ()
        flops = step_flops(run)
        return Plan(self.name, gpu, mesh, phases, host, disk, flops, seconds, self.steps, tuple(problems), notes)

    def least(self, gpu: Gpu, mesh: Mesh) -> Plan:
        """What a step takes whatever its tokens are, which is known without running any part."""
        return Plan(self.name, gpu, mesh, {"train": self.training.on(mesh).at_least()})

    def _refusal(self, mesh: Mesh) -> str | None:
        """Why a mesh is not possible."""
        ranks = mesh.tensor_parallel
        if ranks > 1 and (why := divides(self.training.on(mesh).model.spec, ranks)):
            return f"{ranks} ranks share no layer: {why}"
        if self.sampling is None:
            return None
        if mesh.data_parallel > (prompts := self.sampling.prompts_per_rollout):
            return f"a rollout's {prompts} prompts are work for no more than as many data-parallel ranks"
        return indivisible(self.sampling.engine.ranks_per_engine, mesh.gpus, mesh.gpus_per_node)


def advised(
    plan_on: Callable[[Gpu, Mesh], Plan], gpu: Gpu, mesh: Mesh, tensor_parallel: Sequence[int] = (1, 2, 4, 8)
) -> Plan:
    """The plan on `mesh`. If it does not fit, its advice is the smallest mesh on which it does."""
    plan = plan_on(gpu, mesh)
    if plan.fits:
        return plan
    for other in _meshes(tensor_parallel):
        tried = plan_on(gpu, other)
        if tried.fits:
            return replace(plan, advice=f" The smallest mesh that does: {other}.")
    return replace(plan, advice=f" No mesh of up to {_NODES[-1]} nodes of eight does: {tried.obstacles[0]}.")


def _meshes(tensor_parallel: Sequence[int]) -> Iterator[Mesh]:
    """Meshes of nodes of eight GPUs, and parts of one node, from small to large."""
    for nodes in _NODES:
        for gpus in (1, 2, 4, 8) if nodes == 1 else (8,):
            yield from (Mesh(nodes, gpus, size) for size in tensor_parallel if size <= gpus)


def step_flops(run: OnMesh) -> float:
    """FLOPs of an optimizer step on all devices: a forward pass and a backward pass of twice that, one forward pass
    more with checkpointing, and one of each model beside. Frozen weights get no gradients."""
    training = run.training
    tokens = training.tokens * training.micro_batches * run.mesh.data_parallel
    passes = (2 if training.lora else 3) + training.checkpointing
    beside = sum(model.flops(tokens, training.attended) for _, model in run.others)
    return passes * run.model.flops(tokens, training.attended) + beside


def step_seconds(run: OnMesh, gpu: Gpu) -> tuple[float, float] | None:
    """The shortest time, at the better utilisation with communication hidden, and the longest, with none hidden."""
    if gpu.bf16_flops is None or gpu.link_bytes_per_s is None:
        return None
    training, mesh = run.training, run.mesh
    shards = sums = 0.0
    if run.sharded:
        local = run.model.local
        beside = sum(model.local.parameters * 2 for frozen, model in run.others if frozen.sharded)
        shards = 2 * local.parameters * run.held + local.trained * 4 + beside
    if mesh.tensor_parallel > 1:  # two sums over the ranks in each pass of a layer, each moving twice its size
        passes = (2 + training.checkpointing) * sum(bool(unit.parameters) for unit in run.model.units)
        sums = 2 * passes * 2 * run.stream * (mesh.tensor_parallel - 1) / mesh.tensor_parallel
    between = NETWORK_BYTES_PER_S if mesh.nodes > 1 else gpu.link_bytes_per_s
    sharding = shards * (mesh.data_parallel - 1) / mesh.data_parallel / between
    communication = training.micro_batches * (sharding + sums / gpu.link_bytes_per_s)
    fast, slow = compute_seconds(step_flops(run), mesh, gpu.bf16_flops)
    return max(fast, communication), slow + communication


def compute_seconds(flops: float, mesh: Mesh, flops_per_s: float) -> tuple[float, float]:
    """The shortest and the longest time of FLOPs that all devices of a mesh share, by the assumed utilisation."""
    best = flops / mesh.gpus / flops_per_s
    return best / MFU[1], best / MFU[0]

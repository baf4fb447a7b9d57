"""What a stage takes on a mesh, whether it fits, and the smallest mesh on which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from lnlit.interfaces import EngineMemory, EngineSize, RolloutEngine
from lnlit.planning.gpus import CPU, NETWORK_BYTES_PER_S, Gpu
from lnlit.planning.sizes import Mesh, Sized, divides, sized
from lnlit.planning.training import Bytes, OnMesh, Training
from lnlit.specs import ModelSpec

GB = 10**9
#: Model FLOPs utilisation that a time is stated for, an assumption: from a run that is bound by something else as well
#: to a good one.
MFU = (0.25, 0.45)
#: The share of a memory's bandwidth that decoding reaches, an assumption.
DECODING = (0.4, 0.8)
#: Memory of a node, an assumption: that of the paper's nodes (section 5.2.2) and of a DGX H100.
HOST_BYTES = 2000 * GB
#: Bytes of a trained parameter in a checkpoint (weight and two moments in fp32), and in an export.
CHECKPOINT, EXPORT = 12, 4
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
    mesh: Mesh
    phases: Mapping[str, Bytes]
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
    def fits(self) -> bool:
        return not self.obstacles

    @property
    def host_room(self) -> int:
        return self.gpu.memory_bytes if self.gpu.name == CPU else HOST_BYTES

    @property
    def peak_bytes(self) -> int:
        return max((sum(parts.values()) for parts in self.phases.values()), default=0)

    @property
    def gpu_hours(self) -> tuple[float, float] | None:
        """The shortest and longest time of the whole stage, times the number of devices."""
        if self.seconds is None or self.steps is None:
            return None
        low, high = (each * self.steps * self.mesh.gpus / 3600 for each in self.seconds)
        return low, high

    @cached_property
    def obstacles(self) -> list[str]:
        """Why the stage cannot run like this; empty if it can."""
        found = list(self.problems)
        phase, parts = max(self.phases.items(), key=lambda each: sum(each[1].values()), default=("", {}))
        if self.peak_bytes > self.room:
            found.append(
                f"{phase} needs {gigabytes(self.peak_bytes)} GB of each GPU, and a {self.gpu.name} has "
                f"{gigabytes(self.room)} GB beside CUDA's own: {largest(parts)}"
            )
        if (needed := sum(self.host.values())) > self.host_room:
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
    """The rollouts of a training.

    Args:
        engine: What generates.
        prompts: The number of prompts of a rollout.
        samples: The number of completions of each.
        new_tokens: The longest completion.
        updates: The number of optimizer steps on a rollout.
        takes_turns: Whether the trainer's tensors are moved to the host while the engine generates.
    """

    engine: RolloutEngine
    prompts: int
    samples: int
    new_tokens: int
    updates: int
    takes_turns: bool


@dataclass(frozen=True)
class Fit:
    """A training stage, as its configuration says.

    Args:
        name: The stage's name.
        training: What is trained, and how.
        mesh: The devices that the configuration asks for.
        steps: The number of optimizer steps, if it says so.
        sampling: The rollouts, if there are any.
        saves: The number of checkpoints that are kept, with the one that is being written.
        problem: Why a mesh is not possible, or None.
    """

    name: str
    training: Training
    mesh: Mesh
    steps: int | None = None
    sampling: Sampling | None = None
    saves: int = 2
    problem: Callable[[Mesh], str | None] = lambda mesh: None

    def plan(self, gpu: Gpu, mesh: Mesh | None = None) -> Plan:
        """The plan on a mesh, by default the configuration's own."""
        mesh = mesh or self.mesh
        if mesh.tensor_parallel > 1 and (why := divides(self.training.spec, mesh.tensor_parallel)):
            return Plan(self.name, gpu, mesh, {}, problems=(f"{mesh.tensor_parallel} ranks share no layer: {why}",))
        if why := self.problem(mesh):
            return Plan(self.name, gpu, mesh, {}, problems=(why,))
        if not (first := self.least(gpu, mesh)).fits:
            return first  # the rest is no matter, and takes time to find out
        run = self.training.on(mesh)
        phases = {"train": run.train(), "validate": run.validate(), "save": run.save()}
        host = {"inputs of blocks": run.offloaded * mesh.gpus_per_node}
        problems: list[str] = []
        seconds = step_seconds(run, gpu)
        if self.sampling is not None:
            engine = _engine_memory(self.sampling.engine, run.model, gpu)
            if engine is not None:
                rollout = Rollouts(self.sampling, engine, run)
                phases |= rollout.phases()
                host |= rollout.host()
                problems += rollout.problems()
                seconds = _sum(seconds, rollout.seconds(gpu))
        parameters = run.model.parameters
        trained = run.model.local.trained if self.training.lora else parameters
        disk = {
            "checkpoints": self.saves * ((parameters - trained) * run.stored_frozen + 3 * trained * _stored(run)),
            "export": parameters * EXPORT,
        }
        return Plan(
            self.name, gpu, mesh, phases, host, disk, step_flops(run), seconds, self.steps, tuple(problems), _notes(run)
        )  # fmt: skip

    def least(self, gpu: Gpu, mesh: Mesh | None = None) -> Plan:
        """What a step takes whatever its tokens are, which is known without running any part."""
        mesh = mesh or self.mesh
        return Plan(self.name, gpu, mesh, {"train": self.training.on(mesh).at_least()})

    def advised(self, gpu: Gpu, mesh: Mesh | None = None) -> Plan:
        """The plan on a mesh and, if it does not fit, advice which one does."""
        return advised(lambda tried: self.plan(gpu, tried), mesh or self.mesh, meshes())


def advised(plan_on: Callable[[Mesh], Plan], mesh: Mesh, others: Iterator[Mesh]) -> Plan:
    """The plan on `mesh`. If it does not fit, its advice is the first of `others` on which it does."""
    plan = plan_on(mesh)
    if not plan.obstacles:
        return plan
    last = None
    for each in others:
        last = plan_on(each)
        if not last.obstacles:
            return replace(plan, advice=f" The smallest mesh that does: {each}.")
    why = f": {last.obstacles[0]}" if last is not None else ""
    return replace(plan, advice=f" No mesh of up to {_NODES[-1]} nodes of eight does{why}.")


def _stored(run: OnMesh) -> int:
    return run.stored


def _notes(run: OnMesh) -> tuple[str, ...]:
    return ("activations of compiled blocks are an estimate",) if run.training.compiled else ()


def meshes(tensor_parallel: Sequence[int] = (1, 2, 4, 8)) -> Iterator[Mesh]:
    """Meshes of nodes of eight GPUs, and parts of one node, from small to large."""
    for nodes in _NODES:
        for gpus in (1, 2, 4, 8) if nodes == 1 else (8,):
            yield from (Mesh(nodes, gpus, size) for size in tensor_parallel if size <= gpus)


# time


def step_flops(run: OnMesh) -> float:
    """FLOPs of an optimizer step on all devices: a forward pass and a backward pass of twice that, one forward pass
    more with checkpointing, and one of each model beside. Frozen weights get no gradients."""
    training, mesh = run.training, run.mesh
    tokens = training.tokens * training.micro_batches * mesh.data_parallel
    own = run.model.flops(tokens, training.attended)
    passes = (2 if training.lora else 3) + training.checkpointing
    return passes * own + sum(each.flops(tokens, training.attended) for _, each in run.others)


def step_communication(run: OnMesh) -> float:
    """Seconds of communication of an optimizer step on one device, at the bandwidths of its table."""
    training, mesh = run.training, run.mesh
    link = NETWORK_BYTES_PER_S
    sharded = 0.0
    if run.sharded:
        local = run.model.local
        moved = 2 * local.parameters * run.held + local.trained * 4
        moved += sum(each.local.parameters * 2 for frozen, each in run.others if frozen.sharded)
        sharded = moved * (mesh.data_parallel - 1) / mesh.data_parallel
    return training.micro_batches * sharded / link


def step_seconds(run: OnMesh, gpu: Gpu) -> tuple[float, float] | None:
    """The shortest time, at the better utilisation with communication hidden, and the longest, with none hidden."""
    if gpu.bf16_flops is None or gpu.link_bytes_per_s is None:
        return None
    training, mesh = run.training, run.mesh
    compute = step_flops(run) / mesh.gpus / gpu.bf16_flops
    communication = step_communication(run) * (1 if mesh.nodes > 1 else NETWORK_BYTES_PER_S / gpu.link_bytes_per_s)
    if (
        size := mesh.tensor_parallel
    ) > 1:  # two sums over the ranks in each pass of a layer, each moving twice its size
        sums = 2 * (2 + training.checkpointing) * len([unit for unit in run.model.units if unit.parameters])
        communication += training.micro_batches * sums * 2 * run.stream * (size - 1) / size / gpu.link_bytes_per_s
    return max(compute / MFU[1], communication), compute / MFU[0] + communication


def _sum(one: tuple[float, float] | None, other: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if one is None or other is None else (one[0] + other[0], one[1] + other[1])


# rollouts


def _engine_memory(engine: RolloutEngine, model: Sized, gpu: Gpu) -> EngineMemory | None:
    around = model.embeddings
    context = model.spec.context_length
    return engine.memory(EngineSize(model.parameters - around, around, model.kv_elements, context, gpu.memory_bytes))


class Rollouts:
    """The engine beside the trainer: every `engine.gpus` devices have one."""

    def __init__(self, sampling: Sampling, engine: EngineMemory, run: OnMesh) -> None:
        self.sampling, self.engine, self.run = sampling, engine, run

    def phases(self) -> dict[str, Bytes]:
        """While the engine generates, and while it takes over weights: each of them is gathered whole in fp32."""
        resting = self.run.resting
        moved = self._moved if self.sampling.takes_turns else {}
        trainer = {name: size for name, size in resting.items() if name not in moved}
        gathered = self.run.model.largest * 4 if self.run.mesh.gpus > 1 else 0
        return {
            "rollout": {**trainer, "engine": self.engine.reserved},
            "sync": {**resting, "engine": self.engine.weights, "gathered": gathered},
        }

    def host(self) -> dict[str, int]:
        mesh = self.run.mesh
        engines = max(mesh.gpus_per_node // self.engine.gpus, 1)
        moved = sum(self._moved.values()) * mesh.gpus_per_node * self.sampling.takes_turns
        return {"weights for engines": self.engine.sync * engines, "trainer that waits": moved}

    @property
    def _moved(self) -> Bytes:
        """What the trainer moves away while the engine generates; models beside it stay."""
        return {name: self.run.resting[name] for name in ("parameters", "optimizer")}

    def problems(self) -> list[str]:
        engine = self.engine
        if engine.reserved >= engine.weights + engine.sequence:
            return []
        return [
            f"the engine may take {gigabytes(engine.reserved)} GB of each GPU, and weights with the cache of one "
            f"sequence are {gigabytes(engine.weights + engine.sequence)} GB (weights {gigabytes(engine.weights)})"
        ]

    def seconds(self, gpu: Gpu) -> tuple[float, float] | None:
        """Seconds of a rollout per optimizer step if all completions have the full length: each token reads the weights
        and, on average, half of each cache from memory."""
        if gpu.memory_bytes_per_s is None:
            return None
        engines = max(self.run.mesh.gpus // self.engine.gpus, 1)
        each = -(-self.sampling.prompts * self.sampling.samples // engines)
        new, context = self.sampling.new_tokens, self.run.model.spec.context_length
        token = self.engine.sequence / context if context else 0
        room = max(self.engine.reserved - self.engine.weights, 1)
        together = max(min(each, self.engine.concurrent, int(room // max(token * new, 1))), 1)
        rounds = -(-each // together)
        read = self.engine.weights + together * token * new / 2
        low, high = (rounds * new * read / (gpu.memory_bytes_per_s * share) for share in reversed(DECODING))
        return low / self.sampling.updates, high / self.sampling.updates


# models that only compute


def served(stage: str, spec: ModelSpec, engine: RolloutEngine, gpu: Gpu, gpus_per_node: int = 8) -> Plan:
    """A stage in which an engine alone generates, on one node."""
    model = sized(spec)
    memory = _engine_memory(engine, model, gpu)
    if memory is None:
        return Plan(stage, gpu, Mesh(1, 1), {})
    mesh = Mesh(1, max(memory.gpus, 1))
    problems = []
    if memory.reserved < memory.weights + memory.sequence:
        problems.append(
            f"the engine may take {gigabytes(memory.reserved)} GB of each of {memory.gpus} GPUs, and weights with the "
            f"cache of one sequence are {gigabytes(memory.weights + memory.sequence)} GB"
        )
    if memory.gpus > gpus_per_node:
        problems.append(f"tensor_parallel_size {memory.gpus} is more than a node's {gpus_per_node} GPUs")
    phases = {"rollout": {"weights": memory.weights, "cache": max(memory.reserved - memory.weights, 0)}}
    return Plan(stage, gpu, mesh, phases, host={"weights for engines": memory.sync}, problems=tuple(problems))

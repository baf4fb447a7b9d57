"""What a training configuration asks for, read off the objects that it names before anything is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy

from lnlit.callbacks import Checkpoint
from lnlit.cli.plan_known import Known
from lnlit.data.planned import PlannedData
from lnlit.errors import UserError
from lnlit.modules.block_distill import BlockDistill
from lnlit.modules.distill import Distill
from lnlit.modules.layer_pairs import layer_pairs
from lnlit.modules.lit_model import LitModel
from lnlit.modules.model_reward import ModelReward
from lnlit.modules.policy import Policy
from lnlit.modules.prompt_data import PromptData
from lnlit.modules.reward_model import RewardModel
from lnlit.planning.blocks import BlockDistillation, Tried, tried
from lnlit.planning.gpus import CPU, Gpu, here
from lnlit.planning.plan import Fit, Plan, Sampling
from lnlit.planning.sizes import Mesh
from lnlit.planning.training import Frozen, Training
from lnlit.search.library import Library
from lnlit.search.space import Candidates
from lnlit.specs import ModelSpec

#: Tokens of a prompt that is sampled from, an assumption.
PROMPT_TOKENS = 1024
#: A model's path -> its architecture.
SpecOf = Callable[[str], ModelSpec]


def fit_of(
    name: str, model: LightningModule, data: LightningDataModule, trainer: Mapping[str, Any], spec_of: SpecOf
) -> Fit:
    """The plan's view of a configuration with a whole model. `trainer` holds the trainer's flags as plain data."""
    if not isinstance(model, LitModel):
        raise UserError(f"plan: {type(model).__name__} is no training method whose memory is known.")
    mesh, runtime = mesh_of(trainer), model.runtime
    sharded = _strategy(trainer)[0] == ModelParallelStrategy.__name__
    precision, micro_batches = str(trainer["precision"] or "32-true"), trainer["accumulate_grad_batches"]
    precision = {"32": "32-true", "bf16": "bf16-mixed"}.get(precision, precision)
    spec = spec_of(model.model)
    tokens, attended = _micro_batch(model, data, mesh, micro_batches)
    frozen = _beside(model, data, spec, spec_of, "bf16" in precision, sharded)
    training = Training(
        spec,
        tokens,
        micro_batches,
        precision,
        sharded,
        _loss(model),
        bool(runtime.activation_checkpointing),
        bool(runtime.compile),
        runtime.fuse_gate_up,
        model.lora,
        frozen,
        attended,
        runtime.activation_checkpointing == "offload",
        runtime.replicas,
    )
    steps = trainer["max_steps"]
    given = {_class(each): each.get("init_args") or {} for each in trainer["callbacks"] or []}
    kept = given.get(Checkpoint.__name__, {}).get("keep", 1)
    return Fit(
        name, training, mesh, steps if steps > 0 else None, _sampling(data), kept + 1, _refusals(model, data)
    )  # fmt: skip


def mesh_of(trainer: Mapping[str, Any]) -> Mesh:
    """The mesh that the trainer's flags name. "auto" devices are those of this machine."""
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 0
    if count == 0:
        count = 1 if trainer["accelerator"] == "cpu" else max(torch.cuda.device_count(), 1)
    size = _strategy(trainer)[1].get("tensor_parallel_size", 1)
    return Mesh(nodes, count, count if size == "auto" else size)


def _strategy(trainer: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(the name of its class, its arguments)."""
    strategy = trainer["strategy"]
    return (str(strategy), {}) if isinstance(strategy, str) else (_class(strategy), strategy.get("init_args") or {})


def _class(given: Mapping[str, Any]) -> str:
    return str(given["class_path"]).rpartition(".")[2]


def _loss(model: LitModel) -> Any:
    if isinstance(model, Distill) and model.teacher is not None:
        return "distillation"
    if isinstance(model, RewardModel):
        return "scores"
    return "log_probs" if isinstance(model, Policy) else "cross_entropy"


def _beside(
    model: LitModel, data: LightningDataModule, spec: ModelSpec, spec_of: SpecOf, bf16: bool, sharded: bool
) -> tuple[Frozen, ...]:
    """The models that the method and the rewards of its data load."""
    found = []
    if isinstance(model, Distill) and model.teacher is not None:
        teacher = spec_of(model.teacher)
        found.append(Frozen("teacher", teacher, sharded, bf16, _matched(model, spec, teacher)))
    if isinstance(model, Policy) and model.reference is not None:
        found.append(Frozen("reference", spec_of(model.reference.path), sharded, bf16))
    for judge in data.rewards if isinstance(data, PromptData) else ():
        if isinstance(judge.reward, ModelReward):
            found.append(Frozen("reward model", spec_of(judge.reward.model), False, judge.reward.dtype == "bfloat16"))
    return tuple(found)


def _matched(model: Distill, spec: ModelSpec, teacher: ModelSpec) -> int:
    """The number of layers whose outputs are compared; where no provenance is known yet, all that have weights."""
    if not model.cosine_weight:
        return 0
    if model.hidden_layers is not None:
        return len(model.hidden_layers)
    try:
        return len(layer_pairs(None, model.model, spec, str(model.teacher), teacher))
    except UserError:
        return sum(block.attention.type != block.ffn.type for block in spec.layers)


def _micro_batch(model: LitModel, data: LightningDataModule, mesh: Mesh, micro_batches: int) -> tuple[int, float]:
    """(tokens of a rank's micro-batch, the mean number of tokens that each attends to): at most, with documents as long
    as they may be."""
    if isinstance(data, PlannedData):
        return data.micro_batch_tokens, data.sequence_length / 2
    if isinstance(data, PromptData) and isinstance(model, Policy):
        rollout, parts = data.rollout, micro_batches * mesh.data_parallel
        prompts = -(-rollout.prompts_per_rollout // rollout.updates_per_rollout)
        if model.algorithm.needs.whole_prompts:
            samples = -(-prompts // parts) * rollout.samples_per_prompt
        else:
            samples = -(-prompts * rollout.samples_per_prompt // parts)
        length = rollout.max_new_tokens + PROMPT_TOKENS
        return samples * length, length / 2
    raise UserError(f"plan: {type(data).__name__} is no data module whose batches are known.")


def _sampling(data: LightningDataModule) -> Sampling | None:
    if not isinstance(data, PromptData):
        return None
    rollout = data.rollout
    return Sampling(
        data.engine,
        rollout.prompts_per_rollout,
        rollout.samples_per_prompt,
        rollout.max_new_tokens,
        rollout.updates_per_rollout,
        rollout.sleep_engine_while_training,
    )


def _refusals(model: LitModel, data: LightningDataModule) -> Callable[[Mesh], str | None]:
    """What the method itself refuses of a mesh."""

    def refusal(mesh: Mesh) -> str | None:
        if isinstance(data, PromptData) and mesh.gpus > data.rollout.prompts_per_rollout:
            return f"a rollout's {data.rollout.prompts_per_rollout} prompts are work for no more than as many ranks"
        return None

    return refusal


def blocks_of(
    model: BlockDistill,
    data: LightningDataModule,
    trainer: Mapping[str, Any],
    spec_of: SpecOf,
    candidates: Mapping[str, Candidates],
) -> BlockDistillation:
    """The plan's view of blockwise distillation. `candidates` are those of libraries that are still to be built."""
    if not isinstance(data, PlannedData):
        raise UserError(f"plan: {type(data).__name__} is no data module whose batches are known.")
    spec = spec_of(model.model)
    epochs, batches = trainer["max_epochs"], trainer["limit_train_batches"]
    steps = epochs * batches if epochs and isinstance(batches, int) else None
    layers = _candidates(model.library, spec, candidates)
    at_once = model.layers_at_once or len(spec.layers)
    bf16 = "bf16" in str(trainer["precision"])
    return BlockDistillation(spec, layers, at_once, data.micro_batch_tokens, model.batch_tokens, bf16, steps)


def _candidates(library: str, spec: ModelSpec, known: Mapping[str, Candidates]) -> list[list[Tried]]:
    if library in known:
        return tried(spec, known[library])
    if not Path(library).exists():
        raise UserError(
            f"plan: the library {library} is not there yet, so its candidates are not known. Plan the folder of the "
            "pipeline: the stage that builds it says which they are."
        )
    opened = Library.open(library)
    return [
        [
            (slot, variant.part)
            for slot in ("attention", "ffn")
            for variant in getattr(layer, slot).values()
            if not variant.parent
        ]
        for layer in opened.layers
    ]


def of_fit(
    name: str, model: Any, data: Any, flags: Mapping[str, Any], gpu: Gpu, gpus: int | None, known: Known
) -> Plan:
    """The plan of a fit, with the smallest mesh in its advice if it does not fit."""
    mesh = _resized(mesh_of(flags), gpus)
    if isinstance(model, BlockDistill):
        if model.library in known.candidates:
            known.candidates[model.out] = known.candidates[model.library]
        if model.library in known.parents:
            known.parents[model.out] = known.parents[model.library]
        return blocks_of(model, data, flags, known.spec, known.candidates).advised(name, gpu, mesh)
    fit: Fit = fit_of(name, model, data, flags, known.spec)
    return fit.advised(gpu, mesh)


def _resized(mesh: Mesh, gpus: int | None) -> Mesh:
    if gpus is None:
        return mesh
    return Mesh(-(-gpus // 8), min(gpus, 8), mesh.tensor_parallel)


def refuse(model: Any, data: Any, flags: Mapping[str, Any]) -> None:
    """Raises `UserError` if not even weights, gradients and moments have room on this machine's GPUs. What depends on
    the lengths of rows is an upper bound, so a run that only this is too much for is warned of."""
    gpu = here()
    if gpu.name == CPU or flags["accelerator"] == "cpu":
        return
    known = Known()
    try:
        plan = of_fit("this run", model, data, flags, gpu, None, known)
        is_sure = isinstance(model, LitModel) and not fit_of("", model, data, flags, known.spec).least(gpu).fits
    except UserError:
        return  # what is wrong is said where it is read
    if not plan.obstacles:
        return
    why = f"{'; '.join(plan.obstacles)}.{plan.advice} `lnlit plan` shows all parts"
    if is_sure:
        raise UserError(f"{why}; --check_memory false starts the run all the same.")
    print(f"warning: this run may need more memory than there is: {why}.", file=sys.stderr)

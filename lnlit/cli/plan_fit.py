"""What a training configuration asks for, read off the objects that it names before anything is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
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
from lnlit.modules.on_policy_distill import OnPolicyDistill
from lnlit.modules.policy import Policy
from lnlit.modules.prompt_data import PromptData
from lnlit.modules.reward_model import RewardModel
from lnlit.planning.blocks import BlockDistillation, Tried, tried
from lnlit.planning.gpus import CPU, Gpu, here
from lnlit.planning.plan import Fit, Plan, Sampling, advised
from lnlit.planning.sizes import Mesh
from lnlit.planning.training import Frozen, Training
from lnlit.search.choice import SLOTS
from lnlit.search.library import Library
from lnlit.specs import ModelSpec

#: Tokens of a prompt that is sampled from, an assumption.
PROMPT_TOKENS = 1024


def of_fit(
    name: str, model: Any, data: Any, flags: Mapping[str, Any], gpu: Gpu, gpus: int | None, known: Known
) -> Plan:
    """The plan of a fit, with the smallest mesh in its advice if it does not fit. `flags` are the trainer's, as plain
    data."""
    mesh = mesh_of(flags)
    if gpus is not None:
        mesh = Mesh(-(-gpus // 8), min(gpus, 8), mesh.tensor_parallel)
    if isinstance(model, BlockDistill):
        known.improves(model.library, model.out)
        return advised(blocks_of(name, model, data, flags, known).plan, gpu, mesh, tensor_parallel=(1,))
    return advised(fit_of(name, model, data, flags, known).plan, gpu, mesh)


def refuse(model: Any, data: Any, flags: Mapping[str, Any]) -> None:
    """Raises `UserError` if not even weights, gradients and moments have room on this machine's GPUs. What depends on
    the lengths of rows is an upper bound, so a run that only this is too much for is warned of."""
    gpu = here()
    if gpu.name == CPU or flags["accelerator"] == "cpu":
        return
    known = Known()
    try:
        plan = of_fit("this run", model, data, flags, gpu, None, known)
        if plan.fits:
            return
        is_sure = isinstance(model, LitModel) and not fit_of("", model, data, flags, known).least(gpu, plan.mesh).fits
    except UserError:
        return  # what is wrong is said where it is read
    why = f"{'; '.join(plan.obstacles)}.{plan.advice} `lnlit plan` shows all parts"
    if is_sure:
        raise UserError(f"{why}; --check_memory false starts the run all the same.")
    print(f"warning: this run may need more memory than there is: {why}.", file=sys.stderr)


def fit_of(name: str, model: LightningModule, data: LightningDataModule, flags: Mapping[str, Any], known: Known) -> Fit:
    """The plan's view of a configuration with a whole model."""
    if not isinstance(model, LitModel):
        raise UserError(f"plan: {type(model).__name__} is no training method whose memory is known.")
    runtime, micro_batches = model.runtime, flags["accumulate_grad_batches"]
    sharded = _strategy(flags)[0] == ModelParallelStrategy.__name__
    precision = str(flags["precision"] or "32-true")
    precision = {"32": "32-true", "bf16": "bf16-mixed"}.get(precision, precision)
    tokens, attended = _micro_batch(model, data, mesh_of(flags), micro_batches)
    training = Training(
        spec=known.spec(model.model),
        tokens=tokens,
        micro_batches=micro_batches,
        precision=precision,
        sharded=sharded,
        loss=_loss(model),
        checkpointing=bool(runtime.activation_checkpointing),
        compiled=bool(runtime.compile),
        fuse_gate_up=runtime.fuse_gate_up,
        lora=model.lora,
        frozen=tuple(_beside(model, data, known, "bf16" in precision, sharded)),
        attended=attended,
        offload=runtime.activation_checkpointing == "offload",
        replicas=runtime.replicas,
    )
    callbacks = {_class(each): each.get("init_args") or {} for each in flags["callbacks"] or []}
    kept = callbacks.get(Checkpoint.__name__, {}).get("keep", 1)
    steps = flags["max_steps"]
    return Fit(name, training, steps if steps > 0 else None, _sampling(data), kept + 1)


def mesh_of(flags: Mapping[str, Any]) -> Mesh:
    """The mesh that the trainer's flags name. "auto" devices are those of this machine."""
    devices, nodes = flags["devices"], flags["num_nodes"]
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 0
    if count == 0:
        count = 1 if flags["accelerator"] == "cpu" else max(torch.cuda.device_count(), 1)
    size = _strategy(flags)[1].get("tensor_parallel_size", 1)
    return Mesh(nodes, count, count if size == "auto" else size)


def _strategy(flags: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(the name of its class, its arguments)."""
    strategy = flags["strategy"]
    return (str(strategy), {}) if isinstance(strategy, str) else (_class(strategy), strategy.get("init_args") or {})


def _class(given: Mapping[str, Any]) -> str:
    return str(given["class_path"]).rpartition(".")[2]


def _loss(model: LitModel) -> Any:
    if isinstance(model, OnPolicyDistill) or (isinstance(model, Distill) and model.teacher is not None):
        return "distillation"
    if isinstance(model, RewardModel):
        return "scores"
    return "log_probs" if isinstance(model, Policy) else "cross_entropy"


def _beside(model: LitModel, data: LightningDataModule, known: Known, bf16: bool, sharded: bool) -> Iterator[Frozen]:
    """The models that the method and the rewards of its data load."""
    for name, path in model.beside.items():
        spec = known.spec(path)
        matched = _matched(model, known.spec(model.model), spec) if isinstance(model, Distill) else 0
        saved = isinstance(model, Policy) and model.reference is not None and model.reference.saved
        yield Frozen(name, spec, sharded, bf16, matched, saved=saved)
    for judge in data.rewards if isinstance(data, PromptData) else ():
        if isinstance(reward := judge.reward, ModelReward):
            spec, in_bf16, is_shared = known.spec(reward.model), reward.dtype == "bfloat16", reward.may_be_sharded
            yield Frozen("reward model", spec, sharded and is_shared, in_bf16, tokens=reward.batch_tokens)


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
    raise _unknown_data(data)


def _sampling(data: LightningDataModule) -> Sampling | None:
    if not isinstance(data, PromptData):
        return None
    names = [field.name for field in fields(Sampling) if field.name != "engine"]
    return Sampling(data.engine, **{name: getattr(data.rollout, name) for name in names})


def blocks_of(
    name: str, model: BlockDistill, data: LightningDataModule, flags: Mapping[str, Any], known: Known
) -> BlockDistillation:
    """The plan's view of blockwise distillation."""
    if not isinstance(data, PlannedData):
        raise _unknown_data(data)
    spec = known.spec(model.model)
    epochs, batches = flags["max_epochs"], flags["limit_train_batches"]
    return BlockDistillation(
        name,
        spec,
        layers=_candidates(model.library, spec, known),
        layers_at_once=model.layers_at_once or len(spec.layers),
        micro_batch_tokens=data.micro_batch_tokens,
        batch_tokens=model.batch_tokens,
        dtype=torch.bfloat16 if "bf16" in str(flags["precision"]) else torch.float32,
        steps=epochs * batches if epochs and isinstance(batches, int) else None,
        replicas=model.replicas,
    )


def _candidates(library: str, spec: ModelSpec, known: Known) -> list[list[Tried]]:
    if library in known.candidates:
        return tried(spec, known.candidates[library])
    if not Path(library).exists():
        raise UserError(
            f"plan: the library {library} is not there yet, so its candidates are not known. Plan the folder of the "
            "pipeline: the stage that builds it says which they are."
        )
    return [
        [(slot, each.part) for slot in SLOTS for each in getattr(layer, slot).values() if not each.parent]
        for layer in Library.open(library).layers
    ]


def _unknown_data(data: LightningDataModule) -> UserError:
    return UserError(f"plan: {type(data).__name__} is no data module whose batches are known.")

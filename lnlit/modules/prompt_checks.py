"""Checks of a run whose data are sampled, and of a checkpoint that it resumes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.errors import UserError
from lnlit.interfaces import RolloutEngine
from lnlit.modules.policy import Policy
from lnlit.renamed import settings_by_new_names
from lnlit.rl.collector import RolloutConfig
from lnlit.rollout.shared import indivisible
from lnlit.sampling.prompt import Prompt, digest
from lnlit.sampling.sampler import Weighted


def check_trainer(trainer: L.Trainer) -> None:
    """Raises `UserError` for settings of the trainer that do not work with rollouts."""
    if trainer.max_steps < 0:
        raise UserError("trainer.max_steps: rollouts have no end, so say how many optimizer steps to train")
    limit = trainer.limit_train_batches
    quick = trainer.fast_dev_run  # type: ignore[attr-defined]
    if (isinstance(limit, int) or limit < 1) and not quick:  # 1 is a batch, 1.0 is all
        raise UserError(
            "trainer.limit_train_batches, trainer.overfit_batches: an epoch of rollouts cannot be cut short, for an "
            "update would lack samples that were paid for. Limit the run with trainer.max_steps, the prompts in data."
        )
    length, interval = trainer.max_steps * trainer.accumulate_grad_batches, trainer.val_check_interval
    if isinstance(interval, int) and interval > length and trainer.check_val_every_n_epoch is not None:
        rank_zero_info(f"trainer.val_check_interval: {length}, as the run has no more micro-batches; not {interval}")
        trainer.val_check_interval = length


def check_ranks(trainer: L.Trainer, engine: RolloutEngine) -> None:
    """Raises `UserError` if the ranks cannot share engines as the engine asks for."""
    ranks, shared_by = trainer.world_size, engine.ranks_per_engine
    if why := indivisible(shared_by, ranks, ranks // trainer.num_nodes):
        raise UserError(
            f"data.engine: {type(engine).__name__}: {why}. Change its number of devices (such as "
            "tensor_parallel_size), or trainer.devices."
        )


def check_policy(policy: Policy, engine: RolloutEngine, rollout: RolloutConfig) -> None:
    """Raises `UserError` where a policy needs what an engine, or the rollouts, do not give."""
    trainer, needs = policy.trainer, policy.algorithm.needs
    prompts, samples = rollout.prompts_per_rollout, rollout.samples_per_prompt
    if samples < needs.samples_per_prompt:
        least = needs.samples_per_prompt
        why = "a sample is judged by its siblings" if least == 2 else f"{type(policy.algorithm).__name__} compares them"
        raise UserError(f"data.rollout.samples_per_prompt: {why}, so {least} or more; got {samples}")
    if engine.needs_correction and needs.exact_engine:
        raise UserError(
            f"model.correction: {type(engine).__name__} computes in another precision than the trainer, so "
            "its samples need a correction; leave it at its default"
        )
    learners = policy.data_parallel_size()
    parts = trainer.accumulate_grad_batches * learners
    units = prompts // rollout.updates_per_rollout * (1 if needs.whole_prompts else samples)
    if units < parts or prompts < learners:
        what = "prompts (their samples stay together)" if needs.whole_prompts else "samples"
        raise UserError(
            f"trainer.accumulate_grad_batches: {parts} micro-batches, {trainer.accumulate_grad_batches} on each "
            f"of {learners} ranks, cannot be made of an update's {units} {what}; lower it, or raise "
            "data.rollout.prompts_per_rollout"
        )


def check_rewards(policy: Policy, rewards: Sequence[Weighted]) -> None:
    """Raises `UserError` if the policy learns from rewards and there are none with a weight."""
    if not policy.algorithm.needs.rewards or any(judge.weight for judge in rewards):
        return
    if not rewards:
        raise UserError(f"data.rewards: {type(policy.algorithm).__name__} learns from rewards, so at least one")
    raise UserError(
        "data.rewards: every weight is 0, and a reward of weight 0 is only logged, so there is nothing to learn from. "
        "Give one another weight."
    )


def prompts_state(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The record of the prompts that a checkpoint keeps."""
    return {
        "count": len(prompts),
        "digest": digest(prompts),
        "sorted": digest(sorted(prompts, key=lambda p: digest([p]))),
    }


def check_resumed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `UserError`, naming the change, if the settings have changed in a way that gives the checkpoint's samples
    or its position in the prompts another meaning."""
    saved = settings_by_new_names(saved)
    for name, value in now.items():
        before = saved.get(name)
        if before == value:
            continue
        if name == "prompts":
            _refuse_prompts(before or {}, value)
        raise UserError(
            f"data: the checkpoint's samples were drawn with {name}: {before}, this run has {value}. Resume "
            "with the same settings, or start anew from its weights."
        )


def _refuse_prompts(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before.get("count") != now["count"]:
        what = f"the run was begun with {before.get('count')} prompts, now there are {now['count']}"
    elif before["sorted"] == now["sorted"]:
        what = f"the run was begun with the same {now['count']} prompts in another order"
    else:
        what = f"the run was begun with {now['count']} other prompts, or with other answers in their rows"
    raise UserError(f"data.prompts: {what}. Go on with the same prompts, or begin a new run from its weights.")

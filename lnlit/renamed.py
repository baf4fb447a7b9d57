"""Old names in configurations and checkpoints, and what they are called now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

#: Classes. A checkpoint keeps the states of data modules and callbacks under the names of their classes.
CLASSES = {"Experience": "PromptData", "Stability": "SkipBadSteps"}
_WORKLOADS = "workloads: [{batch_size: ..., prompt_tokens: ..., new_tokens: ...}]"
#: Keys of classes and of stages: owner -> former key -> what to write now.
KEYS: dict[str, dict[str, str]] = {
    "solve": {
        **{key: f"deployment.{key}" for key in ("costs", "targets", "workloads", "corrected_by")},
        "allow_other_hardware": "deployment.allow_other_hardware",
        "parts": "rules, with its attention and ffn",
        **{key: f"rules.{key}" for key in ("counts", "forbidden", "first_attention")},
        "num_solutions": "solutions.number",
        "max_overlap": "solutions.max_overlap",
        "generated_only": "deployment.targets, with the cost output_throughput in the place of throughput",
    },
    "measure": dict.fromkeys(("batch_size", "prompt_tokens", "new_tokens"), _WORKLOADS),
    "annotate": {
        "samples": "sampling.samples_per_prompt",
        "workers": "reward_workers",
        "pass_at": "pass_threshold",
        **{key: f"sampling.{key}" for key in ("max_new_tokens", "temperature", "seed")},
    },
    "PromptData": {
        "prompts_per_rollout": "rollout.prompts_per_rollout",
        "samples_per_prompt": "rollout.samples_per_prompt",
        "max_new_tokens": "rollout.max_new_tokens",
        "updates_per_rollout": "rollout.updates_per_rollout",
        "reward_workers": "rollout.reward_workers",
        "resample": "rollout.dynamic_sampling",
        "truncated": "rollout.mask_truncated, true for mask",
        "take_turns": "rollout.sleep_engine_while_training",
        "proof": "logprob_check.samples",
        "max_logprob_difference": "logprob_check.max_difference",
        "mean_logprob_difference": "logprob_check.mean_difference",
        "order": "prompt_order",
    },
    "curriculum": {"order": "prompt_order"},
    "Distill": {"kl": "kl_weight", "cosine": "cosine_weight", "lm": "lm_weight"},
    "BlockDistill": {"gradient_clip": "gradient_clip_val"},
    "RewardModel": {"centre": "center_rewards_coefficient"},
    "GRPO": {"scale": "scale_rewards"},
    "CISPO": {"scale": "scale_rewards", "highest": "max_ratio"},
    "DPPO": {"scale": "scale_rewards", "largest": "max_probability_change"},
    "SAPO": {"scale": "scale_rewards", "positive": "positive_temperature", "negative": "negative_temperature"},
    "VESPO": {"scale": "scale_rewards"},
    "DifficultySource": {"below": "pass_rate_below", "above": "pass_rate_above"},
    "InstructionSource": {"least": "min_instructions", "most": "max_instructions"},
    "ReasoningGymReward": {"partial": "partial_credit"},
    "MathAnswerReward": {"key": "answer_key"},
    "LLMJudgeReward": {"key": "answer_key", "best": "max_score", "total_limit_s": "total_time_limit_s"},
    "CodeTestsReward": {"tests": "tests_key", "preamble": "preamble_key"},
    "ModelReward": {"logit": "logit_index", "precision": "dtype: bfloat16 or float32"},
    **{data: {"window": "shuffle_buffer_size"} for data in ("ChatData", "TextData", "PreferenceData")},
    "RolloutLog": {"prompts": "num_prompts"},
}


def now_called(name: str, allowed: Collection[str]) -> str | None:
    """The new name of a class that was renamed, if it is one of those allowed here."""
    new = CLASSES.get(name)
    return new if new in allowed else None


def keys_now_called(owner: str, given: Collection[str]) -> dict[str, str]:
    """What to write in place of former keys of a class or stage among those that are given."""
    now = KEYS.get(owner, {})
    return {key: now[key] for key in given if key in now}


def with_new_names(checkpoint: dict[str, Any]) -> None:
    """Files the states in a checkpoint of an earlier version under the new names of their classes, in place."""
    for states in (checkpoint, checkpoint.get("callbacks", {})):
        for old in CLASSES.keys() & states.keys():
            states[CLASSES[old]] = states.pop(old)


def settings_by_new_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint keeps beside samples, by the names that they have now."""
    new = {"order": "prompt_order", "scale": "scale_rewards", "truncated": "mask_truncated"}
    found = {new.get(name, name): value for name, value in saved.items()}
    if "truncated" in saved:
        found["mask_truncated"] = saved["truncated"] == "mask"
    return found

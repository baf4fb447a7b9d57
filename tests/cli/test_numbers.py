"""No setting takes NaN, and none that is a number of things takes less than none."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import pytest

from lnlit import callbacks, registry
from lnlit.data.datamodule import ChatData
from lnlit.data.preference import PreferenceData
from lnlit.data.sources import JsonlSource
from lnlit.data.text_data import TextData
from lnlit.errors import UserError
from lnlit.models.lora import LoRA
from lnlit.modules.distill import Distill
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import LogprobCheck, PromptData, RolloutConfig
from lnlit.modules.reward_model import RewardModel
from lnlit.modules.rloo import RLOO
from lnlit.modules.rpo import RPO
from lnlit.objectives.kl import KL
from lnlit.objectives.policy import Clip, Correction
from lnlit.rewards.code_tests import CodeTestsReward
from lnlit.rewards.format import FormatReward
from lnlit.rewards.llm_judge import LLMJudgeReward
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.curriculum import GaussianCurriculum
from lnlit.sampling.sampler import Weighted
from lnlit.search.space import Candidates

PARTS: list[type] = [
    AdamW, LoRA, KL, Clip, Correction, Candidates, GaussianCurriculum, Distill, GRPO, RLOO, RPO, RewardModel,
    PromptData, RolloutConfig, LogprobCheck, ChatData, TextData, PreferenceData, Weighted, CodeTestsReward,
    LLMJudgeReward, NativeEngine,
    callbacks.Checkpoint, callbacks.SampleGenerations, callbacks.ToggleReport, callbacks.MemoryRecorder,
    callbacks.RolloutLog, callbacks.SkipBadSteps,
    *(registry.get("algorithm", name) for name in registry.names("algorithm")),
]  # fmt: skip
#: Where a negative number means something, or is refused once processes start.
SIGNED = {("Weighted", "weight")}


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny_model) -> dict[str, Any]:
    """A value of each argument that some part requires."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "answer": "b"}) + "\n")
    source = JsonlSource(str(file))
    return {
        "learning_rate": 1e-3, "model": str(tiny_model), "teacher": str(tiny_model), "optimizer": AdamW(1e-3),
        "beta": 0.1, "tokenizer": str(tiny_model), "train": source, "source": source, "prompts": source,
        "rewards": [Weighted(FormatReward())], "reward": FormatReward(), "engine": NativeEngine(),
        "rollout": RolloutConfig(2, 2, 4), "prompts_per_rollout": 2, "samples_per_prompt": 2, "max_new_tokens": 4,
        "sequence_length": 8,
        "micro_batch_size": 1, "url": "http://localhost:1/v1",
    }  # fmt: skip


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_numbers_that_mean_nothing_are_refused(part: type, given):
    parameters = inspect.signature(part).parameters
    required = {
        name: given[name] for name, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    }
    part(**required)
    wrong = []
    for name, parameter in parameters.items():
        kinds = {kind.strip() for kind in str(parameter.annotation).split("|")}
        tries = [math.nan, -math.inf, -0.5] if "float" in kinds else [-1] if "int" in kinds else []
        for value in tries:
            if value < 0 and (part.__name__, name) in SIGNED and math.isfinite(value):
                continue
            try:
                part(**{**required, name: value})
            except UserError:
                continue
            wrong.append(f"{name}={value}")
    assert not wrong

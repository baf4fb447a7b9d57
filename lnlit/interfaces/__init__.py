"""The interfaces that a plugin implements: abstract classes and plain data. Importing them does not import torch.

Helpers for authors of layers are offered here too. They are imported only when asked for: `apply_rope`, `RMSNorm`,
`GatedFeedForward` (an FFN with gate, up and down projections that already knows its name, width, fusion and smaller
variants), `narrow_ffn`, `fuse_ffns`, `pool_kv_heads` (initial weights of other variants), `kv_elements` (what a model
caches per token), `Family` (checkpoint folders of one transformers architecture), what an inference engine needs to run
layers: `make_block`, `attention_class`, `inverse_frequencies`, `rope_tables`, and for training methods `logits`, the
product with a head's weight that tensor-parallel ranks may share.
"""

from importlib import import_module
from typing import Any

from lnlit.interfaces.algorithm import Algorithm, Loss, Needs, RewardTable
from lnlit.interfaces.attention_kernel import AttentionKernel, Segments
from lnlit.interfaces.batch import IGNORE, PolicyBatch, PreferenceBatch, TokenBatch
from lnlit.interfaces.checkpoint import CheckpointFormat, Export
from lnlit.interfaces.layer import AttentionLayer, Conversion, FeedForwardLayer, LayerContext, Parent, SearchSpace
from lnlit.interfaces.meter import Latency, Meter, Workload
from lnlit.interfaces.problem import Budget, Choice, Count, Forbidden, Problem, Scenario
from lnlit.interfaces.prompt_order import PromptOrder
from lnlit.interfaces.reward import (
    BatchReward,
    FunctionReward,
    GradesAnswer,
    NoVerdictError,
    Reward,
    RewardRequest,
    RewardResult,
)
from lnlit.interfaces.rollout import (
    EngineMemory,
    EngineSize,
    PolicyWeights,
    Rollout,
    RolloutEngine,
    RolloutRequest,
    RolloutSampling,
)
from lnlit.interfaces.solver import Solution, Solver, SolverResult
from lnlit.interfaces.source import Source
from lnlit.interfaces.task import (
    Answer,
    Continuations,
    GenerationTask,
    Likelihood,
    LikelihoodTask,
    Question,
    Task,
    TaskSampling,
    Windows,
)

__all__ = [
    "IGNORE",
    "Algorithm",
    "Answer",
    "AttentionKernel",
    "AttentionLayer",
    "BatchReward",
    "Budget",
    "CheckpointFormat",
    "Choice",
    "Continuations",
    "Conversion",
    "Count",
    "EngineMemory",
    "EngineSize",
    "Export",
    "FeedForwardLayer",
    "Forbidden",
    "FunctionReward",
    "GenerationTask",
    "GradesAnswer",
    "Latency",
    "LayerContext",
    "Likelihood",
    "LikelihoodTask",
    "Loss",
    "Meter",
    "Needs",
    "NoVerdictError",
    "Parent",
    "PolicyBatch",
    "PolicyWeights",
    "PreferenceBatch",
    "Problem",
    "PromptOrder",
    "Question",
    "Reward",
    "RewardRequest",
    "RewardResult",
    "RewardTable",
    "Rollout",
    "RolloutEngine",
    "RolloutRequest",
    "RolloutSampling",
    "Scenario",
    "SearchSpace",
    "Segments",
    "Solution",
    "Solver",
    "SolverResult",
    "Source",
    "Task",
    "TaskSampling",
    "TokenBatch",
    "Windows",
    "Workload",
]

_OFFERED = {
    "Family": "lnlit.checkpoint.family",
    "GatedFeedForward": "lnlit.models.ffn",
    "RMSNorm": "lnlit.models.norm",
    "apply_rope": "lnlit.models.rope",
    "attention_class": "lnlit.models.parts",
    "fuse_ffns": "lnlit.models.surgery",
    "inverse_frequencies": "lnlit.models.rope",
    "kv_elements": "lnlit.models.parts",
    "logits": "lnlit.models.vocabulary",
    "make_block": "lnlit.models.block",
    "narrow_ffn": "lnlit.models.surgery",
    "pool_kv_heads": "lnlit.models.surgery",
    "rope_tables": "lnlit.models.rope",
}


def __getattr__(name: str) -> Any:
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_OFFERED[name]), name)

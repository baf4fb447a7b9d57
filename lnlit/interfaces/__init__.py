"""The sockets: everything a plugin author reads. Abstract classes and plain data; importing them imports no torch."""

from lnlit.interfaces.attention_kernel import AttentionKernel, Segments
from lnlit.interfaces.batch import IGNORE, PolicyBatch, PreferenceBatch, TokenBatch
from lnlit.interfaces.checkpoint import CheckpointFormat
from lnlit.interfaces.layer import AttentionLayer, FeedForwardLayer, LayerContext
from lnlit.interfaces.meter import Latency, Meter, Workload
from lnlit.interfaces.problem import Budget, Choice, Count, Forbidden, Problem, Scenario
from lnlit.interfaces.reward import BatchReward, NoVerdictError, Reward, RewardRequest, RewardResult
from lnlit.interfaces.rollout import PolicyWeights, Rollout, RolloutEngine, RolloutRequest, RolloutSampling
from lnlit.interfaces.solver import Solution, Solver, SolverResult
from lnlit.interfaces.source import Source

__all__ = [
    "IGNORE",
    "AttentionKernel",
    "AttentionLayer",
    "BatchReward",
    "Budget",
    "CheckpointFormat",
    "Choice",
    "Count",
    "FeedForwardLayer",
    "Forbidden",
    "Latency",
    "LayerContext",
    "Meter",
    "NoVerdictError",
    "PolicyBatch",
    "PolicyWeights",
    "PreferenceBatch",
    "Problem",
    "Reward",
    "RewardRequest",
    "RewardResult",
    "Rollout",
    "RolloutEngine",
    "RolloutRequest",
    "RolloutSampling",
    "Scenario",
    "Segments",
    "Solution",
    "Solver",
    "SolverResult",
    "Source",
    "TokenBatch",
    "Workload",
]

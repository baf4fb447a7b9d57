"""What `import lnlit` offers, one name a line. `lnlit/__init__.py` reads this table, as type checkers do."""

from lnlit.callbacks import Checkpoint as Checkpoint
from lnlit.callbacks import EndTogether as EndTogether
from lnlit.callbacks import ExportModel as ExportModel
from lnlit.callbacks import GracefulStop as GracefulStop
from lnlit.callbacks import MemoryRecorder as MemoryRecorder
from lnlit.callbacks import RandomState as RandomState
from lnlit.callbacks import RolloutLog as RolloutLog
from lnlit.callbacks import RunResults as RunResults
from lnlit.callbacks import SampleGenerations as SampleGenerations
from lnlit.callbacks import SkipBadSteps as SkipBadSteps
from lnlit.callbacks import Throughput as Throughput
from lnlit.callbacks import ToggleReport as ToggleReport
from lnlit.checkpoint.convert import export_model as export_model
from lnlit.checkpoint.convert import import_model as import_model
from lnlit.checkpoint.formats import read_spec as read_spec
from lnlit.cli.ablate import ablate as ablate
from lnlit.cli.env import environment as environment
from lnlit.cli.new_plugin import write_plugin as plugins_new
from lnlit.cli.python import chat as chat
from lnlit.cli.python import data_show as data_show
from lnlit.cli.python import fit as fit
from lnlit.cli.python import plan as plan
from lnlit.cli.python import run as run
from lnlit.cli.python import stage as stage
from lnlit.cli.python import trainer as trainer
from lnlit.cli.python import validate as validate
from lnlit.cli.recipes import copy_recipes as recipes_copy
from lnlit.cli.recipes import listed as recipes
from lnlit.cli.recipes import text_of as recipes_show
from lnlit.data.datamodule import ChatData as ChatData
from lnlit.data.difficulty import DifficultySource as DifficultySource
from lnlit.data.instructions import InstructionSource as InstructionSource
from lnlit.data.preference import PreferenceData as PreferenceData
from lnlit.data.preference_rows import PreferenceRows as PreferenceRows
from lnlit.data.reasoning_gym import ReasoningGymSource as ReasoningGymSource
from lnlit.data.sources import HuggingFaceSource as HuggingFaceSource
from lnlit.data.sources import JsonlSource as JsonlSource
from lnlit.data.sources import ParquetSource as ParquetSource
from lnlit.data.sources import TextFileSource as TextFileSource
from lnlit.data.split import SplitSource as SplitSource
from lnlit.data.text import TextSample as TextSample
from lnlit.data.text_data import TextData as TextData
from lnlit.errors import UserError as UserError
from lnlit.eval.protocol import SamplingProtocol as SamplingProtocol
from lnlit.eval.runner import Settings as EvaluationSettings
from lnlit.eval.tasks.arena_hard import ArenaHard as ArenaHard
from lnlit.eval.tasks.bfcl import BFCL as BFCL
from lnlit.eval.tasks.ifeval import IFEval as IFEval
from lnlit.eval.tasks.judgebench import JudgeBench as JudgeBench
from lnlit.eval.tasks.lambada import Lambada as Lambada
from lnlit.eval.tasks.mathematics import AIME24 as AIME24
from lnlit.eval.tasks.mathematics import AIME25 as AIME25
from lnlit.eval.tasks.mathematics import GSM8K as GSM8K
from lnlit.eval.tasks.mathematics import MATH500 as MATH500
from lnlit.eval.tasks.mmlu import MMLU as MMLU
from lnlit.eval.tasks.mmlu import MMLUGenerative as MMLUGenerative
from lnlit.eval.tasks.multiple_choice import PIQA as PIQA
from lnlit.eval.tasks.multiple_choice import ARCChallenge as ARCChallenge
from lnlit.eval.tasks.multiple_choice import ARCEasy as ARCEasy
from lnlit.eval.tasks.multiple_choice import HellaSwag as HellaSwag
from lnlit.eval.tasks.multiple_choice import MultipleChoice as MultipleChoice
from lnlit.eval.tasks.multiple_choice import OpenBookQA as OpenBookQA
from lnlit.eval.tasks.perplexity import Perplexity as Perplexity
from lnlit.eval.tasks.perplexity import WikiText as WikiText
from lnlit.eval.tasks.programs import MBPP as MBPP
from lnlit.eval.tasks.programs import HumanEval as HumanEval
from lnlit.eval.tasks.reasoning_gym import ReasoningGym as ReasoningGym
from lnlit.eval.tasks.toggle_robustness import ToggleRobustness as ToggleRobustness
from lnlit.eval.tasks.winogrande import Winogrande as Winogrande
from lnlit.eval.text_model import TextModel as TextModel
from lnlit.interfaces import Algorithm as Algorithm
from lnlit.interfaces import Answer as Answer
from lnlit.interfaces import AttentionLayer as AttentionLayer
from lnlit.interfaces import BatchReward as BatchReward
from lnlit.interfaces import Continuations as Continuations
from lnlit.interfaces import FeedForwardLayer as FeedForwardLayer
from lnlit.interfaces import FunctionReward as FunctionReward
from lnlit.interfaces import GenerationTask as GenerationTask
from lnlit.interfaces import LayerContext as LayerContext
from lnlit.interfaces import Likelihood as Likelihood
from lnlit.interfaces import LikelihoodTask as LikelihoodTask
from lnlit.interfaces import Loss as Loss
from lnlit.interfaces import Needs as Needs
from lnlit.interfaces import NoVerdictError as NoVerdictError
from lnlit.interfaces import PolicyBatch as PolicyBatch
from lnlit.interfaces import PromptOrder as PromptOrder
from lnlit.interfaces import Question as Question
from lnlit.interfaces import Reward as Reward
from lnlit.interfaces import RewardRequest as RewardRequest
from lnlit.interfaces import RewardResult as RewardResult
from lnlit.interfaces import RewardTable as RewardTable
from lnlit.interfaces import Source as Source
from lnlit.interfaces import Task as Task
from lnlit.interfaces import TaskSampling as TaskSampling
from lnlit.interfaces import Workload as Workload
from lnlit.models.lora import LoRA as LoRA
from lnlit.modules.block_distill import BlockDistill as BlockDistill
from lnlit.modules.distill import Distill as Distill
from lnlit.modules.grpo import GRPO as GRPO
from lnlit.modules.lit_model import LitModel as LitModel
from lnlit.modules.lit_model import Runtime as Runtime
from lnlit.modules.model_reward import ModelReward as ModelReward
from lnlit.modules.on_policy_distill import OnPolicyDistill as OnPolicyDistill
from lnlit.modules.optim import AdamW as AdamW
from lnlit.modules.policy import Policy as Policy
from lnlit.modules.prompt_data import HeldOut as HeldOut
from lnlit.modules.prompt_data import LogprobCheck as LogprobCheck
from lnlit.modules.prompt_data import PromptData as PromptData
from lnlit.modules.prompt_data import RolloutConfig as RolloutConfig
from lnlit.modules.prompt_data import Weighted as Weighted
from lnlit.modules.reference import OldPolicy as OldPolicy
from lnlit.modules.reference import PolicySnapshot as PolicySnapshot
from lnlit.modules.reference import StoredLogProbs as StoredLogProbs
from lnlit.modules.reward_model import RewardModel as RewardModel
from lnlit.modules.rloo import RLOO as RLOO
from lnlit.modules.rpo import RPO as RPO
from lnlit.modules.sft import SFT as SFT
from lnlit.rewards.choice import ChoiceReward as ChoiceReward
from lnlit.rewards.code_tests import CodeTestsReward as CodeTestsReward
from lnlit.rewards.format import FormatReward as FormatReward
from lnlit.rewards.function_calls import FunctionCallsReward as FunctionCallsReward
from lnlit.rewards.instructions import InstructionsReward as InstructionsReward
from lnlit.rewards.llm_judge import LLMJudgeReward as LLMJudgeReward
from lnlit.rewards.math_answer import MathAnswerReward as MathAnswerReward
from lnlit.rewards.pair_judge import Judge as Judge
from lnlit.rewards.pair_judge import PairJudgeReward as PairJudgeReward
from lnlit.rewards.reasoning_gym import ReasoningGymReward as ReasoningGymReward
from lnlit.rl.algorithm import PolicyGradient as PolicyGradient
from lnlit.rl.metrics import describe as describe
from lnlit.rollout.endpoint import EndpointEngine as EndpointEngine
from lnlit.rollout.native import NativeEngine as NativeEngine
from lnlit.sampling.curriculum import GaussianCurriculum as GaussianCurriculum
from lnlit.sampling.order import Uniform as Uniform
from lnlit.sampling.settings import Sampling as Sampling
from lnlit.search.costs import CostTable as CostTable
from lnlit.search.library import Library as Library
from lnlit.search.space import Candidates as Candidates
from lnlit.search.targets import Deployment as Deployment
from lnlit.search.targets import Rules as Rules
from lnlit.search.targets import Solutions as Solutions
from lnlit.search.targets import Sweep as Sweep
from lnlit.search.targets import Target as Target
from lnlit.specs import BlockSpec as BlockSpec
from lnlit.specs import ModelSpec as ModelSpec
from lnlit.specs import PartSpec as PartSpec
from lnlit.stages.annotate import annotate as rollout_annotate
from lnlit.stages.card import card as card
from lnlit.stages.card import push as push
from lnlit.stages.curate import curate as curate
from lnlit.stages.curriculum import curriculum as rollout_curriculum
from lnlit.stages.evaluate import evaluate as evaluate
from lnlit.stages.fuse import fuse as search_fuse
from lnlit.stages.generate import Rounds as Rounds
from lnlit.stages.generate import generate as rollout_generate
from lnlit.stages.keep import Keep as Keep
from lnlit.stages.library import build_library as search_library
from lnlit.stages.measure import measure as search_measure
from lnlit.stages.merge import merge as merge
from lnlit.stages.realize import realize as search_realize
from lnlit.stages.reference import reference as rollout_reference
from lnlit.stages.refine import refine as search_refine
from lnlit.stages.report import report as search_report
from lnlit.stages.rollout_page import page as rollout_page
from lnlit.stages.score import score as search_score
from lnlit.stages.solve import solve as search_solve
from lnlit.stages.sweep import sweep as merge_sweep
from lnlit.stages.verify import verify as search_verify

#: A checker takes `x as x` for an offer; these have other names where they live.
__all__ = [
    "EvaluationSettings",
    "merge_sweep",
    "plugins_new",
    "rollout_annotate",
    "rollout_curriculum",
    "rollout_generate",
    "rollout_page",
    "rollout_reference",
    "search_fuse",
    "search_library",
    "search_measure",
    "search_realize",
    "search_refine",
    "search_report",
    "search_score",
    "search_solve",
    "search_verify",
]

__version__: str

"""The table of all parts that lnlit ships: kind -> name -> "module:Class".

Nothing in it is imported until it is asked for.
"""

BUILTINS: dict[str, dict[str, str]] = {
    "attention": {
        "gqa": "lnlit.models.attention:GroupedQueryAttention",
        "single_linear": "lnlit.models.stubs:SingleLinearAttention",
        "noop": "lnlit.models.stubs:NoAttention",
    },
    "ffn": {
        "swiglu": "lnlit.models.ffn:SwiGLU",
        "swiglu_fused": "lnlit.models.ffn:FusedSwiGLU",
        "single_linear": "lnlit.models.stubs:SingleLinearFeedForward",
        "noop": "lnlit.models.stubs:NoFeedForward",
    },
    "attention_kernel": {
        "sdpa": "lnlit.models.kernels:SDPAKernel",
        "flex": "lnlit.models.kernels:FlexKernel",
        "varlen": "lnlit.models.kernels:VarlenKernel",
    },
    "source": {
        "jsonl": "lnlit.data.sources:JsonlSource",
        "text": "lnlit.data.sources:TextFileSource",
        "parquet": "lnlit.data.sources:ParquetSource",
        "huggingface": "lnlit.data.sources:HuggingFaceSource",
        "reasoning_gym": "lnlit.data.reasoning_gym:ReasoningGymSource",
        "instructions": "lnlit.data.instructions:InstructionSource",
        "split": "lnlit.data.split:SplitSource",
        "difficulty": "lnlit.data.difficulty:DifficultySource",
        "preference": "lnlit.data.preference_rows:PreferenceRows",
    },
    "checkpoint": {
        # Formats that can write are tried in this order, the plainest first.
        "llama": "lnlit.checkpoint.families.llama:Llama",
        "mistral": "lnlit.checkpoint.families.mistral:Mistral",
        "qwen2": "lnlit.checkpoint.families.qwen2:Qwen2",
        "qwen3": "lnlit.checkpoint.families.qwen3:Qwen3",
        "phi3": "lnlit.checkpoint.families.phi3:Phi3",
        "smollm3": "lnlit.checkpoint.families.smollm3:SmolLM3",
        "decilm": "lnlit.checkpoint.decilm:DeciLMCheckpoint",
        "lnlit": "lnlit.checkpoint.folder:LnlitFolder",
        "gguf": "lnlit.checkpoint.gguf:GGUFCheckpoint",
        "lightning": "lnlit.checkpoint.lightning:LightningCheckpoint",
    },
    "method": {
        "SFT": "lnlit.modules.sft:SFT",
        "Distill": "lnlit.modules.distill:Distill",
        "BlockDistill": "lnlit.modules.block_distill:BlockDistill",
        "RewardModel": "lnlit.modules.reward_model:RewardModel",
        "Policy": "lnlit.modules.policy:Policy",
        "GRPO": "lnlit.modules.grpo:GRPO",
        "RLOO": "lnlit.modules.rloo:RLOO",
        "RPO": "lnlit.modules.rpo:RPO",
        "OnPolicyDistill": "lnlit.modules.on_policy_distill:OnPolicyDistill",
    },
    "prompt_order": {
        "uniform": "lnlit.sampling.order:Uniform",
        "gaussian_curriculum": "lnlit.sampling.curriculum:GaussianCurriculum",
    },
    "meter": {
        "native": "lnlit.search.native_meter:NativeMeter",
    },
    "reward": {
        "format": "lnlit.rewards.format:FormatReward",
        "math_answer": "lnlit.rewards.math_answer:MathAnswerReward",
        "instructions": "lnlit.rewards.instructions:InstructionsReward",
        "reasoning_gym": "lnlit.rewards.reasoning_gym:ReasoningGymReward",
        "choice": "lnlit.rewards.choice:ChoiceReward",
        "function_calls": "lnlit.rewards.function_calls:FunctionCallsReward",
        "llm_judge": "lnlit.rewards.llm_judge:LLMJudgeReward",
        "pair_judge": "lnlit.rewards.pair_judge:PairJudgeReward",
        "code_tests": "lnlit.rewards.code_tests:CodeTestsReward",
        "reward_model": "lnlit.modules.model_reward:ModelReward",
    },
    "algorithm": {
        "grpo": "lnlit.rl.grpo:GRPO",
        "rloo": "lnlit.rl.rloo:RLOO",
        "rpo": "lnlit.rl.rpo:RPO",
        "cispo": "lnlit.rl.cispo:CISPO",
        "dppo": "lnlit.rl.dppo:DPPO",
        "gdpo": "lnlit.rl.gdpo:GDPO",
        "on_policy_distill": "lnlit.rl.on_policy_distill:OnPolicyDistill",
        "max_rl": "lnlit.rl.max_rl:MaxRL",
        "reinforce_plus_plus": "lnlit.rl.reinforce_plus_plus:ReinforcePlusPlus",
        "sapo": "lnlit.rl.sapo:SAPO",
        "vespo": "lnlit.rl.vespo:VESPO",
    },
    "rollout": {
        "native": "lnlit.rollout.native:NativeEngine",
        "scripted": "lnlit.rollout.scripted:ScriptedEngine",
        "endpoint": "lnlit.rollout.endpoint:EndpointEngine",
    },
    "solver": {
        "greedy": "lnlit.search.baselines:Greedy",
        "ratio_greedy": "lnlit.search.baselines:RatioGreedy",
        "uniform": "lnlit.search.baselines:Uniform",
        "random": "lnlit.search.baselines:Random",
    },
    "task": {
        "gsm8k": "lnlit.eval.tasks.mathematics:GSM8K",
        "toggle_robustness": "lnlit.eval.tasks.toggle_robustness:ToggleRobustness",
        "math500": "lnlit.eval.tasks.mathematics:MATH500",
        "aime24": "lnlit.eval.tasks.mathematics:AIME24",
        "aime25": "lnlit.eval.tasks.mathematics:AIME25",
        "ifeval": "lnlit.eval.tasks.ifeval:IFEval",
        "humaneval": "lnlit.eval.tasks.programs:HumanEval",
        "mbpp": "lnlit.eval.tasks.programs:MBPP",
        "bfcl": "lnlit.eval.tasks.bfcl:BFCL",
        "mmlu_generative": "lnlit.eval.tasks.mmlu:MMLUGenerative",
        "judgebench": "lnlit.eval.tasks.judgebench:JudgeBench",
        "arena_hard": "lnlit.eval.tasks.arena_hard:ArenaHard",
        "reasoning_gym": "lnlit.eval.tasks.reasoning_gym:ReasoningGym",
        "hellaswag": "lnlit.eval.tasks.multiple_choice:HellaSwag",
        "arc_easy": "lnlit.eval.tasks.multiple_choice:ARCEasy",
        "arc_challenge": "lnlit.eval.tasks.multiple_choice:ARCChallenge",
        "openbookqa": "lnlit.eval.tasks.multiple_choice:OpenBookQA",
        "piqa": "lnlit.eval.tasks.multiple_choice:PIQA",
        "multiple_choice": "lnlit.eval.tasks.multiple_choice:MultipleChoice",
        "winogrande": "lnlit.eval.tasks.winogrande:Winogrande",
        "lambada": "lnlit.eval.tasks.lambada:Lambada",
        "mmlu": "lnlit.eval.tasks.mmlu:MMLU",
        "perplexity": "lnlit.eval.tasks.perplexity:Perplexity",
        "wikitext": "lnlit.eval.tasks.perplexity:WikiText",
    },
}

#: Parts that a search tries in place of any other by default (Puzzle, Bercovich et al. 2024, section 2).
STUBS = ("single_linear", "noop")

#: The base class of each kind, for checks and for `lnlit plugins`.
INTERFACES: dict[str, str] = {
    "attention": "lnlit.interfaces.layer:AttentionLayer",
    "ffn": "lnlit.interfaces.layer:FeedForwardLayer",
    "attention_kernel": "lnlit.interfaces.attention_kernel:AttentionKernel",
    "source": "lnlit.interfaces.source:Source",
    "checkpoint": "lnlit.interfaces.checkpoint:CheckpointFormat",
    "method": "lightning.pytorch.core.module:LightningModule",
    "prompt_order": "lnlit.interfaces.prompt_order:PromptOrder",
    "meter": "lnlit.interfaces.meter:Meter",
    "reward": "lnlit.interfaces.reward:Reward",
    "algorithm": "lnlit.interfaces.algorithm:Algorithm",
    "rollout": "lnlit.interfaces.rollout:RolloutEngine",
    "solver": "lnlit.interfaces.solver:Solver",
    "task": "lnlit.interfaces.task:Task",
}

#: Parts of our own plugins, which an error names where they are not installed: (kind, name) -> distribution.
OF_OUR_PLUGINS: dict[tuple[str, str], str] = {
    ("attention_kernel", "flash_attn"): "lnlit-flash-attn",
    ("meter", "vllm"): "lnlit-vllm",
    ("rollout", "vllm"): "lnlit-vllm",
    ("solver", "highs"): "lnlit-highs",
}

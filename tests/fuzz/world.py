"""A folder with one of each thing that a command of lnlit reads, and for each command a line that works on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

#: Configurations by file name, relative to the world.
CONFIGS: dict[str, str] = {
    "fit.yaml": """
model: {class_path: SFT, init_args: {model: model, optimizer: {learning_rate: 1.0e-3}, lora: {rank: 2, alpha: 4.0}}}
data:
  class_path: ChatData
  init_args:
    tokenizer: model
    train: [{source: {class_path: jsonl, init_args: {paths: rows.jsonl}}, weight: 1.0}]
    val: {class_path: jsonl, init_args: {paths: rows.jsonl}}
    sequence_length: 64
    micro_batch_size: 2
trainer: {max_steps: 2, accelerator: cpu, default_root_dir: new/fit, enable_progress_bar: false, logger: false}
""",
    "distill.yaml": """
model: {class_path: Distill, init_args: {model: child, teacher: model, optimizer: {learning_rate: 1.0e-3}}}
data:
  class_path: TextData
  init_args: {tokenizer: model, train: {class_path: jsonl, init_args: {paths: texts.jsonl}}, sequence_length: 32, micro_batch_size: 2}
trainer: {max_steps: 1, accelerator: cpu, default_root_dir: new/distill, enable_progress_bar: false, logger: false}
""",
    "rpo.yaml": """
model: {class_path: RPO, init_args: {model: model, beta: 0.1, optimizer: {learning_rate: 1.0e-3}}}
data:
  class_path: PreferenceData
  init_args: {tokenizer: model, train: {class_path: jsonl, init_args: {paths: pairs.jsonl}}, sequence_length: 64, micro_batch_size: 2}
trainer: {max_steps: 1, accelerator: cpu, default_root_dir: new/rpo, enable_progress_bar: false, logger: false}
""",
    "grpo.yaml": """
model: {class_path: GRPO, init_args: {model: model, optimizer: {learning_rate: 1.0e-3}}}
data:
  class_path: PromptData
  init_args:
    tokenizer: model
    prompts: {class_path: jsonl, init_args: {paths: prompts.jsonl}}
    rewards: [{reward: {class_path: math_answer}, name: answer}, {reward: {class_path: format}, weight: 0.5, name: format}]
    engine: {class_path: native}
    thinking: off
    rollout:
      prompts_per_rollout: 2
      samples_per_prompt: 2
      updates_per_rollout: 1
      max_new_tokens: 4
trainer: {max_steps: 1, accelerator: cpu, default_root_dir: new/grpo, enable_progress_bar: false, logger: false}
""",
    "library.yaml": """
stage: library
model: model
data: {source: {class_path: jsonl, init_args: {paths: texts.jsonl}}, rows: 2, length: 16}
candidates: {kv_heads: [1], widths: [0.5], width_multiple: 8, attention_stubs: [noop], ffn_stubs: [noop]}
out: new/library
""",
    "score.yaml": """
stage: score
model: model
library: library
data: {source: {class_path: jsonl, init_args: {paths: texts.jsonl}}, rows: 2, length: 16}
out: new/scores.jsonl
""",
    "measure.yaml": """
stage: measure
library: library
workloads: [{batch_size: 1, prompt_tokens: 8, new_tokens: 4}]
timing: false
out: new/costs.json
""",
    "solve.yaml": """
stage: solve
library: library
scores: scores.jsonl
deployment: {costs: costs.json, targets: [{cost: memory_mib, max: 0.9, of_parent: true}]}
solutions: {number: 2}
solver: greedy
out: new/solution.json
""",
    "realize.yaml": "stage: realize\nsolution: solution.json\nlibrary: library\nout: new/child\n",
    "fuse.yaml": "stage: fuse\nmodel: child\nout: new/fused\n",
    "report.yaml": "stage: report\nsolution: solution.json\nlibrary: library\ncosts: costs.json\nout: new/report\n",
    "annotate.yaml": """
stage: annotate
model: model
prompts: {class_path: jsonl, init_args: {paths: prompts.jsonl}}
reward: {class_path: math_answer}
sampling: {samples_per_prompt: 2, max_new_tokens: 4}
reward_workers: 1
out: new/annotated.jsonl
""",
    "reference.yaml": """
stage: reference
model: model
data: {class_path: preference, init_args: {source: {class_path: jsonl, init_args: {paths: pairs.jsonl}}}}
batch_tokens: 64
out: new/reference.jsonl
""",
    "curriculum.yaml": """
stage: curriculum
prompts: {class_path: difficulty, init_args: {source: {class_path: jsonl, init_args: {paths: rated.jsonl}}, pass_rate_below: 0.9}}
rollouts: 2
prompts_per_rollout: 1
out: new/curriculum.png
""",
    "ablate.yaml": """
base: fit.yaml
arms:
  plain: {}
  hot: {model.optimizer.learning_rate: 1.0e-2}
seeds: [0, 1]
metrics: [train/loss]
settings: {trainer.max_steps: 1}
out: new/ablation
""",
    "own.yaml": """
stage: annotate
model: model
prompts: {class_path: own.py:Few, init_args: {count: 2}}
reward: {class_path: own.py:polite, init_args: {word: please}}
sampling: {samples_per_prompt: 2, max_new_tokens: 4}
reward_workers: 1
out: new/own.jsonl
""",
    "own.py": """
from lnlit.interfaces import Source


def polite(request, word: str = "please") -> float:
    return float(word in request.completion)


class Few(Source):
    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self, start: int = 0):
        yield from ({"prompt": f"{n}?"} for n in range(start, self.count))
""",
    "merge.yaml": (
        "stage: merge\nmodels: [gone]\nmethod: task_vectors\nweights: [0.5]\nbase: model\ndtype: bfloat16\nout: new/merged\n"
    ),
    "pipeline/1_solve.yaml": "stage: solve\nproblem: problem.json\nsolver: greedy\nout: new/first.json\n",
    "pipeline/2_solve.yaml": "stage: solve\nproblem: problem.json\nsolver: greedy\nout: new/second.json\n",
}

#: Lines that work, each with a weight: how often it is tried. What takes long is tried less often.
COMMANDS: list[tuple[list[str], int]] = [
    (["fit", "--config", "fit.yaml"], 8),
    (["fit", "--config", "distill.yaml"], 4),
    (["fit", "--config", "rpo.yaml"], 3),
    (["fit", "--config", "grpo.yaml"], 4),
    (["fit", "--config", "fit.yaml", "--config", "more.yaml"], 2),
    (["fit", "--config", "fit.yaml", "--ckpt_path", "run/checkpoints/step-1.ckpt"], 5),
    (["validate", "--config", "fit.yaml", "--ckpt_path", "run/checkpoints/step-1.ckpt"], 3),
    (["import", "model", "new/imported"], 4),
    (["import", "model.gguf", "new/imported"], 4),
    (["import", "child", "new/imported", "--dtype", "bfloat16"], 2),
    (["export", "run/checkpoints/step-1.ckpt", "new/exported"], 4),
    (["export", "child", "new/exported", "--pipeline_stages", "2"], 3),
    (["chat", "model", "--prompt", "hello", "--max-new-tokens", "4"], 4),
    (["search", "library", "--config", "library.yaml"], 3),
    (["search", "score", "--config", "score.yaml"], 3),
    (["search", "measure", "--config", "measure.yaml"], 3),
    (["search", "solve", "--config", "solve.yaml"], 5),
    (["search", "solve", "--problem", "problem.json", "--solver", "greedy", "--out", "new/s.json"], 4),
    (["search", "realize", "--config", "realize.yaml"], 4),
    (["search", "fuse", "--config", "fuse.yaml"], 3),
    (["search", "report", "--config", "report.yaml"], 2),
    (["rollout", "annotate", "--config", "annotate.yaml"], 3),
    (["rollout", "reference", "--config", "reference.yaml"], 3),
    (["rollout", "curriculum", "--config", "curriculum.yaml"], 2),
    (["rollout", "page", "--run", "rolled", "--out", "new/page.html"], 1),
    (["merge", "model", "run/checkpoints/step-1.ckpt", "--out", "new/merged", "--weights", "[1, 2]"], 4),
    (["merge", "run/checkpoints/step-1.ckpt", "--config", "merge.yaml"], 3),
    (["run", "pipeline", "--runs", "new", "--dry-run"], 4),
    (["run", "pipeline", "--runs", "new", "--status"], 2),
    (["data", "show", "fit.yaml", "--rows", "2"], 4),
    (["data", "show", "rpo.yaml", "--rows", "2"], 2),
    (["plugins", "find", "ffn", "swiglu"], 1),
    (["plugins"], 1),
    (["plugins", "new", "reward", "polite", "new/polite"], 2),
    (["recipes"], 1),
    (["recipes", "show", "mini/6_grpo"], 1),
    (["recipes", "copy", "ablations/tiny/kd_loss", "new/recipes"], 2),
    (["rollout", "annotate", "--config", "own.yaml"], 4),
    (["ablate", "ablate.yaml", "--dry-run"], 4),
    (["ablate", "ablate.yaml", "--seeds", "0", "--out", "new/ablation"], 3),
]


def build(root: Path, main: Callable[[list[str]], int]) -> None:
    """Fill an empty folder, which is the current one; later things are made from earlier ones by lnlit's commands."""
    from lnlit.testing.tiny import tiny_folder

    tiny_folder(root / "model")
    _gguf(root / "model.gguf")
    for name, text in CONFIGS.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "more.yaml").write_text("trainer: {max_steps: 1}\nmodel: {init_args: {optimizer: {weight_decay: 0.1}}}\n")
    _rows(root)
    choices = [{"name": n, "score": s, "costs": {"memory_mib": c}} for n, s, c in (("a", 0, 4), ("b", 1, 2))]
    problem = {"layers": [choices] * 3, "objective": "minimize", "budgets": [{"cost": "memory_mib", "max": 9}]}
    (root / "problem.json").write_text(json.dumps(problem))
    for line in (
        "search library --config library.yaml --out library",
        "search score --config score.yaml --out scores.jsonl",
        "search measure --config measure.yaml --out costs.json",
        "search solve --config solve.yaml --out solution.json",
        "search realize --config realize.yaml --out child",
        "fit --config fit.yaml --trainer.max_steps 1 --trainer.default_root_dir run",
        "fit --config grpo.yaml --trainer.callbacks RolloutLog --trainer.default_root_dir rolled",
    ):
        code = main(line.split())
        if code:
            raise RuntimeError(f"lnlit {line}: exit code {code}")


def _rows(root: Path) -> None:
    files = {
        "rows.jsonl": [
            {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"answer {n}"}]}
            for n in range(8)
        ],
        "texts.jsonl": [{"text": f"text number {n} " * 9} for n in range(8)],
        "pairs.jsonl": [{"prompt": f"q{n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(6)],
        "prompts.jsonl": [{"prompt": f"{n}+1?", "answer": str(n + 1), "thinking": "off"} for n in range(4)],
        "rated.jsonl": [{"prompt": f"{n}+1?", "answer": str(n + 1), "pass_rate": n / 8} for n in range(8)],
    }
    for name, rows in files.items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _gguf(path: Path) -> None:
    """A Llama of two layers with a byte vocabulary, in fp32."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(258)
    alphabet = [
        *(chr(c) for c in range(33, 127)),
        *(chr(c) for c in range(161, 173)),
        *(chr(c) for c in range(174, 256)),
    ]
    alphabet += [chr(256 + n) for n in range(256 - len(alphabet))]
    tokens = [*sorted(alphabet), "<|im_start|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3])
    writer.add_token_merges([])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    shapes = {"token_embd.weight": (258, 32), "output_norm.weight": (32,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}.weight": (32,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.attn_{name}.weight": shape for name, shape in (("q", (32, 32)), ("k", (16, 32)))}
        shapes |= {f"blk.{layer}.attn_v.weight": (16, 32), f"blk.{layer}.attn_output.weight": (32, 32)}
        shapes |= {f"blk.{layer}.ffn_{name}.weight": (48, 32) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down.weight"] = (32, 48)
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32) * 0.05)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

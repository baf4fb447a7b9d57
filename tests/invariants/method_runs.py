"""Five steps of every method under one strategy after another, as a script for several ranks:

python -m torch.distributed.run ... method_runs.py FOLDER STRATEGY,STRATEGY,... [CHECKPOINT]

What comes of each is in FOLDER/STRATEGY.METHOD.pt. With a checkpoint, it is loaded under each strategy instead, and
what is there then is in FOLDER/STRATEGY.loaded.pt and in the model folder FOLDER/STRATEGY.out. One process group serves
all of them, because starting Python takes longer than the training.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from policy_runs import Letters
from safetensors.torch import save_file
from torch import Tensor

from lnlit.callbacks.checkpoints import Checkpoint
from lnlit.callbacks.export import ExportModel
from lnlit.checkpoint.peft_writer import save_adapter
from lnlit.data.preference import PreferenceData
from lnlit.data.sources import JsonlSource
from lnlit.data.text_data import TextData
from lnlit.interfaces import Reward
from lnlit.models.block import Packed
from lnlit.models.build import build_decoder
from lnlit.models.layout import canonical_name
from lnlit.models.lora import LoRA, add_lora
from lnlit.models.parts import packed
from lnlit.models.reward_head import FILE
from lnlit.models.weights import canonical_adapters, gathered, reshard
from lnlit.modules.distill import Distill
from lnlit.modules.grpo import GRPO
from lnlit.modules.lit_model import Runtime
from lnlit.modules.model_reward import ModelReward
from lnlit.modules.on_policy_distill import OnPolicyDistill
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import PromptData, RolloutConfig, Weighted
from lnlit.modules.reference import PolicySnapshot
from lnlit.modules.reward_model import RewardModel
from lnlit.modules.rloo import RLOO
from lnlit.modules.rpo import RPO
from lnlit.modules.sft import SFT
from lnlit.objectives.kl import KL
from lnlit.rollout.native import NativeEngine
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.testing.plugin.method import Example
from lnlit.testing.tiny import attention, swiglu, tiny_folder, tiny_spec

STEPS = 5
LINEARS = ("q_proj", "v_proj", "o_proj", "up_proj", "gate_up_proj", "down_proj", "linear_attn", "linear_mlp")
ADAPTERS = LoRA(4, targets=LINEARS)
OF_PLAIN = LoRA(4, targets=("q_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"))
#: The models that methods start from, if it is not the child with every variant.
BASES = {"SFT-from-adapters": "plain"}
#: The methods of which checkpoints are kept.
SAVED = ("SFT", "SFT-from-adapters")
#: name -> (ranks that see different data, ranks that divide a layer, replicas); DDP has no mesh.
MESHES = {
    "fsdp1": (1, 1, 1),
    "ddp2": None,
    "fsdp2": (2, 1, 1),
    "tp2": (1, 2, 1),
    "fsdp4": (4, 1, 1),
    "hsdp2x2": (4, 1, 2),
    "fsdp2xtp2": (2, 2, 1),
    "hsdp2xtp2": (2, 2, 2),
}
#: Those that not every method runs under, as others are alike.
LITTLE = {"fsdp4": ("SFT",), "hsdp2x2": ("SFT", "RPO-judged", "RewardModel"), "hsdp2xtp2": ("SFT",)}


def spec() -> ModelSpec:
    """Every variant of a slot that two ranks can divide, and a head of its own."""
    linear, normed = PartSpec("single_linear"), PartSpec("gqa", {**attention().args, "qk_norm": True, "window": 9})
    biased = PartSpec("gqa", {**attention(4).args, "bias": True, "rotary_dim": 4})
    layers = (
        BlockSpec(NOOP, swiglu(32)),
        BlockSpec(biased, swiglu(64, fused=True)),
        BlockSpec(normed, NOOP),
        BlockSpec(linear, linear),
        BlockSpec(NOOP, NOOP),
        BlockSpec(attention(), swiglu(16)),
    )
    return tiny_spec().replace(layers=layers, tie_embeddings=False)


def write(folder: Path) -> None:
    """A child with every variant, a teacher, and rows of each kind."""
    tiny_folder(folder / "model", spec())
    tiny_folder(folder / "teacher", spec(), seed=1)
    save_file({"weight": torch.linspace(-1, 1, 32)[None]}, folder / "model" / FILE)
    write_adapter(folder)
    words = ["one", "two", "three", "four", "five"]
    texts = [{"text": " ".join(words[: n % 5 + 1]) + f" make {n}."} for n in range(150)]
    prompts = [
        {"messages": [{"role": "user", "content": f"say {n}" + "!" * (n % 7)}], "answer": str(n)} for n in range(20)
    ]
    pairs = [{"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": "no" + "!" * (n % 5)} for n in range(24)]
    for name, rows in {"texts": texts, "prompts": prompts, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_adapter(folder: Path) -> None:
    """A model that PEFT has a class for, and adapters that someone has trained, of gate and up as one matrix."""
    base = tiny_folder(folder / "plain")
    decoder = build_decoder(packed(tiny_spec()), "cpu")
    add_lora(decoder, OF_PLAIN)
    generator = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    save_adapter(
        folder / "adapter", tiny_spec(), OF_PLAIN, canonical_adapters(decoder), base=str(base), tokenizer_from=base
    )


def texts(folder: Path, ranks: int) -> L.LightningDataModule:
    return TextData(str(folder / "model"), JsonlSource(str(folder / "texts.jsonl")), 64, 4 // ranks)


def pairs(folder: Path, ranks: int) -> L.LightningDataModule:
    return PreferenceData(str(folder / "model"), JsonlSource(str(folder / "pairs.jsonl")), 64, 4 // ranks)


def samples(folder: Path, ranks: int, judge: Reward | None = None) -> L.LightningDataModule:
    return PromptData(
        *(str(folder / "model"), JsonlSource(str(folder / "prompts.jsonl")), [Weighted(judge or Letters())]),
        engine=NativeEngine(64, "float32", "cpu"),
        rollout=RolloutConfig(4, 2, 6, updates_per_rollout=1, reward_workers=1),
    )


def judged_samples(folder: Path, ranks: int) -> L.LightningDataModule:
    """By a reward model that ranks share as they share the policy."""
    return samples(folder, ranks, ModelReward(str(folder / "model"), dtype="float32"))


METHODS: dict[str, tuple[Any, Any]] = {
    "SFT": (SFT, texts),
    "SFT-adapters": (partial(SFT, lora=ADAPTERS), texts),
    "SFT-from-adapters": (SFT, texts),
    "Distill": (partial(Distill, lm_weight=0.5), texts),
    "OnPolicyDistill": (partial(OnPolicyDistill, beta=0.7), samples),
    "GRPO": (partial(GRPO, kl=KL(0.1)), samples),
    "RLOO": (RLOO, samples),
    "RPO": (partial(RPO, beta=0.1), samples),
    "RPO-judged": (partial(RPO, beta=0.1), judged_samples),
    "RPO-snapshot": (partial(RPO, beta=0.1, reference=PolicySnapshot(2)), samples),
    "RPO-snapshot-adapters": (
        partial(RPO, beta=0.1, reference=PolicySnapshot(2), lora=ADAPTERS),
        samples,
    ),
    "RPO-given": (partial(RPO, beta=0.1, loss="squared"), pairs),
    "RewardModel": (RewardModel, pairs),
    "Stranger": (Example, texts),
}


class Recorder(L.Callback):
    """The loss and the whole gradient of each step, by the names of model folders."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_gradient_norm(self, trainer: L.Trainer, pl_module: Any, norm: float) -> bool:
        def gradient(parameter: Tensor) -> Tensor:
            return torch.zeros(parameter.shape) if parameter.grad is None else parameter.grad

        self.gradients.append(of_parameters(pl_module, gradient))
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        return False


def of_parameters(module: Any, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A whole value of each parameter, by the names of model folders, without those of a copy of the policy."""
    reshard(module)
    stacks, found = module.decoder.packed_weights(), {}
    for name, parameter in module.named_parameters():
        if name.startswith("snapshot."):
            continue
        own = name.removeprefix("decoder.")
        stack = stacks.get(own, Packed((own,)))
        for part, rows in zip(stack.parts, stack.split(gathered(value(parameter))), strict=True):
            found[canonical_name(part)] = rows.clone()
    return found


def strategy(name: str) -> tuple[Any, int, int, Runtime]:
    """(the strategy, its ranks, those that see different data, the runtime)."""
    if name == "one":
        return "auto", 1, 1, Runtime()
    mesh = MESHES[name]
    if mesh is None:
        return DDPStrategy(process_group_backend="gloo"), int(name[-1]), int(name[-1]), Runtime()
    data, tensor, replicas = mesh
    made = ModelParallelStrategy(data, tensor, process_group_backend="gloo")
    return made, data * tensor, data, Runtime(replicas=replicas)


def run(folder: Path, method: str, name: str, save: bool = False, checkpoint: str | None = None) -> dict[str, Any]:
    """Losses, gradients, the last weights and moments of a few steps; those of a checkpoint of as many are loaded."""
    make, data = METHODS[method]
    plan, devices, ranks, runtime = strategy(name)
    settings: dict[str, Any] = {"teacher": str(folder / "teacher")} if "Distill" in method else {}
    if method == "SFT-from-adapters":
        settings["lora"] = replace(OF_PLAIN, adapter=str(folder / "adapter"))
        runtime = replace(runtime, fuse_gate_up=True)
    # A small epsilon would blow up what rounding makes of a gradient that is nearly 0.
    optimizer = AdamW(1e-3, eps=1e-4, weight_decay=0.1, schedule="constant", warmup_ratio=0.0)
    module = make(str(folder / BASES.get(method, "model")), optimizer=optimizer, runtime=runtime, **settings)
    recorder = Recorder()
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=plan,
        max_steps=STEPS,
        gradient_clip_val=1.0,
        callbacks=[recorder, *([Checkpoint(0)] if save else [])],
        default_root_dir=folder / f"{name}.{method}",
        enable_checkpointing=save,
        use_distributed_sampler=False,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(module, data(folder, ranks), ckpt_path=checkpoint)
    if checkpoint is not None:
        ExportModel(str(folder / f"{name}.out")).on_train_end(trainer, module)
    moments = trainer.optimizers[0].state
    return {
        "losses": recorder.losses,
        "gradients": recorder.gradients,
        "weights": of_parameters(module, lambda parameter: parameter),
        "moments": of_parameters(
            module, lambda parameter: moments[parameter].get("exp_avg", torch.zeros(parameter.shape))
        ),
    }


def main(folder: Path, names: str, checkpoint: str | None = None) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in names.split(","):
        for method in LITTLE.get(name, METHODS) if checkpoint is None else ("SFT",):
            found = run(folder, method, name, method in SAVED and checkpoint is None, checkpoint)
            if os.environ["RANK"] == "0":
                torch.save(found, folder / f"{name}.{method if checkpoint is None else 'loaded'}.pt")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(880, exit=True)  # ranks that wait for each other say where
    main(Path(sys.argv[1]), *sys.argv[2:])

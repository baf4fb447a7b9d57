"""Packed SFT of SmolLM2-135M: lnlit against a plain transformers loop and the trainers of TRL, torchtune and litgpt.

    python tests/benchmarks/bench_sft.py [MODEL_FOLDER]

Same rows, 8 x 512 packed tokens a step, prompts masked, bf16 autocast over fp32 weights, AdamW, the same number of
threads, no activation checkpointing unless the name says so, one process after the other. Two differ where they have no
such option: torchtune knows no autocast, so its whole model is fp32, or bf16 ("torchtune-bf16"); litgpt does not pack,
so it gets 48 rows a step, which are about as many tokens, padded to the longest, and only real ones count. Prints
medians over the steps after warm-up, and the machine's own rate of products in bf16, and appends them to RESULTS.md.
Needs `make bench` and fifteen minutes on two cores; without .venv-peers, where it installs litgpt, litgpt is left out.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

BATCH, LENGTH, WARMUP = 8, 512, 2
STEPS = {
    "lnlit": 8, "lnlit-checkpointing": 8, "plain": 8, "trl": 4, "torchtune": 4, "torchtune-bf16": 5, "litgpt": 5
}  # fmt: skip
#: Of SmolLM2-135M, whose embedding is its head.
PARAMETERS = 134_515_008
#: Rows of litgpt's unpacked step.
ROWS = 48
RESULTS = Path(__file__).with_name("RESULTS.md")
#: litgpt asks for another huggingface_hub than lnlit.
PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"


def rows() -> list[dict[str, Any]]:
    from lnlit.data.reasoning_gym import ReasoningGymSource

    return list(ReasoningGymSource("train", 900).rows())


def with_toggle(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "system", "content": f"detailed thinking {row['thinking']}"}, *row["messages"]]


def lnlit(model: str, data: Path, activation_checkpointing: bool = False) -> dict[str, Any]:
    """The SFT module and ChatData under a bare Trainer, with the time of each part."""
    import lightning as L

    import lnlit.modules.sft as sft
    from lnlit.data.datamodule import ChatData
    from lnlit.data.sources import JsonlSource
    from lnlit.modules.lit_model import Runtime
    from lnlit.modules.optim import AdamW

    clock = PartClock()
    sft.linear_cross_entropy = clock.timed("loss", sft.linear_cross_entropy)
    module = sft.SFT(model, AdamW(1e-5), Runtime(compile=True, activation_checkpointing=activation_checkpointing))
    chats = ChatData(model, JsonlSource(str(data)), sequence_length=LENGTH, micro_batch_size=BATCH)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=STEPS["lnlit"],
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        callbacks=[clock.callback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, chats)
    return {"steps_s": clock.steps, "parts_s": clock.parts}


class PartClock:
    """Seconds of each part of each step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.parts: list[dict[str, float]] = []
        self.now: dict[str, float] = {}

    def timed(self, part: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.now[part] = self.now.get(part, 0.0) + time.perf_counter() - start
            return result

        return run

    def callback(self) -> Any:
        import lightning as L

        clock = self

        class Times(L.Callback):
            end = time.perf_counter()

            def on_train_batch_start(self, *args: Any) -> None:
                self.begin = time.perf_counter()
                clock.now = {"data": self.begin - self.end}

            def on_before_backward(self, *args: Any) -> None:
                self.mark = time.perf_counter()
                clock.now["forward"] = self.mark - self.begin - clock.now["loss"]

            def on_after_backward(self, *args: Any) -> None:
                clock.now["backward"] = time.perf_counter() - self.mark
                self.mark = time.perf_counter()

            def on_train_batch_end(self, *args: Any) -> None:
                last, self.end = self.end, time.perf_counter()
                clock.now["optimizer"] = self.end - self.mark
                clock.steps.append(self.end - last)
                clock.parts.append(clock.now)

        return Times()


def plain(model: str, data: Path) -> dict[str, Any]:
    """The strongest loop we know to write with transformers alone: packed, head and cross-entropy compiled."""
    import torch
    from transformers import AutoModelForCausalLM

    from lnlit.data.datamodule import ChatData
    from lnlit.data.sources import JsonlSource

    chats = ChatData(model, JsonlSource(str(data)), sequence_length=LENGTH, micro_batch_size=BATCH)
    llama = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(llama.parameters(), 1e-5, fused=True)

    @torch.compile
    def head_loss(hidden: Any, weight: Any, labels: Any) -> Any:
        logits = torch.nn.functional.linear(hidden, weight).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    steps, end = [], time.perf_counter()
    chats.setup("fit")
    for index, batch in enumerate(chats.train_dataloader()):
        with torch.autocast("cpu", torch.bfloat16):
            # Without use_cache=False transformers ignores the documents' borders.
            hidden = llama.model(batch.tokens, position_ids=batch.positions, use_cache=False).last_hidden_state
            loss = head_loss(hidden, llama.lm_head.weight, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last, end = end, time.perf_counter()
        steps.append(end - last)
        if index + 1 == STEPS["plain"]:
            break
    return {"steps_s": steps}


def trl(model: str, data: Path) -> dict[str, Any]:
    """TRL's SFTTrainer as documented: prompt and completion, packing on, bf16."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    chats = [with_toggle(json.loads(line)) for line in data.read_text().split("\n") if line]
    dataset = Dataset.from_list([{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats])
    steps: list[float] = []

    class Times(TrainerCallback):
        end = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            last, self.end = self.end, time.perf_counter()
            steps.append(self.end - last)

    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out,
            packing=True,
            max_length=LENGTH,
            per_device_train_batch_size=BATCH,
            max_steps=STEPS["trl"],
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            learning_rate=1e-5,
            dataloader_pin_memory=False,
        )
        llama = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        SFTTrainer(
            llama,
            args=config,
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[Times()],
        ).train()
    return {"steps_s": steps}


def torchtune(model: str, data: Path, dtype: str = "fp32") -> dict[str, Any]:
    """torchtune's recipe for full fine-tuning, compiled, on its packed data set, with its Llama of the same size."""
    import importlib.util
    import sysconfig

    import torchao.quantization
    from omegaconf import OmegaConf

    # The recipe imports these two, which torchao has removed since; only quantised models use them.
    for name in ("int4_weight_only", "int8_dynamic_activation_int4_weight"):
        setattr(torchao.quantization, name, None)
    file = Path(sysconfig.get_paths()["purelib"]) / "recipes" / "full_finetune_single_device.py"
    spec = importlib.util.spec_from_file_location("recipe", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = json.loads((Path(model) / "config.json").read_text())
    sizes = {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "embed_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "max_seq_len": LENGTH,
    }
    with tempfile.TemporaryDirectory() as out:
        checkpoint = {"checkpoint_dir": model, "checkpoint_files": ["model.safetensors"], "output_dir": out}
        asked = {
            "output_dir": out,
            "model": {"_component_": "torchtune.models.llama3_2.llama3_2", **sizes},
            "tokenizer": {"_component_": "bench_sft.NoTokenizer"},
            "dataset": {"_component_": "bench_sft.packed", "model": model, "data": str(data)},
            "checkpointer": {
                "_component_": "torchtune.training.FullModelHFCheckpointer",
                "model_type": "LLAMA3_2",
                "recipe_checkpoint": None,
                **checkpoint,
            },
            "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-5, "fused": True},
            "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
            "metric_logger": {"_component_": "bench_sft.StepClock"},
            **{"seed": 0, "shuffle": False, "batch_size": BATCH, "epochs": 1, "gradient_accumulation_steps": 1},
            **{"max_steps_per_epoch": STEPS["torchtune"], "clip_grad_norm": 1.0, "compile": True, "dtype": dtype},
            **{"device": "cpu", "resume_from_checkpoint": False, "optimizer_in_bwd": False, "log_every_n_steps": 1},
            **{"enable_activation_checkpointing": False, "enable_activation_offloading": False},
        }
        cfg = OmegaConf.create(asked)
        recipe = module.FullFinetuneRecipeSingleDevice(cfg=cfg)
        recipe.save_checkpoint = lambda epoch: None  # measured are steps
        recipe.setup(cfg=cfg)
        recipe.train()
        return {"steps_s": recipe._metric_logger.steps}


class NoTokenizer:
    """What torchtune's recipe asks of a tokenizer when its data set needs none."""

    pad_id = 0


class StepClock:
    """A metric logger for torchtune that notes when it is called: once a step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.end = time.perf_counter()

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        last, self.end = self.end, time.perf_counter()
        self.steps.append(self.end - last)

    def log_config(self, *args: Any) -> None: ...


def packed(tokenizer: Any, model: str, data: str) -> Any:
    """torchtune's packed data set of the rows."""
    from torchtune.datasets import PackedDataset
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(model)
    samples = []
    for line in filter(None, Path(data).read_text().split("\n")):
        chat = with_toggle(json.loads(line))
        tokens = template.apply_chat_template(chat, return_dict=False)
        prompt = template.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=False)
        samples.append({"tokens": tokens, "labels": [-100] * len(prompt) + tokens[len(prompt) :]})
    return PackedDataset(samples, max_seq_len=LENGTH, padding_idx=0)  # type: ignore[arg-type]


def litgpt(model: str, data: Path) -> dict[str, Any]:
    """litgpt's full fine-tuning. It pads, so that a step is timed with the number of its real tokens."""
    import shutil

    from litgpt.args import EvalArgs, TrainArgs  # pyright: ignore[reportMissingImports]
    from litgpt.data import JSON  # pyright: ignore[reportMissingImports]
    from litgpt.finetune import full  # pyright: ignore[reportMissingImports]
    from litgpt.model import GPT  # pyright: ignore[reportMissingImports]
    from litgpt.scripts.convert_hf_checkpoint import (  # pyright: ignore[reportMissingImports]
        convert_hf_checkpoint,
    )

    begins: list[float] = []
    tokens: list[int] = []
    forward = GPT.forward

    def timed(self: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            begins.append(time.perf_counter())
            tokens.append(int((ids != 0).sum()))  # it pads with 0, an end of text that no row holds
        return forward(self, ids, *args, **kwargs)

    GPT.forward = timed
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = Path(shutil.copytree(model, folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct"))
        convert_hf_checkpoint(checkpoint)
        chats = [json.loads(line)["messages"] for line in data.read_text().split("\n") if line]
        (folder / "rows.json").write_text(
            json.dumps([{"instruction": chat[-2]["content"], "output": chat[-1]["content"]} for chat in chats])
        )
        full.setup(
            checkpoint,
            folder / "out",
            precision="bf16-mixed",
            data=JSON(folder / "rows.json", mask_prompt=True, prompt_style="smollm2", num_workers=0),
            train=TrainArgs(
                global_batch_size=ROWS,
                micro_batch_size=ROWS,
                max_steps=STEPS["litgpt"] + 1,
                lr_warmup_steps=1,
                epochs=1,
                max_seq_length=LENGTH,
            ),
            eval=EvalArgs(interval=1000, max_new_tokens=1, max_iters=1, final_validation=False),
            optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5, "fused": True}},
        )
    whole = [after - begin for begin, after in pairwise(begins)]
    return {"steps_s": whole, "tokens": tokens[: len(whole)]}


def product_rate() -> float:
    """The bf16 products of this machine in operations per second, as many rows as a step has tokens, in the shape of
    an FFN of SmolLM2: the median of ten after two."""
    import torch

    x, weight = (torch.randn(*shape, dtype=torch.bfloat16) for shape in ((BATCH * LENGTH, 576), (1536, 576)))
    seconds = []
    for _ in range(12):
        begin = time.perf_counter()
        for _ in range(20):
            torch.nn.functional.linear(x, weight)
        seconds.append((time.perf_counter() - begin) / 20)
    return 2 * BATCH * LENGTH * 576 * 1536 / median(seconds[2:])


def child(name: str, model: str, data: Path) -> dict[str, Any]:
    """Run one contender in a process of its own and read its peak memory from the operating system."""
    python = str(PEERS) if name == "litgpt" else sys.executable
    process = subprocess.Popen([python, __file__, "--child", name, model, str(data)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed")
    result = json.loads(out.splitlines()[-1])
    tokens = result.get("tokens", [BATCH * LENGTH] * len(result["steps_s"]))
    rates = [count / seconds for count, seconds in zip(tokens, result["steps_s"], strict=True)]
    result["tokens_per_s"] = median(rates[WARMUP:])
    result["peak_gib"] = usage.ru_maxrss / 2**20
    print(f"{name}: {result['tokens_per_s']:.0f} tokens/s, peak {result['peak_gib']:.2f} GiB", file=sys.stderr)
    return result


def report(results: dict[str, dict[str, Any]], products: float) -> str:
    ours = results["lnlit"]
    parts = {
        name: median(step.get(name, 0.0) for step in ours["parts_s"][WARMUP:])
        for name in ("data", "forward", "loss", "backward", "optimizer")
    }
    total = sum(parts.values())
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    lines = [
        f"\n## {date.today()}: packed SFT, SmolLM2-135M, {BATCH} x {LENGTH}, bf16 autocast, {threads} threads",
        f"{platform.processor() or platform.machine()}, Linux, torch CPU. Medians after {WARMUP} warm-up steps.\n",
        "| | tokens/s | peak GiB | lnlit is faster by | lnlit's peak is |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        speed = ours["tokens_per_s"] / result["tokens_per_s"]
        memory = ours["peak_gib"] / result["peak_gib"]
        lines.append(
            f"| {name} | {result['tokens_per_s']:.0f} | {result['peak_gib']:.2f} | {speed:.2f}x | {memory:.0%} |"
        )
    shares = ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in parts.items())
    done = 6 * PARAMETERS * ours["tokens_per_s"]
    rate = (
        f"The machine computes {products / 1e9:.0f} GFLOP/s of bf16 products of {BATCH * LENGTH} x 576 x 1536; lnlit's "
        f"step does {done / 1e9:.0f} (six a parameter and token, attention not counted), {done / products:.0%} of it."
    )
    return "\n".join([*lines, "", f"lnlit's step: {shares}.", rate, ""])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, model, data = sys.argv[2:]
        contenders = {"lnlit": lnlit, "lnlit-checkpointing": partial(lnlit, activation_checkpointing=True)}
        contenders |= {"plain": plain, "trl": trl, "litgpt": litgpt, "torchtune": torchtune}
        contenders |= {"torchtune-bf16": partial(torchtune, dtype="bf16")}
        print(json.dumps(contenders[name](model, Path(data))))
        return
    model = str(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/smollm2").resolve())
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows()))
        left_out = () if PEERS.is_file() else ("litgpt",)
        results = {name: child(name, model, data) for name in STEPS if name not in left_out}
    text = report(results, product_rate())
    print(text)
    with RESULTS.open("a") as stream:
        stream.write(text)


if __name__ == "__main__":
    main()

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
from pathlib import Path
from statistics import median
from typing import Any

import sft_peers

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
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from trl_clock import TRLClock

    chats = [sft_peers.with_toggle(json.loads(line)) for line in data.read_text().split("\n") if line]
    dataset = Dataset.from_list([{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats])
    clock = TRLClock()
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
            callbacks=[clock],
        ).train()
    return {"steps_s": clock.steps}


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


def child(name: str, model: str, data: Path) -> dict[str, Any] | None:
    """Run one contender in a process of its own and read its peak memory from the operating system. None if a peer
    fails, which costs the others nothing."""
    python = str(PEERS) if name == "litgpt" else sys.executable
    process = subprocess.Popen([python, __file__, "--child", name, model, str(data)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status and name == "lnlit":
        raise SystemExit(f"{name} failed")
    if status:
        print(f"{name}: failed", file=sys.stderr)
        return None
    result = json.loads(out.splitlines()[-1])
    tokens = result.get("tokens", [BATCH * LENGTH] * len(result["steps_s"]))
    rates = [count / seconds for count, seconds in zip(tokens, result["steps_s"], strict=True)]
    result["tokens_per_s"] = median(rates[WARMUP:])
    result["peak_gib"] = usage.ru_maxrss / 2**20
    print(f"{name}: {result['tokens_per_s']:.0f} tokens/s, peak {result['peak_gib']:.2f} GiB", file=sys.stderr)
    return result


def report(results: dict[str, dict[str, Any] | None], products: float) -> str:
    ours = results["lnlit"]
    assert ours is not None
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
        if result is None:
            lines.append(f"| {name} | failed | | | |")
            continue
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
        contenders |= {"plain": plain, "trl": trl}
        contenders["litgpt"] = partial(sft_peers.litgpt, steps=STEPS["litgpt"], rows=ROWS)
        for peer, dtype in (("torchtune", "fp32"), ("torchtune-bf16", "bf16")):
            shape = {"steps": STEPS[peer], "batch": BATCH, "length": LENGTH}
            contenders[peer] = partial(sft_peers.torchtune, **shape, dtype=dtype)
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

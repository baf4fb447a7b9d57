"""Speed and memory of a distillation step: `Distill` against the plain definition, which holds both models' logits, and
against TRL's GKDTrainer.

    python tests/benchmarks/bench_distill.py [MODEL FOLDER] [--tiny]

The child is the parent without a few of its attentions and FFNs. Both contenders run the same decoder on the same
packed text: bf16 autocast over fp32 weights, KL + hidden cosine, blocks compiled, AdamW, equally many threads, one
process after the other. The plain one computes all logits and takes `F.kl_div` and `F.cosine_similarity` of them.
TRL reads no child of ours, so it and "lnlit-parent" train the parent itself, with KL alone (GKD's beta and lambda of
0), TRL on chats whose answers fill a row; it does not pack, and only real tokens count. Its teacher is fp32.
Prints medians over the steps after warm-up, and how far the first losses are apart, and appends them to RESULTS.md.
`--tiny` tries the script on a model of two layers and writes nothing.
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

WARMUP, STEPS = 2, 8
CONTENDERS = ("lnlit", "plain", "lnlit-parent", "trl-gkd")
RESULTS = Path(__file__).with_name("RESULTS.md")


def make_models(folder: Path, model: str | None) -> None:
    """The parent and its child, and some text."""
    from lnlit.checkpoint.folder import save_folder
    from lnlit.checkpoint.formats import open_checkpoint, read_spec
    from lnlit.models.build import build_decoder
    from lnlit.models.layout import layout
    from lnlit.specs import NOOP
    from lnlit.testing.tiny import tiny_folder

    parent = Path(model).resolve() if model else tiny_folder(folder / "tiny")
    (folder / "parent").symlink_to(parent)
    spec = read_spec(parent)
    layers = list(spec.layers)
    for index in range(1, len(layers), 4):
        layers[index] = layers[index].replace(attention=NOOP)
        layers[index - 1] = layers[index - 1].replace(ffn=NOOP)
    child = spec.replace(layers=tuple(layers))
    kept = layout(build_decoder(child))
    weights = ((name, tensor) for name, tensor in open_checkpoint(parent).weights(parent) if name in kept)
    save_folder(folder / "child", child, weights, tokenizer_from=parent, provenance={})
    sentences = [f"The square of {i} is {i * i}, and its cube is {i**3}; half of it is {i / 2}.\n" for i in range(9000)]
    documents = ["".join(sentences[start : start + 12]) for start in range(0, len(sentences), 12)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


def text(folder: Path, shape: tuple[int, int]) -> Any:
    from lnlit.data.sources import JsonlSource
    from lnlit.data.text_data import TextData

    return TextData(str(folder / "parent"), JsonlSource(str(folder / "text.jsonl")), shape[1], shape[0])


def lnlit(folder: Path, shape: tuple[int, int], compiled: bool, child: str = "child") -> dict[str, Any]:
    """`Distill` and `TextData` under a bare Trainer; the parent as its own child learns by KL alone, as GKD does."""
    import lightning as L

    from lnlit.modules.distill import Distill
    from lnlit.modules.lit_model import Runtime
    from lnlit.modules.optim import AdamW

    optimizer = AdamW(1e-5, schedule="constant", warmup_ratio=0.0)
    runtime = Runtime(compile=compiled)
    cosine_weight = 1.0 if child == "child" else 0.0
    method = Distill(
        str(folder / child), str(folder / "parent"), optimizer, cosine_weight=cosine_weight, runtime=runtime
    )
    steps: list[float] = []
    losses: list[float] = []

    class Times(L.Callback):
        end = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            last, self.end = self.end, time.perf_counter()
            steps.append(self.end - last)
            losses.append(float(trainer.callback_metrics["train/loss"]))

    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        callbacks=[Times()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(method, text(folder, shape))
    return {"steps_s": steps, "losses": losses}


def plain(folder: Path, shape: tuple[int, int], compiled: bool) -> dict[str, Any]:
    """The textbook step: two forward passes, all logits of both, torch's own losses."""
    import torch
    from torch.nn import functional as F

    from lnlit.checkpoint.formats import read_spec
    from lnlit.checkpoint.load import load_weights
    from lnlit.interfaces import IGNORE
    from lnlit.models.build import build_decoder
    from lnlit.models.compiling import compile_blocks

    def load(name: str, dtype: torch.dtype) -> Any:
        decoder = build_decoder(read_spec(folder / name), "cpu", dtype)
        load_weights(decoder, folder / name)
        if compiled:
            compile_blocks(decoder, required=True)
        return decoder

    student, teacher = load("child", torch.float32), load("parent", torch.bfloat16).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    texts = text(folder, shape)
    texts.setup("fit")
    steps, losses, end = [], [], time.perf_counter()
    for index, batch in enumerate(texts.train_dataloader()):
        mine: list[Any] = []
        theirs: list[Any] = []
        counts = batch.labels != IGNORE
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                target = teacher(
                    batch.tokens, batch.positions, batch.lengths, on_block=lambda i, x, seen=theirs: seen.append(x)
                )
            logits = student(
                batch.tokens, batch.positions, batch.lengths, on_block=lambda i, x, seen=mine: seen.append(x)
            )
        soft, soft_target = (torch.log_softmax(x[counts].float(), -1) for x in (logits, target))
        kl = F.kl_div(soft, soft_target, reduction="sum", log_target=True)
        pairs = zip(mine, theirs, strict=True)
        cosine = sum((1 - F.cosine_similarity(a.float(), b.float(), dim=-1))[counts].sum() for a, b in pairs)
        loss = (kl + cosine) / counts.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last, end = end, time.perf_counter()
        steps.append(end - last)
        losses.append(loss.item())
        if index + 1 == STEPS:
            break
    return {"steps_s": steps, "losses": losses}


def gkd(folder: Path, shape: tuple[int, int], compiled: bool) -> dict[str, Any]:
    """TRL's GKDTrainer on given answers (`lmbda` 0), with KL(teacher || model) (`beta` 0)."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer
    from trl_clock import TRLClock

    tokenizer = AutoTokenizer.from_pretrained(folder / "parent")
    texts = [json.loads(line)["text"] for line in (folder / "text.jsonl").read_text().split("\n") if line]
    ids = tokenizer("".join(texts)).input_ids
    long = shape[1] - 44  # what the template adds
    answers = [tokenizer.decode(ids[start : start + long]) for start in range(0, 64 * long, long)]
    chats = [[{"role": "user", "content": "Go on."}, {"role": "assistant", "content": answer}] for answer in answers]
    clock = TRLClock()
    tokens: list[int] = []

    class Counting(GKDTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tokens.append(int(inputs["attention_mask"].sum()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as out:
        config = GKDConfig(
            output_dir=out,
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            max_length=shape[1],
            per_device_train_batch_size=shape[0],
            max_steps=WARMUP + 2,
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            learning_rate=1e-5,
            dataloader_pin_memory=False,
        )
        models = [AutoModelForCausalLM.from_pretrained(folder / "parent", dtype=torch.float32) for _ in range(2)]
        dataset = Dataset.from_list([{"messages": chat} for chat in chats])
        also = {"train_dataset": dataset, "processing_class": tokenizer, "callbacks": [clock]}
        Counting(*models, args=config, **also).train()
    return {"steps_s": clock.steps, "losses": clock.losses, "tokens": tokens}


def child(name: str, folder: Path, shape: tuple[int, int], compiled: bool) -> dict[str, Any]:
    """Run one contender in a process of its own and read its peak memory from the operating system."""
    arguments = ["--child", name, str(folder), json.dumps([shape, compiled])]
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed")
    result = json.loads(out.splitlines()[-1])
    tokens = result.get("tokens", [shape[0] * shape[1]] * len(result["steps_s"]))
    rates = [count / seconds for count, seconds in zip(tokens, result["steps_s"], strict=True)]
    result["tokens_per_s"] = median(rates[WARMUP:])
    result["peak_gib"] = usage.ru_maxrss / 2**20
    print(f"{name}: {result['tokens_per_s']:.0f} tokens/s, peak {result['peak_gib']:.2f} GiB", file=sys.stderr)
    return result


def report(results: dict[str, dict[str, Any]], shape: tuple[int, int]) -> str:
    pairs = {"lnlit": "lnlit", "plain": "lnlit", "lnlit-parent": "lnlit-parent", "trl-gkd": "lnlit-parent"}
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    lines = [
        f"\n## {date.today()}: distillation, SmolLM2-135M, {shape[0]} x {shape[1]}, bf16 autocast, {threads} threads",
        f"{platform.processor() or platform.machine()}, Linux, torch CPU. Medians after {WARMUP} warm-up steps. KL and "
        "hidden cosine, the parent as teacher; the last two train the parent itself by KL alone.\n",
        "| | tokens/s | peak GiB | lnlit is faster by | lnlit's peak is |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        ours = results[pairs[name]]
        speed, memory = ours["tokens_per_s"] / result["tokens_per_s"], ours["peak_gib"] / result["peak_gib"]
        cells = f"{result['tokens_per_s']:.0f} | {result['peak_gib']:.2f} | {speed:.2f}x | {memory:.0%}"
        lines.append(f"| {name} | {cells} |")
    first = [results[name]["losses"][0] for name in ("lnlit", "plain")]
    return "\n".join([*lines, "", f"First step's loss: {first[0]:.4f} and {first[1]:.4f}.", ""])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        shape, compiled = json.loads(sys.argv[4])
        known = {"lnlit": lnlit, "plain": plain, "lnlit-parent": partial(lnlit, child="parent"), "trl-gkd": gkd}
        print(json.dumps(known[sys.argv[2]](Path(sys.argv[3]), tuple(shape), compiled)))
        return
    tiny = "--tiny" in sys.argv
    given = [argument for argument in sys.argv[1:] if argument != "--tiny"]
    shape = (2, 64) if tiny else (8, 512)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_models(folder, None if tiny else given[0] if given else "runs/smollm2")
        results = {name: child(name, folder, shape, compiled=not tiny) for name in CONTENDERS}
    outcome = report(results, shape)
    print(outcome)
    if not tiny:
        with RESULTS.open("a") as stream:
            stream.write(outcome)


if __name__ == "__main__":
    main()

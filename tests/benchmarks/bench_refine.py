"""Does looking at whole children find better ones than sums of scores do? SmolLM2-135M.

    python tests/benchmarks/bench_refine.py [--runs runs/mini] [--library library_untrained] [--scores ...]

Reads a library, its scores and a cost table from `--runs`, as `lnlit run yaml/mini` leaves them. At each memory budget,
`lnlit search solve` names children and `lnlit search refine` goes on from them on one text; then all are measured on
another one, which nothing has looked at. Prints a table with the price of the search and appends it to RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.interfaces import Workload
from lnlit.search.targets import Deployment, Solutions, Target
from lnlit.stages.refine import refine
from lnlit.stages.solve import solve

RESULTS = Path(__file__).with_name("RESULTS.md")
#: Batches whose KV cache weighs about as much as the weights.
WORKLOAD = Workload(batch_size=16, prompt_tokens=896, new_tokens=128)
HEADS = (
    *("memory", "HiGHS", "greedy (paper)", "ratio greedy", "uniform", "depth only", "width only", "best of 20 random"),
    *("refined", "of ratio greedy's", "rounds", "children + changes", "seconds"),
)
NAMES = ("child", "greedy", "ratio greedy", "uniform", "depth", "width")


def refined(runs: Path, library: str, share: float, looked_at: TextSample, held_out: TextSample) -> dict:
    """What `refine` wrote at one budget."""
    folder = runs / "refine" / f"{share:g}"
    deployment = Deployment(
        str(runs / "costs.json"), [Target("memory_mib", max=share, of_parent=True)], [WORKLOAD], None, True
    )
    solution = str(folder / "solution.json")
    solve(solution, None, library, str(runs / "scores.jsonl"), deployment, solutions=Solutions(4, 0.85))
    out = refine(solution, library, looked_at, str(folder / "refined.json"), held_out)
    return json.loads(out.read_text(encoding="utf-8"))["refined"]


def row(share: float, found: dict) -> str:
    """One line of the table: held-out KL of the named children, of the refined one, and the price."""
    children = {child["name"]: child for child in found["children"]}
    cells = [f"{children[name]['held_out']:.3f}" if name in children else "none" for name in NAMES]
    draws = [child["held_out"] for name, child in children.items() if name.startswith("random")]
    end = min(children.values(), key=lambda child: child["realised"])
    ratio = end["held_out"] / children["ratio greedy"]["held_out"]
    seconds, rounds = found["seconds"], len(found["rounds"]) - 1
    price = f"{seconds['data']:.0f} + {seconds['changes']:.0f}"
    work = f"{found['children_measured']['data']} + {found['changes_scored']}"
    best = f"**{end['held_out']:.3f}**"
    cells = [f"{share:.0%}", *cells, f"{min(draws):.3f}", best, f"{ratio:.2f}", str(rounds), work, price]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"))
    parser.add_argument("--library", default="library")
    parser.add_argument("--text", default="data/pydocs", help="folder with train.jsonl.gz and valid.jsonl.gz")
    parser.add_argument("--shares", default="0.9,0.8,0.7,0.6,0.5,0.4")
    parser.add_argument("--rows", type=int, default=8, help="rows of 256 tokens that the search looks at")
    options = parser.parse_args(argv)
    looked_at = TextSample(JsonlSource(f"{options.text}/train.jsonl.gz"), rows=options.rows, length=256, skip=420)
    held_out = TextSample(JsonlSource(f"{options.text}/valid.jsonl.gz"), rows=8, length=512)
    lines = [
        f"\n## {date.today()} search by whole children: realised KL of children of SmolLM2-135M\n",
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s). The search looked at {options.rows * 256} "
        "tokens of one text; figures are of 4,096 of another. Memory at batch 16 x 1024 tokens in bf16; no healing.\n",
        f"| {' | '.join(HEADS)} |",
        "|---" * len(HEADS) + "|",
    ]
    print(*lines, sep="\n")
    for share in map(float, options.shares.split(",")):
        library = str(options.runs / options.library)
        lines.append(row(share, refined(options.runs, library, share, looked_at, held_out)))
        print(lines[-1], flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

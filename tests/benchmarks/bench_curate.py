"""Curation's figures: bench_curate.py minhash|blend|workers|kills|paraphrases [DATA] [MODEL].

`minhash` prints MB/s of one core for all parts of MinHash de-duplication together; `blend` the shares at 100,000 rows
and the peak memory at 1,000,000; `workers` whether one worker's file is two workers'; `kills` whether a pipeline that
was killed 20 times writes what an uninterrupted one does; `paraphrases` precision and recall on questions of MATH-500
planted in other words among rows of MATH's training set (DATA is a folder with math500 and math_train, MODEL a model
folder for the embedding).
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lnlit.curation.blend import Blend
from lnlit.curation.columns import Columns
from lnlit.curation.decontaminate import Decontaminate
from lnlit.curation.dedup import ExactDedup, MinHashDedup
from lnlit.curation.domains import TABLE_2, tally
from lnlit.curation.embedding import Embedding
from lnlit.curation.step import Dropped
from lnlit.data.sources import JsonlSource
from lnlit.interfaces import Source
from lnlit.stages.curate import curate

KILLS = Path(__file__).parents[1] / "curation" / "kill_curate.py"


class Synthetic(Source):
    """Rows of random words, of which one in ten repeats an earlier one but for its last word."""

    def __init__(self, count: int, words: int) -> None:
        self.count, self.words = count, words

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        vocabulary = [f"w{number:x}" for number in range(20_000)]
        for number in range(start, self.count):
            draw = random.Random(number - number % 10 if number % 10 == 9 else number)
            text = " ".join(draw.choices(vocabulary, k=self.words))
            yield {"prompt": f"{text} {number if number % 10 == 9 else ''}".strip(), "number": number}


class Domains(Source):
    """Rows with the domains of table 2 and their modes, by turns."""

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        names = list(TABLE_2)
        draw = random.Random(0)
        chosen = draw.choices(names, [TABLE_2[name] ** 0.7 for name in names], k=self.count)
        for number in range(start, self.count):
            domain, _, mode = chosen[number].partition("/")
            row = {"prompt": f"question {number}", "completion": "x" * 200, "category": domain}
            yield {**row, **({"reasoning": mode} if mode else {})}


def minhash(folder: Path) -> None:
    source = Synthetic(6000, 300)
    size = sum(len(row["prompt"].encode()) for row in source.rows()) / 1e6
    curate(source, [], str(folder / "plain.jsonl"), tasks=4)
    begin, cpu = time.perf_counter(), _cpu()
    curate(source, [MinHashDedup()], str(folder / "out.jsonl"), tasks=4)
    seconds, cpu_s = time.perf_counter() - begin, _cpu() - cpu
    kept = (folder / "out.jsonl").read_text().count("\n")
    print(
        f"MinHash, all parts: {size:.1f} MB, {seconds:.1f} s, {cpu_s:.1f} s of CPU: {size / cpu_s:.2f} MB/s of a core"
    )
    print(f"  {6000 - kept} of 600 planted duplicates dropped")


def blend(folder: Path) -> None:
    curate(Domains(400_000), [Blend(rows=100_000)], str(folder / "a.jsonl"), tasks=4)
    with (folder / "a.jsonl").open() as rows:
        found = Counter(tally(json.loads(row)) for row in rows)
    whole = sum(TABLE_2.values())
    worst = max(abs(found[name] / 1000 - 100 * count / whole) for name, count in TABLE_2.items())
    print(f"blend of {sum(found.values()):,} rows: shares differ from table 2 by {worst:.4f} points at most")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    curate(Domains(1_000_000), [Blend()], str(folder / "b.jsonl"), tasks=4)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(file.stat().st_size for file in folder.glob("b.jsonl")) / 1e6
    print(f"blend of 1,000,000 rows in: peak RSS {peak:.0f} MiB ({before:.0f} before), output {size:.0f} MB")


def workers(folder: Path) -> None:
    for count in (1, 2):
        steps = [Columns(required=["prompt"]), ExactDedup(), MinHashDedup()]
        curate(Synthetic(4000, 60), steps, str(folder / f"{count}.jsonl"), workers=count, tasks=6)
    same = (folder / "1.jsonl").read_bytes() == (folder / "2.jsonl").read_bytes()
    print(f"one worker and two: {'the same bytes' if same else 'OTHER BYTES'}, {(folder / '1.jsonl').stat().st_size:,}")


def kills(folder: Path) -> None:
    for name, count, number in (("whole", 0, 1), ("one", 20, 1), ("two", 20, 2)):
        (folder / name).mkdir()
        command = [sys.executable, str(KILLS), str(folder / name), str(count), str(number)]
        killed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        same = (folder / name / "out.jsonl").read_bytes() == (folder / "whole" / "out.jsonl").read_bytes()
        print(f"{number} workers, {killed} SIGKILLs: {'the same bytes' if same else 'OTHER BYTES'}")


#: Words for other words of problems.
_SAID = {
    "find": "determine", "compute": "calculate", "what is": "give", "how many": "count how many",
    "positive": "greater than zero", "suppose": "assume", "let": "take", "such that": "with the property that",
    "integer": "whole number", "value": "amount", "sum": "total", "each": "every", "express": "write", "the": "this",
    "smallest": "least", "largest": "greatest",
}  # fmt: skip


def _otherwise(question: str) -> str:
    return question.replace("\\frac", "\\dfrac").replace("$", " $ ").replace("(", "\\left(").replace(")", "\\right)")


def _inside(question: str) -> str:
    return f"This problem is from a contest for students.\n{question}\nShow all of your work, and box the result."


def _reworded(question: str) -> str:
    words = "|".join(_SAID)
    return re.sub(rf"\b({words})\b", lambda found: _SAID[found[0].lower()], question, flags=re.I)


def _reordered(question: str) -> str:
    sentences = re.split(r"(?<=[.?])\s+", _reworded(question))
    return " ".join(reversed(sentences))


def _renumbered(question: str) -> str:
    return re.sub(r"\d+", lambda found: str(int(found[0]) * 3 + 1), question)


#: Cosines from which on two texts count as the same.
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def paraphrases(folder: Path, data: str, model: str | None = None) -> None:
    bench = JsonlSource(f"{data}/math500/test.jsonl")
    questions = [row["problem"] for row in bench.rows() if len(row["problem"]) < 600][:200]
    plain = Decontaminate({"b": bench})
    train = [row["problem"] for row in JsonlSource(f"{data}/math_train/train.json").rows()]
    others = [text for text in random.Random(0).sample(train, 400) if len(text) < 600][:200]
    sets = {
        "set otherwise": list(map(_otherwise, questions)),
        "inside other text": list(map(_inside, questions)),
        "other words": list(map(_reworded, questions)),
        "other words and order": list(map(_reordered, questions)),
        "other numbers (another problem)": list(map(_renumbered, questions)),
        "rows of MATH's training set": others,
    }
    steps = {"n-grams": plain}
    for threshold in _THRESHOLDS if model else ():
        step = Decontaminate({"b": bench}, embedding=Embedding(model or "", 256, threshold))
        steps[f"with embedding {threshold}"] = step
    if model is not None:  # all thresholds share what embeds
        near = Embedding(model, 256).index(plain.index().texts)
        near._mean = cache(near._mean)
    for name, step in steps.items():
        found = {what: sum(isinstance(one, Dropped) for one in _outcomes(step, texts)) for what, texts in sets.items()}
        right = sum(list(found.values())[:4])
        wrong = list(found.values())[5]
        told = ", ".join(f"{what} {count / len(sets[what]):.1%}" for what, count in found.items())
        print(
            f"{name}: found of {told}; precision {right / max(right + wrong, 1):.3f}, recall {right / 800:.3f}",
            flush=True,
        )


def _outcomes(step: Decontaminate, texts: list[str]) -> list[Any]:
    from lnlit.curation.rows import document, place

    return step.batch([document({"prompt": text}, place(number)) for number, text in enumerate(texts)])


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    part, *rest = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        {"minhash": minhash, "blend": blend, "workers": workers, "kills": kills, "paraphrases": paraphrases}[part](
            Path(scratch), *rest
        )

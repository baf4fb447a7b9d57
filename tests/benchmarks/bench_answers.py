"""Are right answers paid, and wrong ones not? `math_answer` beside math-verify alone, on golds and labelled solutions.

    python tests/benchmarks/bench_answers.py [--train]

Every distinct gold of MATH-500 (with --train 500 of MATH's training golds) in every notation that fits it, by the rules
of `tests/rewards/answer_forms.py`, and every neighbour of it by those of `answer_neighbours.py`; and the labelled
solutions of GSM8K's example models. Prints tables and appends them to RESULTS.md. One thread; three minutes. "Refused"
is a right answer that is not paid, "paid" a wrong one that is.
"""

from __future__ import annotations

import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

from math_verify import parse, verify

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "rewards"))

from answer_forms import FORMS, boxed  # noqa: E402
from answer_neighbours import NEIGHBOURS  # noqa: E402

from lnlit.interfaces import RewardRequest  # noqa: E402
from lnlit.rewards.final_answer import is_correct  # noqa: E402
from lnlit.rewards.math_answer import MathAnswerReward  # noqa: E402

RESULTS = Path(__file__).with_name("RESULTS.md")
DATA = ROOT.parent / "shared" / "data"
Judge = Callable[[str, str], bool]


def by_math_verify(gold: str, completion: str) -> bool:
    expected = parse(f"${gold}$", parsing_timeout=0)
    return bool(verify(expected, parse(completion, parsing_timeout=0), timeout_seconds=0))


def by_reward(gold: str, completion: str) -> bool:
    return MathAnswerReward().score(RewardRequest([], completion, False, {"answer": gold})) == 1


def math_golds(train: bool) -> list[str]:
    if train:
        rows = json.loads((DATA / "math_train" / "train.json").read_text())
        found = list(dict.fromkeys(row["answer"].strip() for row in rows if row["answer"]))
        return random.Random(0).sample(found, 500)
    lines = (DATA / "math500" / "test.jsonl").read_text().splitlines()
    return list(dict.fromkeys(json.loads(line)["answer"] for line in lines))


def notations(golds: list[str], judges: dict[str, Judge]) -> list[str]:
    lines = []
    for title, rules, right in (("refused", FORMS, True), ("paid", NEIGHBOURS, False)):
        lines += [f"| rule | cases | {' | '.join(f'{name}: {title}' for name in judges)} |"]
        lines += ["|---|---|" + "---|" * len(judges)]
        total: Counter[str] = Counter()
        for rule, make in rules.items():
            cases = [(gold, text if right else boxed(text)) for gold in golds for text in make(gold)]
            wrong = {name: [case for case in cases if judge(*case) != right] for name, judge in judges.items()}
            counts = {"cases": len(cases), **{name: len(those) for name, those in wrong.items()}}
            total.update(counts)
            lines.append(f"| {rule.replace('_', ' ')} | {' | '.join(map(str, counts.values()))} |")
            for gold, text in wrong["math_answer"]:
                print(f"math_answer {title}: {gold} <- {text!r}", file=sys.stderr)
        lines += [f"| all | {' | '.join(str(total[name]) for name in ('cases', *judges))} |", ""]
    return lines


def labelled(judges: dict[str, Judge]) -> list[str]:
    rows = [json.loads(line) for line in (DATA / "gsm8k" / "example_model_solutions.jsonl").read_text().splitlines()]
    cases = [
        (row["ground_truth"].rpartition("A: ")[2], value["solution"], value["is_correct"])
        for row in rows
        for value in row.values()
        if isinstance(value, dict)
    ]
    lines = [
        "| GSM8K's labelled solutions | right, paid | right, refused | wrong, refused | wrong, paid |",
        "|---|---|---|---|---|",
    ]
    for name, judge in judges.items():
        seen = Counter((label, judge(gold, text)) for gold, text, label in cases)
        found = [seen[key] for key in ((True, True), (True, False), (False, False), (False, True))]
        lines.append(f"| {name} | {' | '.join(map(str, found))} |")
    return lines


def main() -> None:
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    train = "--train" in sys.argv
    judges: dict[str, Judge] = {"math-verify": by_math_verify, "math_answer": by_reward}
    golds = math_golds(train)
    title = (
        f"## {date.today()}: answers in other notations, {len(golds)} golds of {'MATH train' if train else 'MATH-500'}"
    )
    lines = [title, "", *notations(golds, judges)]
    if not train:
        lines += labelled({**judges, "ToggleReport": lambda gold, text: is_correct(text, gold)})
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    with RESULTS.open("a") as file:
        file.write(f"\n{text}")


if __name__ == "__main__":
    main()

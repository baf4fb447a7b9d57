"""Do benchmarks judge as their authors do? Prints a figure for each, and every difference.

    python tests/benchmarks/bench_tasks.py [ifeval] [bfcl] [humaneval] [gsm8k]

ifeval: strict and loose verdicts against those of lm-eval, on more than 5,000 texts. bfcl: every right answer in every
form that calls are written in, and every way of making a part of it wrong. humaneval: the reference solutions, and each
function left empty, in the sandbox. gsm8k: the labelled solutions of four models. Needs ../shared/data, and lm-eval for
the first. One thread; four minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/rewards")]

from benchmark_rows import isolation  # noqa: E402
from bfcl_answers import forms, right, rows, wrong  # noqa: E402
from ifeval_oracle import SHARED, lm_eval_verdicts, pairs  # noqa: E402

from lnlit.data.sources import JsonlSource  # noqa: E402
from lnlit.eval.tasks.mathematics import GSM8K  # noqa: E402
from lnlit.eval.tasks.programs import HumanEval  # noqa: E402
from lnlit.interfaces import GenerationTask, Question, RewardRequest  # noqa: E402
from lnlit.progress import track  # noqa: E402
from lnlit.rewards.function_calls import FunctionCallsReward  # noqa: E402
from lnlit.rewards.verifiable import loosened, obeys_all  # noqa: E402


def ifeval() -> None:
    with tempfile.TemporaryDirectory() as folder:
        oracle = lm_eval_verdicts(Path(folder))
        seen, obeyed, same = 0, Counter[str](), Counter[str]()
        for text, row, _ in track(list(pairs(7)), "instructions", "text"):
            kind, given = row["instruction_id_list"], row["kwargs"]
            strict, loose = oracle(text, row)
            ours = {
                "strict": obeys_all(text, kind, given),
                "loose": [any(obeys_all(each, kind, given)[0] for each in loosened(text))],
            }
            seen += 1
            for name, theirs in (("strict", strict), ("loose", loose)):
                obeyed[name] += theirs[0]
                same[name] += ours[name] == theirs
                if ours[name] != theirs:
                    print(f"  {name}: {kind[0]} {given[0]}: lm-eval {theirs[0]}, lnlit {ours[name][0]}: {text[:100]!r}")
    for name in ("strict", "loose"):
        say(f"IFEval {name}: {same[name]} of {seen} verdicts are lm-eval's; {obeyed[name]} texts obey")


def bfcl() -> None:
    reward, answers, changes, passed, fooled = FunctionCallsReward(), 0, 0, 0, 0
    for row in track(list(rows()), "function calls", "row"):
        texts = {*(text for take in (0, 1, 2, 9) for text in forms(right(row, take)).values())}
        answers += len(texts)
        passed += sum(reward.score(RewardRequest([], text, False, row)) == 1 for text in texts)
        for what, calls in wrong(row):
            changes += 1
            if reward.score(RewardRequest([], forms(calls)["json"], False, row)):
                fooled += 1
                print(f"  {row['id']}: {what} counts as right")
    say(f"BFCL: {passed} of {answers} right answers are right, {fooled} of {changes} changed ones")


def humaneval() -> None:
    task = HumanEval(JsonlSource(str(SHARED / "humaneval/HumanEval.jsonl.gz")), isolation=isolation())
    passed = empty = total = 0
    for question in track(list(task.questions()), "references", "task"):
        row, total = question.row, total + 1
        found = accuracy(task, question, f"```python\n{row['prompt']}{row['canonical_solution']}\n```")
        passed += found
        empty += accuracy(task, question, f"```python\n{row['prompt']}\n```")
        if not found:
            print(f"  {question.key} fails")
    say(f"HumanEval: {passed:g} of {total} reference solutions pass, {empty:g} functions without a body")


def gsm8k() -> None:
    task = GSM8K(JsonlSource(str(SHARED / "gsm8k/test.jsonl")))
    labelled = list(JsonlSource(str(SHARED / "gsm8k/example_model_solutions.jsonl")).rows())
    seen = same = 0
    for question, row in track(list(zip(task.questions(), labelled, strict=True)), "solutions", "question"):
        for name, solution in row.items():
            if isinstance(solution, dict):
                seen, found = seen + 1, accuracy(task, question, solution["solution"])
                same += found == solution["is_correct"]
                if found != solution["is_correct"]:
                    said = solution["solution"].rpartition("\n")[2]
                    print(f"  {question.key} {name}: gold {question.row['answer']}, {said!r}, labelled "
                          f"{solution['is_correct']}")  # fmt: skip
    say(f"GSM8K: {same} of {seen} labelled solutions are judged as labelled")


def accuracy(task: GenerationTask, question: Question, text: str) -> float:
    return task.rewards()["accuracy"].score(RewardRequest(question.prompts[0], text, False, question.row)) or 0.0


def say(figure: str) -> None:
    print(f"{date.today()} {figure}", flush=True)


if __name__ == "__main__":
    sections = {each.__name__: each for each in (ifeval, bfcl, humaneval, gsm8k)}
    for name in sys.argv[1:] or sections:
        sections[name]()

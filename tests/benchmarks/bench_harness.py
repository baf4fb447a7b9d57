"""GSM8K by `lnlit eval` and by EleutherAI's harness (lm-eval's HFLM): the same prompts, greedy, the same limit.

    python tests/benchmarks/bench_harness.py MODEL OUT [--items 200] [--tokens 128]

Each side runs as it does for a user: `lnlit.evaluate` with the engine `native`, and `lm_eval.simple_evaluate` of the
harness' own `gsm8k` with our prompt, without examples and with its stop strings. Both graders then judge both sides'
texts. Prints how many prompts (as tokens), texts and verdicts are the same, and every difference with its reason: for
texts, how near the two likeliest tokens are, in nats, where the texts part. What was generated is kept in OUT. fp32,
CPU. Needs lm-eval and ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "gsm8k" / "test.jsonl"

from lnlit.data.chat import ChatEncoder  # noqa: E402
from lnlit.data.sources import JsonlSource  # noqa: E402
from lnlit.data.tokenizer import read_tokenizer  # noqa: E402
from lnlit.eval.runner import Settings  # noqa: E402
from lnlit.eval.tasks.mathematics import GSM8K, MATH_PROMPT  # noqa: E402
from lnlit.interfaces import Question, RewardRequest  # noqa: E402
from lnlit.rollout.native import NativeEngine  # noqa: E402
from lnlit.stages.evaluate import evaluate  # noqa: E402

FILTERS = ("flexible-extract", "strict-match")
BATCH = 64


def ours(model: str, out: Path, items: int, tokens: int) -> tuple[dict[str, Any], dict[str, float | None]]:
    """(each question's answer, each question's verdict) by key."""
    evaluate(
        [model],
        [GSM8K(JsonlSource(str(DATA)))],
        str(out),
        thinking=["none"],
        rows=items,
        max_new_tokens=tokens,
        engine=NativeEngine(batch_size=BATCH, dtype="float32"),
        settings=Settings(reward_workers=1),
    )
    answers: dict[str, Any] = {}
    for file in (out / "answers").glob("*/gsm8k.*.jsonl"):
        if ".seconds." not in file.name and ".verdicts-" not in file.name:
            lines = list(map(json.loads, file.open(encoding="utf-8")))[1:]
            answers |= {line["question"]: line["answers"][0][0] for line in lines}
    rows = map(json.loads, (out / "questions.jsonl").open(encoding="utf-8"))
    verdicts = {row["question"]: row["results"][0]["values"]["accuracy"][0] for row in rows}
    return answers, verdicts


class Theirs:
    """The harness' task on our rows, and its model."""

    def __init__(self, model: str, folder: Path, items: int, tokens: int) -> None:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        folder.mkdir(parents=True, exist_ok=True)
        rows = list(JsonlSource(str(DATA)).rows())[:items]
        (folder / "test.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        original = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
        files = {"test": str(folder / "test.json")}
        config = {
            **original,
            "task": "gsm8k_as_asked_here",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
            "training_split": None,
            "fewshot_split": None,
            "num_fewshot": 0,
            "doc_to_text": MATH_PROMPT.format(question="{{question}}"),
            "generation_kwargs": {**original["generation_kwargs"], "max_gen_toks": tokens},
        }
        (folder / "task.yaml").write_text(json.dumps(config))  # JSON is YAML
        self.task: Any = TaskManager().load([str(folder / "task.yaml")])["tasks"]["gsm8k_as_asked_here"]
        hflm: Any = HFLM
        self.model: Any = hflm(model, dtype="float32", device="cpu", batch_size=BATCH)
        self.evaluate: Any = lm_eval.simple_evaluate

    def samples(self, kept: Path) -> list[dict[str, Any]]:
        """One for each question: the prompt, the text, and its verdicts by filter. They are kept in a file."""
        if kept.exists():
            return json.loads(kept.read_text())
        results = self.evaluate(
            model=self.model, tasks=[self.task], apply_chat_template=True, log_samples=True, bootstrap_iters=0
        )
        print({key: value for key, value in results["results"]["gsm8k_as_asked_here"].items() if "stderr" not in key})
        found: dict[int, dict[str, Any]] = {}
        for sample in results["samples"]["gsm8k_as_asked_here"]:
            one = found.setdefault(sample["doc_id"], {"verdicts": {}})
            one |= {"prompt": sample["arguments"][0][0], "text": sample["resps"][0][0], "row": sample["doc"]}
            one["verdicts"][sample["filter"]] = float(sample["exact_match"])
        kept.write_text(json.dumps([found[number] for number in sorted(found)]))
        return json.loads(kept.read_text())

    def graded(self, row: Mapping[str, Any], text: str) -> dict[str, float]:
        """The harness' verdicts on a text."""
        from lm_eval.api.instance import Instance

        verdicts = {}
        for each in self.task._filters:
            instance = Instance("generate_until", dict(row), ("", {}), 0)
            instance.resps = [text]
            each.apply([instance])
            verdicts[each.name] = float(
                self.task.process_results(row, [instance.filtered_resps[each.name]])["exact_match"]
            )
        return verdicts

    @torch.inference_mode()
    def nearness(self, ids: Sequence[int]) -> float:
        """How far apart the two likeliest next tokens are, in nats, by the harness' model."""
        scores = self.model.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        first, second = scores.topk(2).values.tolist()
        return first - second


def judged(question: Question, text: str) -> float:
    """Our verdict on a text."""
    return GSM8K(JsonlSource(str(DATA))).rewards()["accuracy"].score(
        RewardRequest(question.prompts[0], text, False, question.row)
    ) or 0.0  # fmt: skip


def parting(one: Sequence[int], other: Sequence[int]) -> int:
    """The first place at which two lists differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    tokenizer = read_tokenizer(options.model)
    encoder = ChatEncoder(tokenizer, None)
    begin = time.perf_counter()
    answers, verdicts = ours(options.model, options.out / "ours", options.items, options.tokens)
    middle = time.perf_counter()
    harness = Theirs(options.model, options.out / "theirs", options.items, options.tokens)
    samples = harness.samples(options.out / f"theirs/{options.items}x{options.tokens}.json")
    print(f"lnlit {middle - begin:.0f} s, the harness {time.perf_counter() - middle:.0f} s, with loading")
    questions = list(GSM8K(JsonlSource(str(DATA)), rows=options.items).questions())
    assert [each.row["question"] for each in questions] == [each["row"]["question"] for each in samples]
    same, right, both = Counter[str](), Counter[str](), Counter[str]()
    for number, (question, sample) in enumerate(zip(questions, samples, strict=True)):
        answer, text = answers[question.key], sample["text"]
        asked = encoder.prompt({"messages": list(question.prompts[0])})[1]
        theirs = harness.model.tokenizer(sample["prompt"], add_special_tokens=False)["input_ids"]
        same["prompts"] += asked == theirs
        same["texts"] += answer["text"] == text
        if asked != theirs:
            print(f"{number}: another prompt from token {parting(asked, theirs)}")
        if answer["text"] != text:
            print(f"{number}: {why(tokenizer, harness, asked, answer, text)}")
        by_side = {}
        for side, said in (("lnlit", answer["text"]), ("HFLM", text)):
            found = {"lnlit": judged(question, said), **harness.graded(sample["row"], said)}
            by_side[side] = found
            right.update({f"{side}'s texts by {grader}": int(value) for grader, value in found.items()})
            if found["lnlit"] != found["flexible-extract"]:
                print(f"{number}: {side}'s text, gold {question.row['answer']}: {found}; it ends {said[-90:]!r}")
        both["verdicts of lnlit eval are those of its grader here"] += (
            by_side["lnlit"]["lnlit"] == verdicts[question.key]
        )
        theirs_here = {name: by_side["HFLM"][name] for name in FILTERS}
        both["verdicts of simple_evaluate are those of its graders here"] += theirs_here == sample["verdicts"]
        for grader in ("lnlit", *FILTERS):
            both[f"by {grader}, both sides alike"] += by_side["lnlit"][grader] == by_side["HFLM"][grader]
        both["lnlit eval alike simple_evaluate's flexible-extract"] += (
            verdicts[question.key] == sample["verdicts"]["flexible-extract"]
        )
    cut = sum(answers[each.key]["finish_reason"] == "length" for each in questions)
    print(f"of {len(questions)} questions, at most {options.tokens} tokens, {cut} of lnlit's answers cut off:")
    for name, count in {**same, **both}.items():
        print(f"  {name}: {count} the same")
    for name, count in right.items():
        print(f"  {name}: {count} right")


def why(tokenizer: Any, harness: Theirs, asked: Sequence[int], answer: Mapping[str, Any], text: str) -> str:
    """Why the harness' text is not ours."""
    mine = answer["text"]
    for stop in harness.task.config.generation_kwargs["until"]:
        if stop in mine and mine.partition(stop)[0] == text:
            return f"the harness stops at {stop!r}; the same until there, {len(text)} of {len(mine)} characters"
    one, other = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (mine, text))
    place = parting(one, other)
    near = harness.nearness([*asked, *one[:place]])
    ends = [repr(tokenizer.decode(each[place : place + 4])) for each in (one, other)]
    return (
        f"another token at {place} of {len(one)} and {len(other)}: {ends[0]} here, {ends[1]} there; "
        f"the two likeliest are {near:.2e} nats apart ({answer['finish_reason']})"
    )


if __name__ == "__main__":
    main()

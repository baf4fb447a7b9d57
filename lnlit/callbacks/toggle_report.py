"""Compares held-out accuracy and obedience to the reasoning toggle before and after training, as a table and in
every logger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.callbacks.boards import log_text
from lnlit.callbacks.interrupt import stopped_by
from lnlit.data.rows import asked
from lnlit.errors import UserError
from lnlit.eval.intervals import share
from lnlit.interfaces import Source
from lnlit.models.generate import Sampling, generate
from lnlit.models.weights import inference_copy
from lnlit.rewards.final_answer import is_correct
from lnlit.thinking import obeys

_MODES = ("on", "off")


class ToggleReport(L.Callback):
    """Answers held-out questions with thinking on and off, before the first step and after the last.

    Args:
        source: Rows with an `answer` and a user message. Assistant turns are not shown to the model.
        rows: The number of distinct questions to ask in each mode.
        batch_size: The number of questions generated together.
        max_new_tokens: The maximum length of each answer in tokens.
    """

    def __init__(self, source: Source, rows: int = 200, batch_size: int = 64, max_new_tokens: int = 128) -> None:
        if rows < 1 or batch_size < 1:
            raise UserError(f"ToggleReport: rows and batch_size must be positive, got {rows} and {batch_size}")
        self.source, self.rows, self.batch_size = source, rows, batch_size
        self.sampling = Sampling(max_new_tokens=max_new_tokens)
        self.sampling.check()
        self.results: dict[str, Any] = {}
        self._answers: dict[str, dict[str, float]] = {}

    def per_question(self) -> Mapping[str, Mapping[str, float]]:
        """Whether each question's latest answer was correct, obeyed the toggle, and was truncated, by thinking mode."""
        return self._answers

    def state_dict(self) -> dict[str, Any]:
        return {"results": json.dumps(self.results)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.results = json.loads(state_dict["results"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        questions = self._questions()
        users, answers = [q for q, _ in questions], [a for _, a in questions]
        self.results["baselines"] = {
            "best constant": _counts(best_constant(answers)),
            "echo last number": _counts(echo_last_number(users, answers)),
        }
        if "before" not in self.results:  # not again after a resume
            self.results["before"] = self._evaluate(trainer, pl_module, questions)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if stopped_by(trainer) is not None:
            return
        self.results["after"] = self._evaluate(trainer, pl_module, self._questions())
        if trainer.is_global_zero:
            report = Path(trainer.default_root_dir) / "toggle_report.json"
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(json.dumps(self.results, indent=2))
            table = render(self.results)
            log_text(trainer.loggers, "toggle", f"```\n{table}\n```", trainer.global_step)
            rank_zero_info(f"\n{table}\n\nwrote {report}")

    def _questions(self) -> list[tuple[str, str]]:
        """Distinct pairs (user message, answer)."""
        found: dict[str, str] = {}
        for row in self.source.rows():
            user = next((m["content"] for m in asked(row).messages if m["role"] == "user"), None)
            if user is None or row.get("answer") is None:
                raise UserError("ToggleReport.source: every row needs a user message and an `answer`")
            found.setdefault(user, str(row["answer"]))
            if len(found) == self.rows:
                break
        if not found:
            raise UserError("ToggleReport.source: no rows")
        return list(found.items())

    def _evaluate(
        self, trainer: L.Trainer, module: L.LightningModule, questions: list[tuple[str, str]]
    ) -> dict[str, Any]:
        stage = "after" if "before" in self.results else "before"
        result: dict[str, Any] = {}
        for mode in _MODES:
            texts, finished = self._answer(trainer, module, [q for q, _ in questions], mode)
            found = {
                "accuracy": [is_correct(text, answer) for text, (_, answer) in zip(texts, questions, strict=True)],
                "obedience": [obeys(text, mode) for text in texts],
                "truncated": [not done for done in finished],
            }
            for name, hits in found.items():
                by_question = zip((question for question, _ in questions), map(float, hits), strict=True)
                self._answers.setdefault(f"toggle/{name}_{mode}", {}).update(by_question)
            result[mode] = {name: _counts(hits) for name, hits in found.items()}
            result[mode]["sample"] = {"question": questions[0][0], "answer": texts[0]}
            shares = {name: share(*_counts(found[name])) for name in ("accuracy", "obedience")}
            for name, mean in shares.items():
                for logger in trainer.loggers:
                    logger.log_metrics({f"toggle/{name}_{mode}": mean.value}, trainer.global_step)
            told = ", ".join(f"{name} {mean}" for name, mean in shares.items())
            rank_zero_info(f"{stage}, thinking {mode}: {told}")
        return result

    def _answer(
        self, trainer: L.Trainer, module: L.LightningModule, questions: list[str], mode: str
    ) -> tuple[list[str], list[bool]]:
        encoder = trainer.datamodule.encoder  # type: ignore[attr-defined]
        prompts = [encoder.encode_prompt([{"role": "user", "content": q}], mode) for q in questions]
        results = []
        remaining = iter(prompts)
        decoder = inference_copy(module.decoder)  # type: ignore[arg-type]
        with torch.autocast(module.device.type, torch.bfloat16):
            while batch := list(islice(remaining, self.batch_size)):
                results += generate(decoder, batch, self.sampling, encoder.end_ids())
        texts = [encoder.completion(prompt, result.token_ids) for prompt, result in zip(prompts, results, strict=True)]
        return texts, [result.finish_reason == "stop" for result in results]


def _counts(hits: Sequence[bool]) -> list[int]:
    return [sum(hits), len(hits)]


def best_constant(answers: Sequence[str]) -> list[bool]:
    """Which answers are the most frequent one: a model must be right more often than whoever always says it."""
    most = Counter(answers).most_common(1)[0][0]
    return [answer == most for answer in answers]


def echo_last_number(questions: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Which questions are answered by their own last number."""
    return [is_correct(question, answer) for question, answer in zip(questions, answers, strict=True)]


def render(results: dict[str, Any]) -> str:
    """The report as a text table with 95% intervals."""
    lines = [f"{'':<10}{'thinking':<10}{'accuracy':<20}{'obeys the toggle':<20}{'cut off':<18}"]
    for stage in ("before", "after"):
        for mode in _MODES:
            cells = results[stage][mode]
            columns = [_cell(cells[name]) for name in ("accuracy", "obedience", "truncated")]
            lines.append(f"{stage:<10}{mode:<10}{columns[0]:<20}{columns[1]:<20}{columns[2]:<18}")
    for name, counts in results["baselines"].items():
        lines.append(f"{name:<20}{_cell(counts)}")
    for mode in _MODES:
        sample = results["after"][mode]["sample"]
        lines += ["", f"thinking {mode}, after: {sample['question']}", sample["answer"]]
    return "\n".join(lines)


def _cell(counts: Sequence[int]) -> str:
    """A share with its interval, whose numbers stand below each other in a table."""
    value, _, interval = str(share(*counts)).partition(" ")
    return f"{value:>6} {interval}".rstrip()

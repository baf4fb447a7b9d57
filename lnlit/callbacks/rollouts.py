"""Records what a policy says while it learns: samples as Parquet files and as text, and a page of charts."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.callbacks.boards import log_pictures, log_text
from lnlit.errors import UserError
from lnlit.report.rollouts import by_prompt, in_words, sections, widest, write_page
from lnlit.rl.collector import RolloutData
from lnlit.rl.metrics import describe
from lnlit.sampling.history import FOLDER, PAGE, Entry, History, Stage, finite
from lnlit.sampling.sample import Sample

_TRAIN: Stage = "train"


class RolloutLog(L.Callback):
    """Writes the samples of each rollout and each validation as Parquet files to `<default_root_dir>/rollouts`, and
    updates the page `<default_root_dir>/rollouts.html` after each validation and at the end.

    Every logger gets the best and the worst answers to the prompts whose rewards differ most, validation's answers to
    the first held-out prompts, and the charts at the end. A resumed run continues the record of its checkpoint; a new
    run replaces the record of an earlier one. `lnlit rollout page` writes the page again.

    Args:
        every_n_rollouts: Keep the samples of every n-th rollout. Metrics are kept for all rollouts.
        keep: The number of rollouts whose samples are kept: the first and the newest ones. All validations are kept.
        num_prompts: The number of prompts that loggers get.
    """

    def __init__(self, every_n_rollouts: int = 1, keep: int = 100, num_prompts: int = 3) -> None:
        if every_n_rollouts < 1 or keep < 2 or num_prompts < 0:
            raise UserError(
                "RolloutLog: needs every_n_rollouts >= 1, keep >= 2 and num_prompts >= 0, got "
                f"{every_n_rollouts}, {keep} and {num_prompts}"
            )
        self.every_n_rollouts, self.keep, self.num_prompts = every_n_rollouts, keep, num_prompts
        self._trainer: L.Trainer | None = None
        self._folder: Path | None = None
        self._answers: Sequence[Sample] = ()

    def per_question(self) -> Mapping[str, Mapping[str, float]]:
        """The mean total reward and the mean of each reward function for each held-out prompt, from the latest
        validation. Prompts without any judged answer are left out."""
        answers = self._answers
        if not answers and self._folder is not None:  # resumed after the last validation
            history = History(self._folder)
            answers = history.samples("val", steps[-1]) if (steps := history.steps("val")) else ()
        return _by_question(answers)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._data: Any = getattr(trainer, "datamodule", None)
        if not isinstance(self._data, RolloutData):
            raise UserError(
                f"RolloutLog: there are no rollouts to keep, the data are {type(self._data).__name__}. It is for "
                "PromptData; take it out of trainer.callbacks."
            )
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        self._trainer, self._folder = trainer, Path(trainer.default_root_dir) / FOLDER
        self._history = History(self._folder)
        self._held: list[tuple[Entry, Sequence[Sample]]] = []
        self._has_begun = False
        self._start = -1
        self._open: Entry | None = None  # the newest rollout, on which the run still trains
        self._trained_s = 0.0
        self._phases: dict[str, float] = {}  # seconds per phase at the time of the last samples
        self._data.listeners.append(self.record)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is not None:  # type: ignore[attr-defined]
            self._start = trainer.global_step

    def record(self, stage: Stage, samples: Sequence[Sample]) -> None:
        """Called with the samples of each rollout ("train") and each validation ("val")."""
        assert self._trainer is not None
        if stage == "val":
            self._answers = samples
        before, self._phases = {} if stage == _TRAIN else self._phases, dict(self._data.phases.seconds)
        seconds = {name: value - before.get(name, 0.0) for name, value in self._phases.items()}
        drawn_for = self._data.rollout if stage == _TRAIN else self._data.held_out
        numbers = finite(describe(samples, drawn_for.samples_per_prompt))
        entry = Entry(stage, self._trainer.global_step, self._data.rollouts, len(samples), numbers, finite(seconds))
        if self._trainer.sanity_checking:  # the run may still be refused, so that an earlier one's files must stay
            self._held.append((entry, samples))
            return
        if not self._has_begun:
            self._begin()
        self._keep(entry, samples)

    def _begin(self) -> None:
        self._has_begun = True
        self._history.cut(self._start)
        self._open = next(iter(self._history.entries(_TRAIN)[-1:]), None)
        for entry, samples in self._held:
            self._keep(entry, samples)
        self._held.clear()

    def _keep(self, entry: Entry, samples: Sequence[Sample]) -> None:
        if entry.stage == _TRAIN:
            self._note_training()
            self._open = entry
        if entry.stage == "val" or (entry.rollout - 1) % self.every_n_rollouts == 0:
            self._history.add_samples(entry.stage, entry.step, samples, self.keep)
            self._show(entry.stage, entry.step, samples)
        self._history.add(entry)

    def _show(self, stage: Stage, step: int, samples: Sequence[Sample]) -> None:
        assert self._trainer is not None
        loggers = self._trainer.loggers
        pairs = widest(samples) if stage == _TRAIN else _in_order(samples)
        for number, (best, worst) in enumerate(pairs[: self.num_prompts] if loggers else ()):
            log_text(loggers, f"rollouts/{stage}/{number}", markdown(best, worst), step)

    # how long training took

    def on_train_batch_start(self, *args: Any) -> None:
        self._batch_start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        if self._trainer is not None:
            self._trained_s += time.perf_counter() - self._batch_start

    def _note_training(self) -> None:
        """Adds the time spent on training since the newest rollout to that rollout's entry."""
        if self._open is not None and self._trained_s:
            seconds = {**self._open.seconds, "train": self._open.seconds.get("train", 0.0) + self._trained_s}
            self._open = replace(self._open, seconds=seconds)
            self._history.add(self._open)
        self._trained_s = 0.0

    # the page

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write_page()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._write_page():
            rank_zero_info(f"wrote {Path(trainer.default_root_dir) / PAGE}")
            drawn = sections(self._history.entries("train"), self._history.entries("val"))
            pictures = (picture for _, pictures, _ in drawn for picture in pictures)
            log_pictures(trainer.loggers, "rollouts", pictures, trainer.global_step)
        self._leave()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with suppress(UserError):  # the exception that ended the run must be reported, not this one
            self._write_page()
        self._leave()

    def _write_page(self) -> bool:
        if self._trainer is None or not self._has_begun:
            return False
        self._note_training()
        write_page(Path(self._trainer.default_root_dir) / PAGE, self._history)
        return True

    def _leave(self) -> None:
        if self._trainer is not None:
            self._data.listeners.remove(self.record)
            self._trainer = None


def markdown(best: Sample, worst: Sample) -> str:
    """A prompt with its best and its worst sample as Markdown, for loggers."""
    parts = [f"*{message.get('role')}*\n\n{_fenced(str(message.get('content')))}" for message in best.prompt.messages]
    shown = {"best": best, "worst": worst} if best is not worst else {"answer": best}
    for name, sample in shown.items():
        reward, rest = in_words(sample)
        parts.append(f"**{name}: {reward}** ({rest})\n\n{_fenced(sample.text)}")
    return "\n\n".join(parts)


def _by_question(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Maps metric -> prompt -> mean over the answers with a value. The names of metrics are those of validation."""
    found: dict[str, dict[str, float]] = {}
    for prompt, answers in by_prompt(samples).items():
        values = {"val/reward": [s.reward for s in answers if not math.isnan(s.reward)]}
        for name in answers[0].rewards:
            given = [s.rewards[name].value for s in answers]
            values[f"val/rewards/{name}/mean"] = [value for value in given if value is not None]
        for name, known in values.items():
            if known:
                found.setdefault(name, {})[prompt] = fmean(known)
    return found


def _fenced(text: str) -> str:
    """A Markdown code block whose fence is longer than any in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}\n{text}\n{fence}"


def _in_order(samples: Iterable[Sample]) -> list[tuple[Sample, Sample]]:
    """(best, worst) of each prompt, in the order of prompts; the first sample twice if no sample has a reward."""
    pairs = ((group[0], widest(group)) for group in by_prompt(samples).values())
    return [found[0] if found else (first, first) for first, found in pairs]

"""Runs benchmarks: every task in every thinking mode for one model after another, from a cache of what was done."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import frozen_decoder
from lnlit.errors import UserError
from lnlit.eval import answers, compared
from lnlit.eval.answers import AnswerFile, Readable
from lnlit.eval.divergence import Divergence, Said, diverge
from lnlit.eval.figures import Cell, outcome, totals, totals_of_answers
from lnlit.eval.tasks.benchmark import RowsTask
from lnlit.interfaces import GenerationTask, LikelihoodTask, Reward, RolloutEngine, RolloutSampling, Task, TaskSampling
from lnlit.journal import Lines
from lnlit.models.decoder import Decoder
from lnlit.models.device import torch_device
from lnlit.sampling.model import SampledModel, settings_of
from lnlit.sampling.prompt import PromptEncoder
from lnlit.sampling.sampler import Phases, Sampler, Weighted
from lnlit.thinking import Thinking, opened

#: Tokens of an answer at which two models are compared.
_DIVERGED = 1024


@dataclass(frozen=True)
class Benchmark:
    """A task with its questions, and the name that tables give it."""

    name: str
    task: Task
    questions: Sequence[Any]


@dataclass(frozen=True)
class Settings:
    """How an evaluation is carried out.

    Args:
        seed: Other seeds, other answers.
        questions_per_round: The number of questions between two writes to disk. Engines work best on many at once.
        reward_workers: The number of processes that judge.
        likelihood_dtype: The dtype in which log-likelihoods are computed.
        likelihood_batch_tokens: Tokens of which log-likelihoods are computed together.
        divergence_questions: The number of questions of each task on whose answers models are compared token by token
            with the one that they are evaluated against. 0 compares none.
    """

    seed: int = 0
    questions_per_round: int = 64
    reward_workers: int = 2
    likelihood_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    likelihood_batch_tokens: int = 2048
    divergence_questions: int = 32

    def __post_init__(self) -> None:
        if self.divergence_questions < 0:
            raise UserError(f"settings.divergence_questions: expected 0 or more, got {self.divergence_questions}")
        for name in ("questions_per_round", "reward_workers", "likelihood_batch_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"settings.{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Asked:
    """What models are asked, as in `lnlit eval`.

    Args:
        tasks: The benchmarks, by name or with settings.
        thinking: The modes to ask in: on, off or none.
        rows: The number of questions of each task; all if null.
        samples: Answers per question where they are sampled, in place of the task's number.
        max_new_tokens: Length limit of an answer, in place of the task's.
        engine: Generates the answers; lnlit's own decoder when not given.
        settings: How the evaluation is carried out.
    """

    tasks: list[Task]
    thinking: list[Literal["on", "off", "none"] | bool] | None = None
    rows: int | None = None
    samples: int | None = None
    max_new_tokens: int | None = None
    engine: RolloutEngine | None = None
    settings: Settings = Settings()

    def __post_init__(self) -> None:
        for name in ("rows", "samples", "max_new_tokens"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UserError(f"{name}: expected at least 1, got {number}")


def read_benchmarks(tasks: Sequence[tuple[str, Task]], rows: int | None) -> list[Benchmark]:
    """The first `rows` questions of each named task. Raises `UserError` for a task without questions, and for one in
    which two questions have one key."""
    found = []
    for name, given in tasks:
        task = _shortened(given, rows)
        questions = list(islice(task.questions(), rows))
        if not questions:
            raise UserError(f"{name}: has no questions.")
        key, count = Counter(question.key for question in questions).most_common(1)[0]
        if count > 1:
            raise UserError(f"{name}: {count} questions have the key {key!r}. Give each row a key of its own.")
        found.append(Benchmark(name, task, questions))
    return found


def _shortened(task: Task, rows: int | None) -> Task:
    """The task with this number of questions, as far as it can choose them. Its own number is kept."""
    if rows is None or not isinstance(task, RowsTask) or task.rows is not None:
        return task
    shorter = copy.copy(task)
    shorter.rows = rows
    return shorter


class Evaluator:
    """One model with the files of its answers.

    Args:
        name: The name of the model in tables and of its folder of answers.
        model: The model with an engine, which others may have used.
        folder: The folder of answers of all models.
        asked: What it is asked.
    """

    def __init__(self, name: str, model: SampledModel, folder: Path, asked: Asked) -> None:
        self.name, self.model, self.folder = name, model, folder
        self.asked, self.settings = asked, asked.settings
        self._is_loaded = False

    def cells(self, benchmarks: Sequence[Benchmark], modes: Sequence[Thinking | None]) -> Iterator[Cell]:
        """Evaluates the model on each benchmark in each mode. Likelihoods come first and once, and tasks that say
        themselves how to think come once."""
        for benchmark in benchmarks:
            if isinstance(benchmark.task, LikelihoodTask):
                yield self._compared(benchmark, benchmark.task)
        self.release()  # before an engine has another copy
        for benchmark in benchmarks:
            if isinstance(benchmark.task, GenerationTask):
                for thinking in (None,) if benchmark.task.sets_thinking else modes:
                    yield self._generated(benchmark, benchmark.task, thinking)

    # likelihoods

    def _compared(self, benchmark: Benchmark, task: LikelihoodTask) -> Cell:
        if self.model.folder is None:
            raise UserError(
                f"{self.name}: likelihoods need a model folder, which an engine with a model of its own has not. Leave "
                "out the tasks that compare them."
            )
        settings, identity = self.settings, self.model.identity
        header = {"model": identity["model"], "tokenizer": identity["tokenizer"], "dtype": settings.likelihood_dtype}
        with AnswerFile(self._file(benchmark.name, header), header, "likelihoods") as found:
            compared.compare(
                benchmark.questions,
                lambda: self._decoder,
                self.model.tokenizer,
                found,
                settings.questions_per_round,
                settings.likelihood_batch_tokens,
                f"{self.name} {benchmark.name}",
            )
            outcomes = {each.key: compared.outcome(task, each, found) for each in benchmark.questions}
            cut = compared.cut(benchmark.questions, found)
        about = {**header, "questions whose context was cut": cut}
        return Cell(
            self.name, benchmark.name, None, outcomes, totals=totals(task, list(outcomes.values())), about=about
        )

    @cached_property
    def _decoder(self) -> Decoder:
        assert self.model.folder is not None
        return frozen_decoder(self.model.folder, torch_device(), getattr(torch, self.settings.likelihood_dtype))

    # answers

    def _asked(
        self, benchmark: Benchmark, task: GenerationTask, thinking: Thinking | None
    ) -> tuple[list[Readable], dict[str, str], PromptEncoder, TaskSampling, Path, dict[str, Any]]:
        """(questions as the model reads them, why others cannot be asked, their encoder, how answers are sampled, the
        file of answers and its header)."""
        sampling, encoder = self._sampling(task, thinking), self.model.encoder(thinking)
        try:
            asked, left_out = answers.readable(benchmark.questions, encoder, sampling, self.model.room(0))
        except UserError as error:
            raise UserError(f"{self.name}, {benchmark.name}: {error}") from error
        header = {**self.model.identity, "thinking": thinking, "sampling": asdict(sampling), "seed": self.settings.seed}
        file = self._file(f"{benchmark.name}.{thinking}" if thinking else benchmark.name, header)
        return asked, left_out, encoder, sampling, file, header

    def _generated(self, benchmark: Benchmark, task: GenerationTask, thinking: Thinking | None) -> Cell:
        settings = self.settings
        asked, left_out, encoder, sampling, file, header = self._asked(benchmark, task, thinking)
        rewards = task.rewards()
        judging = {name: settings_of(reward) | {"code": _code(reward)} for name, reward in rewards.items()}
        verdict_file = file.with_suffix(f".verdicts-{_short(judging)}.jsonl")
        how = RolloutSampling(sampling.max_new_tokens, sampling.temperature, tuple(encoder.end_ids()), sampling.top_p)
        weighted = [Weighted(reward, name=name) for name, reward in rewards.items()]
        sampler = Sampler(self.model.engine, weighted, settings.reward_workers, encoder, how, Phases())
        with ExitStack() as stack:
            stack.callback(sampler.pool.close)
            found = stack.enter_context(AnswerFile(file, header, "answers"))
            verdicts = stack.enter_context(AnswerFile(verdict_file, {"rewards": judging}, "verdicts"))
            seconds = stack.enter_context(Lines(file.with_suffix(".seconds.jsonl"), "seconds"))
            answers.judge(asked, sampler, found, verdicts, settings.questions_per_round)
            if any(each.asked not in found.found for each in asked):
                self._load(sampler)
            what = f"{self.name} {benchmark.name}" + (f" {thinking}" if thinking else "")
            for _ in answers.sample(
                asked, sampler, sampling, settings.seed, found, seconds, settings.questions_per_round, what
            ):
                answers.judge(asked, sampler, found, verdicts, settings.questions_per_round)
            outcomes = {
                each.question.key: outcome(
                    task, each.question.group, answers.judged_answers(each, found, verdicts, rewards), thinking
                )
                for each in asked
            }
            about = {
                "sampling": asdict(sampling),
                "seed": settings.seed,
                "engine": self.model.identity["engine"],
                "answers": str(file.relative_to(self.folder.parent)),
                "not_judged": dict(sampler.pool.outcomes),
            }
            per_answer = _per_answer([entry for _, entry in seconds.numbered()])
        of_all = totals_of_answers(task, benchmark.questions, outcomes)
        return Cell(self.name, benchmark.name, thinking, outcomes, left_out, of_all, per_answer, about)

    def _load(self, sampler: Sampler) -> None:
        """Gives the engine the model's weights, once for all tasks."""
        if self._is_loaded:
            sampler.version = 0
        else:
            self.model.load(sampler)
            self._is_loaded = True

    def _sampling(self, task: GenerationTask, thinking: Thinking | None) -> TaskSampling:
        sampling = task.sampling(thinking)
        if self.asked.samples is not None and sampling.temperature > 0:
            sampling = replace(sampling, samples=self.asked.samples)
        if self.asked.max_new_tokens is not None:
            sampling = replace(sampling, max_new_tokens=self.asked.max_new_tokens)
        return sampling

    def _file(self, name: str, header: Mapping[str, Any]) -> Path:
        return self.folder / self.name / f"{name}.{_short(header)}.jsonl"

    # token by token

    def divergence(self, parent: Evaluator, benchmark: Benchmark, thinking: Thinking | None) -> Divergence | None:
        """How this model differs from a parent at each token of the parent's answers; None if they were not generated,
        or if the two models have other tokens."""
        task, most = benchmark.task, self.settings.divergence_questions
        if not isinstance(task, GenerationTask) or not most or not self._has_tokens_of(parent):
            return None
        asked, _, _, _, file, header = parent._asked(benchmark, task, thinking)
        with AnswerFile(file, header, "answers") as found:
            said = [parent._said(each, found) for each in asked[:most] if each.asked in found.found]
        said = [each for each in said if each.answer_ids]
        if not said:
            return None
        header = {
            "parent": parent.model.identity["model"],
            "child": self.model.identity["model"],
            "dtype": self.settings.likelihood_dtype,
        }
        name = f"{benchmark.name}.{thinking}" if thinking else benchmark.name
        with AnswerFile(self._file(f"{name}.divergence", header), header, "divergences") as kept:
            what = f"{self.name} {benchmark.name} KL"
            return diverge(said, lambda: parent._decoder, lambda: self._decoder, kept, 8, what)

    def release(self) -> None:
        """Frees the memory of a model that was loaded to compute likelihoods."""
        self.__dict__.pop("_decoder", None)

    def _has_tokens_of(self, parent: Evaluator) -> bool:
        if self.model.folder is None or parent.model.folder is None:
            return False
        sizes = [read_spec(each).vocab_size for each in (self.model.folder, parent.model.folder)]
        return sizes[0] == sizes[1] and self.model.tokenizer.get_vocab() == parent.model.tokenizer.get_vocab()

    def _said(self, question: Readable, found: AnswerFile) -> Said:
        """The first answer to the first prompt of a question as tokens."""
        text = found.found[question.asked]["answers"][0][0]["text"]
        ids = question.prompts[0].token_ids
        begun = opened(str(self.model.tokenizer.decode(list(ids[-16:]))))
        answer = self.model.tokenizer(text.removeprefix(begun), add_special_tokens=False)["input_ids"][:_DIVERGED]
        return Said(question.question.key, _short({"of": question.asked, "text": text}), ids, answer)


def _per_answer(rounds: Sequence[Mapping[str, float]]) -> float:
    count = sum(each["answers"] for each in rounds)
    return sum(each["seconds"] for each in rounds) / count if count else float("nan")


def _code(reward: Reward) -> str:
    """A digest of the module that defines a reward, whose verdicts are not those of another version."""
    import inspect

    try:
        return hashlib.sha256(Path(inspect.getfile(type(reward))).read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):  # a notebook's
        return ""


def _short(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:10]

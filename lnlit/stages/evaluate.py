"""`lnlit eval`: benchmarks of any number of models in both thinking modes, with intervals, and paired with a parent."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from lnlit import registry
from lnlit.checkpoint.folder import knows_thinking
from lnlit.errors import UserError
from lnlit.eval.divergence import Divergence
from lnlit.eval.figures import Cell, Evaluation
from lnlit.eval.results import as_json, questions
from lnlit.eval.runner import Asked, Benchmark, Evaluator, Settings, read_benchmarks
from lnlit.files import check_output, expanded, write_file, write_json
from lnlit.interfaces import RolloutEngine, Task
from lnlit.journal import write_lines
from lnlit.models.device import has_cuda
from lnlit.progress import say
from lnlit.report.evaluation import in_a_line, markdown, page, summary
from lnlit.sampling.model import SampledModel
from lnlit.thinking import Thinking, on_or_off

#: What is written beside the answers.
DATA, TABLE, PAGE, QUESTIONS, ANSWERS = "results.json", "results.md", "index.html", "questions.jsonl", "answers"
#: What each of them holds, whatever was evaluated.
_MARKS = {DATA: b'{\n  "models": ', TABLE: b"# Evaluation", PAGE: b"<title>Evaluation</title>", QUESTIONS: b'{"task": '}


def evaluate(
    models: list[str] | None = None,
    tasks: list[Task] | None = None,
    out: str = "runs/eval",
    against: str | None = None,
    thinking: list[Literal["on", "off", "none"] | bool] | None = None,
    rows: int | None = None,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    engine: RolloutEngine | None = None,
    settings: Settings = Settings(),
) -> Path:
    """Evaluate models on benchmarks, with thinking on and off; prints the table, and writes it as Markdown, JSON and a
    page.

    What was answered is kept: the same command goes on where it was interrupted, and a second run generates nothing.
    Other tasks, rows or models in the same folder use what is there. `lnlit plugins` lists the tasks.

    Args:
        models: Model folders. None for an engine with a model of its own, as an endpoint.
        tasks: The benchmarks, by name or with settings.
        out: The folder to write.
        against: A model that the others are compared with, question by question.
        thinking: The modes to ask in. By default, on and off for models that were trained with the toggle, and for
            other models as they are.
        rows: The number of questions of each task; all if null.
        samples: Answers per question where they are sampled and not greedy, in place of the task's number.
        max_new_tokens: Length limit of an answer, in place of the task's.
        engine: Generates the answers; lnlit's own decoder when not given.
        settings: How the evaluation is carried out.
    """
    asked = Asked(tasks or [], thinking, rows, samples, max_new_tokens, engine, settings)
    print(summary(evaluated(models or [], asked, out, against)))
    return expanded(out)


def evaluated(models: Sequence[str], asked: Asked, out: str, against: str | None = None) -> Evaluation:
    """What `evaluate` writes to the folder `out`, of models that are asked all of this."""
    _check_alone()
    if not asked.tasks:
        raise UserError(f"tasks: there is none. Allowed: {', '.join(registry.names('task'))}.")
    folder, tasks = check_output(expanded(out), folder=True), _named(asked.tasks)
    for name, mark in _MARKS.items():  # somebody else's results stay
        check_output(folder / name, mark=mark)
    evaluators = _evaluators(models, against, folder / ANSWERS, asked)
    modes = {each.name: _modes(asked.thinking, each.model.folder) for each in evaluators}
    benchmarks = read_benchmarks(tasks, asked.rows)
    cells: list[Cell] = []
    with closing(evaluators[0].model.engine):
        for each in evaluators:
            for cell in each.cells(benchmarks, modes[each.name]):
                say(in_a_line(cell))
                cells.append(cell)
    evaluation = _evaluation(evaluators, benchmarks, cells, against)
    if against is not None:
        evaluation = replace(evaluation, divergences=_divergences(evaluators, benchmarks, evaluation))
    _write(folder, evaluation)
    return evaluation


def _evaluation(
    evaluators: Sequence[Evaluator], benchmarks: Sequence[Benchmark], cells: Sequence[Cell], against: str | None
) -> Evaluation:
    names = [each.name for each in evaluators]
    tasks = [each.name for each in benchmarks]
    place = {each: number for number, each in enumerate(names)}
    ordered = sorted(cells, key=lambda cell: (tasks.index(cell.task), place[cell.model], cell.thinking == "on"))
    prompts: dict[tuple[str, str], Any] = {}
    for each in benchmarks:
        for question in each.questions:
            shown = getattr(question, "prompts", None)
            prompts[each.name, question.key] = shown[0] if shown else [{"role": "user", "content": _context(question)}]
    about = {each.name: _about(each) for each in evaluators}
    return Evaluation(about, tasks, ordered, prompts, names[-1] if against is not None else None)


def _divergences(
    evaluators: Sequence[Evaluator], benchmarks: Sequence[Benchmark], evaluation: Evaluation
) -> dict[tuple[str, str, Thinking | None], Divergence]:
    *children, parent = evaluators
    found = {}
    for child in children:
        for benchmark in benchmarks:
            for mode in evaluation.modes:
                if all(evaluation.cell(each.name, benchmark.name, mode) for each in (child, parent)):
                    found[child.name, benchmark.name, mode] = child.divergence(parent, benchmark, mode)
        child.release()
    parent.release()
    return {key: each for key, each in found.items() if each is not None}


def _context(question: Any) -> str:
    return question.context if isinstance(question.context, str) else "\n".join(question.context)


def _write(folder: Path, evaluation: Evaluation) -> None:
    """Writes all results, the data last."""
    for name, text in ((TABLE, markdown(evaluation)), (PAGE, page(evaluation))):
        write_file(folder / name, text)
    write_lines(folder / QUESTIONS, questions(evaluation))
    write_json(folder / DATA, as_json(evaluation))


def _evaluators(models: Sequence[str], against: str | None, folder: Path, asked: Asked) -> list[Evaluator]:
    """The models in the order of tables, the one that others are compared with last. What they need is read, so that a
    model without a template is told of before anything is sampled."""
    engine = asked.engine
    if engine is not None and not engine.needs_weights:
        if models or against is not None:
            raise UserError(
                f"models: {type(engine).__name__} generates with a model of its own; leave out the model folders."
            )
        name = str(vars(engine).get("model") or type(engine).__name__)
        return [Evaluator(_in_a_path(name), SampledModel(None, engine), folder, asked)]
    given = [*models, *([] if against is None else [against])]
    if not models:
        raise UserError("models: there is none. Give a model folder, as in `lnlit eval MODEL --tasks gsm8k`.")
    for source, count in Counter(str(expanded(each).resolve()) for each in given).items():
        if count > 1:
            raise UserError(f"models: {source} is there {count} times. Give each model once; `against` is one more.")
    found = [
        Evaluator(name, SampledModel(source, engine), folder, asked)
        for name, source in zip(_short_names(given), given, strict=True)
    ]
    for each in found[1:]:
        each.model.engine = found[0].model.engine
    for each in found:
        _ = each.model.identity
    return found


def _short_names(sources: Sequence[str]) -> list[str]:
    """A name of each model: the last part of its path, or as many parts as tell it from the others. Answers are kept in
    folders of these names."""
    parts = [[part for part in Path(source).parts if part not in ("/", "..", ".")] for source in sources]
    for index, source in enumerate(sources):
        parts[index] = parts[index] or [expanded(source).resolve().name or "model"]  # of `.` and `..`
    for length in range(1, max(map(len, parts)) + 1):
        names = [_in_a_path("-".join(each[-length:])) for each in parts]
        if len({*names}) == len(names):
            return names
    return [f"{_in_a_path(each[-1])}-{number}" for number, each in enumerate(parts, start=1)]


def _in_a_path(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)


def _named(tasks: Sequence[Task]) -> list[tuple[str, Task]]:
    """Each task with its registry name, or that of its class; numbered where a name is there twice with different
    settings. Raises `UserError` for a task that is there twice."""
    names = [registry.name_of("task", type(task)) or type(task).__name__ for task in tasks]
    for place, task in enumerate(tasks):
        if any(_is_same(task, other) for other in tasks[:place]):
            raise UserError(f"tasks: {names[place]} is there twice with the same settings. Name it once.")
    seen: Counter[str] = Counter()
    found = []
    for name, task in zip(names, tasks, strict=True):
        seen[name] += 1
        found.append((name if seen[name] == 1 else f"{name}-{seen[name]}", task))
    return found


def _is_same(one: object, other: object) -> bool:
    """True for parts of one class whose settings are equal, at any depth."""
    if type(one) is not type(other) or not hasattr(one, "__dict__"):
        return one == other
    settings, others = vars(one), vars(other)
    return settings.keys() == others.keys() and all(_is_same(settings[name], others[name]) for name in settings)


def _modes(thinking: Sequence[str | bool] | None, folder: str | None) -> list[Thinking | None]:
    if thinking is None:
        return ["off", "on"] if folder is not None and knows_thinking(folder) else [None]
    if not thinking:
        raise UserError("thinking: the list is empty; allowed: on, off, none")
    found: list[Thinking | None] = [None if each == "none" else on_or_off(each) for each in thinking]
    return list(dict.fromkeys(found))


def _about(evaluator: Evaluator) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if has_cuda() else f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    identity = evaluator.model.identity
    return {
        "source": evaluator.model.folder,
        "weights": identity["model"],
        "tokenizer_and_template": identity["tokenizer"],
        "engine": identity["engine"],
        "measured_on": device,
    }


def _check_alone() -> None:
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        raise UserError(
            f"eval runs as one process, got WORLD_SIZE={ranks}. For several devices give its engine more, as vllm's "
            "tensor_parallel_size, or evaluate each model by a command of its own."
        )

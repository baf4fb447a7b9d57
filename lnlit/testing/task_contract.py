"""The contract of tasks, as a function for a test to call.

    from lnlit.testing.task_contract import check_task

    def test_contract():
        check_task(lambda: MyTask(), [("The answer is 4.", 1.0), ("The answer is 5.", 0.0)])

Raises AssertionError naming the task and the broken promise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from lnlit.errors import UserError
from lnlit.interfaces import (
    Answer,
    Continuations,
    GenerationTask,
    GradesAnswer,
    Likelihood,
    LikelihoodTask,
    Question,
    RewardRequest,
    RewardResult,
    Task,
    TaskSampling,
)
from lnlit.testing.promises import copied, expect, is_number
from lnlit.thinking import Thinking

#: A text that a model may answer to a task's first question, and the expected value of the task's first reward.
Case = tuple[str, float]
_ROLES = {"system", "user", "assistant", "tool"}


def check_task(make: Callable[[], Task], cases: Sequence[Case] = (), limit: int = 20) -> None:
    """Checks the first questions of a task built by `make`, and of a `GenerationTask` how it judges answers.

    Args:
        cases: Answers to the first prompt of the first question with their expected values.
        limit: The number of questions to look at.
    """
    task = make()
    label = type(task).__name__
    expect(isinstance(task, GenerationTask | LikelihoodTask), label, "a task is a GenerationTask or a LikelihoodTask")
    questions = list(islice(task.questions(), limit))
    expect(bool(questions), label, "a task for this test needs at least one question")
    for what, again in {"a second pass": task, "a new task": make(), "a copy": copied(task, label)}.items():
        expect(list(islice(again.questions(), limit)) == questions, label, f"{what} gives other questions")
    keys = [question.key for question in questions]
    expect(all(isinstance(key, str) and key for key in keys), label, "a question has a key")
    expect(len({*keys}) == len(keys), label, f"two questions have one key: {keys}")
    for question in questions:
        expect(isinstance(question.group, str), label, "the group of a question is a text")
        expect(_is_json(question.row), label, f"a row holds JSON values only, got {question.row!r:.200}")
    if isinstance(task, GenerationTask):
        _check_generation(task, questions, cases, label)
    elif isinstance(task, LikelihoodTask):
        _check_likelihood(task, questions, label)


def _check_generation(task: GenerationTask, questions: Sequence[Question], cases: Sequence[Case], label: str) -> None:
    for question in questions:
        expect(isinstance(question, Question) and bool(question.prompts), label, "a question has a prompt")
        for messages in question.prompts:
            roles = [message.get("role") for message in messages]
            known = bool(roles) and _ROLES.issuperset(roles) and _is_json(list(messages))
            expect(known, label, f"a prompt is messages with a role and content, got {messages!r:.200}")
            expect(roles[-1] != "assistant", label, "a prompt ends with a turn to answer")
    modes: tuple[Thinking | None, ...] = ("on", "off", None)
    for thinking in modes:
        _check_sampling(task.sampling(thinking), f"{label}, thinking {thinking}")
    rewards = task.rewards()
    expect(bool(rewards), label, "a task has a reward")
    for name, reward in rewards.items():
        copied(reward, f"{label}: reward {name}")
        if isinstance(reward, GradesAnswer):
            expect(reward.final_answer("") is None, label, f"{name}: an empty text has no final answer")
        for question in questions:
            try:
                reward.check_row(question.row)
            except UserError as error:
                raise AssertionError(f"{label}: {name} cannot judge question {question.key}: {error}") from error
    _check_cases(task, questions[0], cases, label)
    result = {name: RewardResult(1.0) for name in rewards}
    unjudged = {name: RewardResult(None, "a test") for name in rewards}
    for results, what in ((result, "judged"), (unjudged, "unjudged")):
        answer = Answer("text", tokens=3, truncated=False, cut_in_thought=False, rewards=results)
        for samples in (1, 3):
            values = task.values([[answer] * samples for _ in questions[0].prompts])
            expect(bool(values), label, f"{what} answers give no value")
            for name, column in values.items():
                expect(len(column) == samples, label, f"{name}: {len(column)} values for {samples} samples")
                expect(all(value is None or is_number(value) for value in column), label, f"{name}: {column}")


def _check_cases(task: GenerationTask, question: Question, cases: Sequence[Case], label: str) -> None:
    for text, expected in cases:
        requests = [RewardRequest(messages, text, False, question.row) for messages in question.prompts]
        judged = {name: [reward.score(each) for each in requests] for name, reward in task.rewards().items()}
        answers = [
            [Answer(text, 1, False, False, {name: RewardResult(column[at]) for name, column in judged.items()})]
            for at in range(len(requests))
        ]
        first = next(iter(task.values(answers).values()))[0]
        same = first is not None and math.isclose(first, expected, abs_tol=1e-6)
        expect(same, label, f"gives {first} instead of {expected} to {text!r:.100}")


def _check_sampling(sampling: TaskSampling, label: str) -> None:
    expect(sampling.samples >= 1 and sampling.max_new_tokens >= 1, label, f"no answers by {sampling}")
    expect(sampling.temperature >= 0 and 0 < sampling.top_p <= 1, label, f"no distribution in {sampling}")
    expect(sampling.temperature > 0 or sampling.samples == 1, label, "greedy answers are all the same: take one")


def _check_likelihood(task: LikelihoodTask, questions: Sequence[Continuations], label: str) -> None:
    for question in questions:
        expect(isinstance(question, Continuations) and bool(question.continuations), label, "something to compare")
        contexts = [question.context] if isinstance(question.context, str) else question.context
        expect(len(contexts) in (1, len(question.continuations)), label, "one context, or one for each continuation")
        texts = [*contexts, *question.continuations]
        expect(all(isinstance(text, str) for text in texts), label, "contexts and continuations are texts")
        likelihoods = [
            Likelihood(-float(at + 1), 2, len(text.encode()), at == 0) for at, text in enumerate(question.continuations)
        ]
        values = task.values(question, likelihoods)
        expect(bool(values) and all(map(is_number, values.values())), label, f"values are numbers, got {values}")
        totals = task.totals({name: [value, value] for name, value in values.items()})
        expect(all(map(is_number, totals.values())), label, f"totals are numbers, got {totals}")
        expect(not values.keys() & totals.keys(), label, "a total has a name of its own")


def _is_json(value: object) -> bool:
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == (dict(value) if isinstance(value, Mapping) else value)
    except (TypeError, ValueError):
        return False

"""Interface `task`: what a model is asked, and how its answers become numbers.

There are two kinds. A `GenerationTask` asks for text, which a reward judges. A `LikelihoodTask` asks how likely given
texts are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lnlit.interfaces.reward import Reward, RewardResult
from lnlit.thinking import Thinking


@dataclass(frozen=True)
class TaskSampling:
    """How answers are sampled in one thinking mode.

    Args:
        samples: Answers per prompt. Their mean is pass@1 (Llama-Nemotron section 7.1).
        max_new_tokens: Length limit of an answer. One that reaches it while it thinks is never graded.
        temperature: Sampling temperature. 0 is greedy.
        top_p: The share of probability that tokens are sampled from.
    """

    samples: int
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class Question:
    """One question, whose values are one observation.

    `key` names it among the questions of its task and stays the same if others are added. `prompts` are the
    conversations that it is asked in, without the thinking toggle: mostly one, or several if it is asked in several
    ways. `row` is the row of data that the reward reads. `group` is the part of the task that it belongs to, such as a
    subject, or empty.
    """

    key: str
    prompts: Sequence[Sequence[Mapping[str, Any]]]
    row: Mapping[str, Any]
    group: str = ""


@dataclass(frozen=True)
class Answer:
    """A model's answer to one prompt of a question. `text` is that of `RewardRequest.completion`, `tokens` its length.
    `cut_in_thought` is true if the answer hit the length limit before its thinking ended; it is not graded, and each of
    its `rewards` is 0. `is_missing` is true if the engine could not get it, so that there is nothing to judge."""

    text: str
    tokens: int
    truncated: bool
    cut_in_thought: bool
    rewards: Mapping[str, RewardResult] = field(default_factory=dict)
    is_missing: bool = False


class Task(ABC):
    """Questions of one benchmark. The constructor takes settings only; data is read by `questions`."""

    @abstractmethod
    def questions(self) -> Iterator[Any]:
        """All questions, always in the same order. Raises `UserError` naming the row that is none."""


class GenerationTask(Task):
    """A task whose answers are generated and judged."""

    #: True if the prompts say themselves whether to think, so that there is nothing to switch.
    sets_thinking: bool = False

    @abstractmethod
    def questions(self) -> Iterator[Question]: ...

    @abstractmethod
    def rewards(self) -> Mapping[str, Reward]:
        """The rewards that judge an answer, by name. The values of the first are from 0 to 1."""

    @abstractmethod
    def sampling(self, thinking: Thinking | None) -> TaskSampling:
        """How answers are sampled in a thinking mode. None is a model without the toggle."""

    def values(self, answers: Sequence[Sequence[Answer]]) -> Mapping[str, Sequence[float | None]]:
        """The numbers of one question, by name, one for each sample. None is a sample that could not be judged.

        `answers[p][s]` is sample s of the question's prompt p. By default, each reward is a number, and a question's
        prompts count equally.
        """
        names = dict.fromkeys(name for samples in answers for answer in samples for name in answer.rewards)
        return {name: [_mean(name, sample) for sample in zip(*answers, strict=True)] for name in names}

    def totals(self, questions: Sequence[Question], values: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
        """Figures of the whole task from 0 to 1 that are no mean over questions, such as a share of all instructions,
        from the numbers of each question, which are means of its samples. There are none by default."""
        return {}


def _mean(name: str, answers: Sequence[Answer]) -> float | None:
    found = [answer.rewards[name].value for answer in answers]
    known = [value for value in found if value is not None]
    return fmean(known) if len(known) == len(found) else None


@dataclass(frozen=True)
class Windows:
    """How a text that may be longer than the model's context is read. The first window predicts all of its tokens; each
    further one ends `stride` tokens after the one before, and predicts only these.

    Args:
        length: Tokens that the model reads at once. None is its context.
        stride: New tokens of each further window. None is `length`, with which all tokens are read about once. Less
            gives each token more context, for more work.
    """

    length: int | None = None
    stride: int | None = None


@dataclass(frozen=True)
class Continuations:
    """A question for log-likelihoods: each of `continuations` is a text that may follow `context`. If they follow
    different texts, `context` has one for each. `row` is the row of data, with the right answer. `windows` is for
    continuations without a context that may be longer than the model's."""

    key: str
    context: str | Sequence[str]
    continuations: Sequence[str]
    row: Mapping[str, Any]
    group: str = ""
    windows: Windows | None = None


@dataclass(frozen=True)
class Likelihood:
    """What a model says of one continuation: the sum of its tokens' log-probabilities in nats, how many tokens and
    bytes it has, and whether each token is the most likely one at its place. `left_out` is the number of tokens at the
    context's beginning that the model did not see, because its own context is shorter."""

    log_prob: float
    tokens: int
    bytes: int
    is_greedy: bool
    left_out: int = 0


class LikelihoodTask(Task):
    """A task whose continuations are compared by their log-likelihood. Nothing is generated."""

    @abstractmethod
    def questions(self) -> Iterator[Continuations]: ...

    @abstractmethod
    def values(self, question: Continuations, likelihoods: Sequence[Likelihood]) -> Mapping[str, float]:
        """The numbers of one question, by name, from the likelihood of each continuation in order."""

    def totals(self, values: Mapping[str, Sequence[float]]) -> Mapping[str, float]:
        """Figures of the whole task that are no mean over questions, such as a perplexity, from the questions'
        numbers by name. There are none by default."""
        return {}

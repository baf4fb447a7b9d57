"""Answers of a model to the questions of a task: sampled once, kept in a file, and judged from there.

A file of answers belongs to a model, its template, the sampling settings and a seed, and one line of it to a question
as the model reads it. So answers are found again whatever else is asked, and none is found after a change. Verdicts are
in a file of their own, because what judges may change without the answers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lnlit.errors import UserError
from lnlit.interfaces import Answer, Question, RewardRequest, RewardResult, RolloutSampling, TaskSampling
from lnlit.journal import Journal, Lines
from lnlit.progress import track
from lnlit.sampling.prompt import Prompt, PromptEncoder
from lnlit.sampling.sample import Drawn
from lnlit.sampling.sampler import Asked, Sampler, request_seed
from lnlit.thinking import ends_in_thought

Item = TypeVar("Item")

#: Limits on the length of answers are multiples of this where the context is short, so that most questions share one.
_LENGTHS = 256


@dataclass(frozen=True)
class Readable:
    """A question as a model reads it. Its answers may have `max_new_tokens`. `asked` is a digest of all that answers
    depend on besides the model and the sampling settings, `judged` of all that verdicts on them depend on besides the
    rewards."""

    question: Question
    prompts: Sequence[Prompt]
    max_new_tokens: int
    asked: str
    judged: str


def readable(
    questions: Iterable[Question], encoder: PromptEncoder, sampling: TaskSampling, context: int | None
) -> tuple[list[Readable], dict[str, str]]:
    """(questions as a model reads them, the reasons why others cannot be asked, by key).

    Args:
        context: The length of the model's context, or None if it is not known.

    Raises `UserError` if no question can be asked.
    """
    found: list[Readable] = []
    left_out: dict[str, str] = {}
    for question in questions:
        try:
            found.append(_readable(question, encoder, sampling.max_new_tokens, context))
        except UserError as error:
            left_out[question.key] = str(error)
    if not found:
        key, why = next(iter(left_out.items()), ("", "there is no question"))
        raise UserError(f"none of {len(left_out)} questions can be asked; the first, {key}: {why}")
    return found, left_out


def _readable(question: Question, encoder: PromptEncoder, limit: int, context: int | None) -> Readable:
    prompts = [
        Prompt(read, tuple(ids), question.row)
        for messages in question.prompts
        for read, ids in [encoder.prompt({"messages": list(messages)})]
    ]
    if not all(prompt.messages for prompt in prompts):
        raise UserError("a prompt has nothing to answer: no turn but the assistant's")
    longest = max(len(prompt.token_ids) for prompt in prompts)
    if context is not None:
        room = context - longest
        if room < 1:
            raise UserError(f"a prompt of {longest} tokens leaves no room for an answer in the context of {context}")
        limit = min(limit, room - room % _LENGTHS or room)
    read = [[list(prompt.messages), prompt.token_ids] for prompt in prompts]
    asked = _digest([read, limit])
    return Readable(question, prompts, limit, asked, _digest([asked, question.row]))


class AnswerFile:
    """Answers by question, in a journal that an interrupted evaluation continues. A round of questions that was sampled
    together is kept as a whole or not at all. Entries with "incomplete" are found in this run only, so that the next
    asks again for what an engine could not get.

    Args:
        file: The path of the file.
        header: All that answers depend on besides the questions.
        what: What it holds, for error messages.
    """

    def __init__(self, file: Path, header: Mapping[str, Any], what: str) -> None:
        self.journal = Journal(file, header, what)
        try:
            entries = [entry for _, entry in self.journal.numbered()]
            whole = _in_whole_rounds(entries)
            if whole < len(entries):
                self.journal.keep(whole)
        except BaseException:
            self.journal.close()
            raise
        #: The entries by what they are of.
        self.found: dict[str, dict[str, Any]] = {entry["of"]: entry for entry in entries[:whole]}
        self._round = entries[whole - 1]["round"] + 1 if whole else 0

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def rounds(
        self, items: Sequence[Item], of: Callable[[Item], str], per_round: int, what: str, unit: str = "question"
    ) -> Iterator[Sequence[Item]]:
        """The items that the file lacks, in rounds of so many, with a report of progress. `of` says what an entry is
        of."""
        missing = [each for each in items if of(each) not in self.found]
        parts = [missing[start : start + per_round] for start in range(0, len(missing), per_round)]
        yield from track(parts, what, unit, total=len(items), done=len(items) - len(missing), size=len)

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Keeps a round of entries, each with the key "of"."""
        self.found |= {entry["of"]: dict(entry) for entry in entries}
        kept = [entry for entry in entries if not entry.get("incomplete")]
        if kept:
            self.journal.append(*({**entry, "round": self._round, "together": len(kept)} for entry in kept))
            self._round += 1


def _in_whole_rounds(entries: Sequence[Mapping[str, Any]]) -> int:
    """The number of entries up to the last round that is complete."""
    if not entries:
        return 0
    last = entries[-1]
    there = sum(entry["round"] == last["round"] for entry in entries[-last["together"] :])
    return len(entries) if there == last["together"] else len(entries) - there


def sample(
    questions: Sequence[Readable],
    sampler: Sampler,
    sampling: TaskSampling,
    seed: int,
    answers: AnswerFile,
    seconds: Lines,
    per_round: int,
    what: str,
) -> Iterator[None]:
    """Samples the answers that the file lacks, round by round. It yields after each, when the answers are on disk.

    Args:
        seed: Other seeds, other answers.
        seconds: A file for the time that each round took.
        per_round: The number of questions between two writes to disk.
        what: A word or two for the progress report.
    """
    for part in answers.rounds(questions, lambda each: each.asked, per_round, what):
        start = time.perf_counter()
        drawn = _complete(part, sampler, sampling, seed)
        took = time.perf_counter() - start
        made = [one for each in part for samples in drawn[each.asked] for one in samples]
        if len(made) > 1 and all(one.rollout.error for one in made):
            raise UserError(
                f"{what}: none of {len(made)} completions could be had; the first: {made[0].rollout.error}. What was "
                "done before is kept."
            )
        answers.append([_entry(each, drawn[each.asked]) for each in part])
        tokens = sum(one.rollout.length for one in made)
        seconds.append({"seconds": took, "answers": len(made), "tokens": tokens})
        yield


def _complete(
    part: Sequence[Readable], sampler: Sampler, sampling: TaskSampling, seed: int
) -> dict[str, list[list[Drawn]]]:
    """The completions of each prompt of these questions, by what was asked. Questions of one length limit are sampled
    together."""
    found: dict[str, list[list[Drawn]]] = {}
    for limit in sorted({each.max_new_tokens for each in part}):
        mine = [each for each in part if each.max_new_tokens == limit]
        how = RolloutSampling(limit, sampling.temperature, tuple(sampler.encoder.end_ids()), sampling.top_p)
        asked = [
            Asked(prompt, [_seed(seed, each, place, sample) for sample in range(sampling.samples)])
            for each in mine
            for place, prompt in enumerate(each.prompts)
        ]
        drawn = iter(sampler.complete(asked, how))
        found |= {each.asked: [next(drawn) for _ in each.prompts] for each in mine}
    return found


def _seed(seed: int, question: Readable, prompt: int, sample: int) -> int:
    """The seed of an answer depends on the question and not on its place, so that other rows do not change it."""
    return request_seed(seed, int(question.asked[:12], 16), prompt, sample)


def _entry(question: Readable, drawn: Sequence[Sequence[Drawn]]) -> dict[str, Any]:
    answers = [
        [
            {
                "text": one.text.encode(errors="backslashreplace").decode(),
                "tokens": one.rollout.length,
                "finish_reason": one.rollout.finish_reason,
                **({"error": one.rollout.error} if one.rollout.error else {}),
            }
            for one in samples
        ]
        for samples in drawn
    ]
    lacks_some = any(one.rollout.error for samples in drawn for one in samples)
    return {
        "question": question.question.key,
        "of": question.asked,
        "answers": answers,
        **({"incomplete": True} if lacks_some else {}),
    }


def judge(
    questions: Sequence[Readable],
    sampler: Sampler,
    answers: AnswerFile,
    verdicts: AnswerFile,
    per_round: int,
) -> None:
    """Judges those answers in the file that have no verdict yet. Answers that were cut off in thought are not graded,
    and completions that the engine could not get are not judged."""
    waiting = [each for each in questions if each.asked in answers.found and each.judged not in verdicts.found]
    for start in range(0, len(waiting), per_round):
        part = waiting[start : start + per_round]
        requests = {
            (each.judged, place, number): RewardRequest(prompt.messages, one["text"], _is_cut(one), prompt.row)
            for each in part
            for place, prompt in enumerate(each.prompts)
            for number, one in enumerate(answers.found[each.asked]["answers"][place])
            if _is_graded(one)
        }
        results = dict(zip(requests, sampler.pool.score(list(requests.values())), strict=True))
        verdicts.append([_verdicts(each, answers.found[each.asked], results) for each in part])


def _verdicts(
    question: Readable,
    said: Mapping[str, Any],
    results: Mapping[tuple[str, int, int], Mapping[str, RewardResult]],
) -> dict[str, Any]:
    """The entry of a question's verdicts. It is incomplete if an answer is missing or could not be judged, as when a
    judge is down."""
    found = [
        [results.get((question.judged, place, number), {}) for number in range(len(samples))]
        for place, samples in enumerate(said["answers"])
    ]
    unjudged = any(result.value is None for row in found for each in row for result in each.values())
    return {
        "question": question.question.key,
        "of": question.judged,
        "rewards": [[_plain(each) for each in row] for row in found],
        **({"incomplete": True} if unjudged or said.get("incomplete") else {}),
    }


def judged_answers(
    question: Readable, answers: AnswerFile, verdicts: AnswerFile, rewards: Iterable[str]
) -> list[list[Answer]]:
    """The answers to each prompt of a question with their rewards."""
    names = list(rewards)
    said, judged = answers.found[question.asked]["answers"], verdicts.found[question.judged]["rewards"]
    return [
        [_answer(one, verdict, names) for one, verdict in zip(samples, row, strict=True)]
        for samples, row in zip(said, judged, strict=True)
    ]


def _answer(said: Mapping[str, Any], verdict: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Answer:
    is_cut = _is_cut(said)
    in_thought = is_cut and ends_in_thought(said["text"])
    if in_thought:
        rewards = dict.fromkeys(names, RewardResult(0.0))
    elif "error" in said:
        rewards = dict.fromkeys(names, RewardResult(None, said["error"]))
    else:
        rewards = {name: RewardResult(*verdict[name]) for name in names}
    return Answer(said["text"], said["tokens"], is_cut, in_thought, rewards, is_missing="error" in said)


def _is_cut(said: Mapping[str, Any]) -> bool:
    return said["finish_reason"] == "length"


def _is_graded(said: Mapping[str, Any]) -> bool:
    return "error" not in said and not (_is_cut(said) and ends_in_thought(said["text"]))


def _plain(results: Mapping[str, RewardResult]) -> dict[str, list[Any]]:
    return {
        name: [result.value, result.error and result.error.encode(errors="backslashreplace").decode()]
        for name, result in results.items()
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

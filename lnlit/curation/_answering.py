"""Answers of a model, by any rollout engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from lnlit.curation.model import Answer, Model, Question
from lnlit.curation.settings import shared, stated
from lnlit.errors import UserError
from lnlit.sampling.model import SampledModel
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sampler import Asked, Phases, Sampler
from lnlit.sampling.settings import Sampling


def _sampler(model: Model) -> tuple[SampledModel, Sampler]:
    def make() -> tuple[SampledModel, Sampler]:
        sampled = SampledModel(model.folder, model.engine)
        encoder = sampled.encoder(model.mode)
        return sampled, Sampler(sampled.engine, [], 1, encoder, model.sampling.rollout(encoder.end_ids()), Phases())

    return shared(stated(replace(model, sampling=Sampling())), make)


def answers(model: Model, questions: Sequence[Question], samples: int | None, step: str) -> list[list[Answer]]:
    """A model's answers to each question: `samples` of them, or as many as its settings say.

    A conversation that it cannot be asked has answers that say so. `step` is the part of the pipeline that asks.
    """
    sampled, sampler = _sampler(model)
    count, found = samples or model.sampling.samples_per_prompt, dict[int, list[Answer]]()
    asked: dict[int, Asked] = {}
    room = sampled.room(model.sampling.max_new_tokens)
    for number, (key, messages) in enumerate(questions):
        seeds = [_seed(model.sampling.seed, step, key, sample) for sample in range(count)]
        row = {"messages": list(messages)}
        try:
            given, token_ids = sampler.encoder.prompt(row)
            if room is not None and len(token_ids) > room:
                raise UserError(f"too_long: a prompt of {len(token_ids)} tokens, with room for {max(room, 0)}")
        except UserError as error:
            kind = str(error) if str(error).startswith("too_long") else f"no_conversation: {error}"
            found[number] = [Answer("", "error", 0, seed, kind) for seed in seeds]
            continue
        asked[number] = Asked(Prompt(given, tuple(token_ids), row), seeds)
    if asked:
        if model.folder is not None:
            sampled.load(sampler)
        drawn = sampler.complete(list(asked.values()), model.sampling.rollout(sampler.encoder.end_ids()))
        for number, group in zip(asked, drawn, strict=True):
            rollouts = [(each.text, each.rollout) for each in group]
            found[number] = [Answer(text, r.finish_reason, r.length, r.seed, r.error) for text, r in rollouts]
    return [found[number] for number in range(len(questions))]


def _seed(*parts: object) -> int:
    """A seed of 63 bits, because engines take signed integers."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1

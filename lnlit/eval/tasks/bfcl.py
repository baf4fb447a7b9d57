"""BFCL, the Berkeley Function Calling Leaderboard (Yan et al. 2024), single-turn categories in Python."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lnlit.data.sources import naming_row, rows_of
from lnlit.errors import UserError, shown
from lnlit.eval.protocol import SamplingProtocol, text_of
from lnlit.eval.tasks.benchmark import Benchmark
from lnlit.eval.tasks.hub import HubFiles
from lnlit.interfaces import Question, Reward, Source
from lnlit.rewards.function_calls import FunctionCallsReward

_PROMPT = """You can call functions to serve the request below. Call those that it needs, as often as it needs them. \
If none of them serves it, or if it lacks what they require, say so and call nothing.

Write calls in this form, with no other text: <TOOLCALL>[name(parameter=value, other=value), name(...)]</TOOLCALL>

The functions as JSON schemas:
<AVAILABLE_TOOLS>{functions}</AVAILABLE_TOOLS>

{request}"""

_HUB = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
#: The categories of the paper's BFCL V2 Live, and those of them with a ground truth. In the others no call is right, or
#: any is.
_LIVE = (
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)
_WITH_ANSWERS = _LIVE[:4]


class BFCL(Benchmark):
    """Requests that need one or more function calls, or none, grouped by category.

    Args:
        source: Rows with `id`, `question` (turns of messages) and `function` (JSON schemas), perhaps with
            `ground_truth`. By default BFCL V2 Live of `gorilla-llm/Berkeley-Function-Calling-Leaderboard` on the
            Hugging Face hub.
        answers: Rows with `id` and `ground_truth`, as BFCL keeps them apart. By default the hub's, if `source` is.
            Rows of `irrelevance` categories need none, since it is right to call nothing, and neither do those of
            `relevance`, where any call is right.
    """

    SORTED_BY_GROUP = True

    def __init__(
        self,
        source: Source | None = None,
        answers: Source | None = None,
        rows: int | None = None,
        protocol: SamplingProtocol = SamplingProtocol(),
    ) -> None:
        if source is None and answers is None:
            answers = HubFiles(_HUB, [f"possible_answer/BFCL_v3_{name}.json" for name in _WITH_ANSWERS])
        super().__init__(source, rows, protocol)
        self.answers = answers
        self._known: Mapping[str, Any] = {}

    def public(self) -> Source:
        return HubFiles(_HUB, [f"BFCL_v3_{name}.json" for name in _LIVE])

    def questions(self) -> Iterator[Question]:
        self._known = self._read_answers()
        return super().questions()

    def question(self, row: Mapping[str, Any]) -> Question:
        name, turns, functions = text_of(row, "id"), row.get("question"), row.get("function")
        group = re.sub(r"_\d+(-\d+)*$", "", name)
        if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], list) or not turns[0]:
            raise UserError(f"question: expected one turn with its messages, got {shown(turns)}.")
        messages = turns[0]
        if not all(isinstance(each, Mapping) and {"role", "content"} <= each.keys() for each in messages):
            raise UserError(f"question: expected messages with role and content, got {shown(messages)}.")
        if messages[-1]["role"] != "user":
            raise UserError(f"question: expected a user's message at the end, got {shown(messages[-1])}.")
        expected = row["ground_truth"] if "ground_truth" in row else self._expected(name, group)
        listed = json.dumps(functions, ensure_ascii=False)
        prompt = _PROMPT.format(functions=listed, request=messages[-1]["content"])
        asked = [*messages[:-1], {"role": "user", "content": prompt}]
        return Question(name, [asked], {**row, "ground_truth": expected}, group)

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": FunctionCallsReward()}

    def _expected(self, name: str, group: str) -> Any:
        if name in self._known:
            return self._known[name]
        if group.endswith("irrelevance"):
            return []
        if group.endswith("relevance"):
            return None
        missing = "no answers are given" if self.answers is None else f"{self.answers} has none"
        raise UserError(f"no ground_truth for {name}: {missing}. Name the possible answers of its category in answers.")

    def _read_answers(self) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for number, row in enumerate(rows_of(self.answers) if self.answers else ()):
            assert self.answers is not None
            with naming_row(self.answers, number):
                name = text_of(row, "id")
                if not isinstance(row.get("ground_truth"), list):
                    raise UserError(f"ground_truth: expected a list of calls, got {shown(row.get('ground_truth'))}.")
                found[name] = row["ground_truth"]
        return found

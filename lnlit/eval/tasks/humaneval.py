"""HumanEval: functions to complete (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.eval.protocol import SamplingProtocol, text_of
from lnlit.eval.tasks.benchmark import Benchmark, user
from lnlit.interfaces import Question, Reward, Source
from lnlit.rewards.code_sandbox import Isolation
from lnlit.rewards.code_tests import CodeTestsReward, last_block
from lnlit.thinking import answer_of

_PROMPT = """Complete this Python function. Answer with the whole function, its imports and all that it needs, in one \
block that begins with ```python and ends with ```.

```python
{code}
```"""


class HumanEval(Benchmark):
    """Functions whose tests run in a sandbox.

    Args:
        source: Rows with `task_id`, `prompt`, `test` and `entry_point`. By default `openai/openai_humaneval` on the
            Hugging Face hub.
        rows: The number of questions, from the first on; all if null.
        protocol: How answers are sampled.
        isolation: The sandbox, as of the reward `code_tests`.
    """

    def __init__(
        self,
        source: Source | None = None,
        rows: int | None = None,
        protocol: SamplingProtocol = SamplingProtocol(),
        isolation: Isolation = "namespaces",
    ) -> None:
        super().__init__(source, rows, protocol)
        self.isolation: Isolation = isolation

    def public(self) -> Source:
        return HuggingFaceSource("openai/openai_humaneval", "test")

    def question(self, row: Mapping[str, Any]) -> Question:
        prompt = _PROMPT.format(code=text_of(row, "prompt").rstrip())
        text_of(row, "entry_point")
        return Question(text_of(row, "task_id"), [user(prompt)], row)

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": CodeTestsReward(preamble_key="prompt", isolation=self.isolation)}

    def final_answer(self, text: str) -> str | None:
        return (last_block(answer_of(text)) or "").strip() or None

"""Programs to write, which are tried in a sandbox: HumanEval and MBPP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError, shown
from lnlit.eval.protocol import SamplingProtocol, text_of
from lnlit.eval.tasks.benchmark import Benchmark, user
from lnlit.interfaces import Question, Reward, Source
from lnlit.rewards.code_sandbox import Isolation
from lnlit.rewards.code_tests import CodeTestsReward

_COMPLETE = """Complete this Python function. Answer with the whole function, its imports and all that it needs, in \
one block that begins with ```python and ends with ```.

```python
{code}
```"""

_WRITE = """{task}

Write it in Python so that these tests pass:

```python
{tests}
```

Answer with the whole program in one block that begins with ```python and ends with ```."""


class HumanEval(Benchmark):
    """Functions to complete (Chen et al. 2021), whose tests run in a sandbox.

    Args:
        source: Rows with `task_id`, `prompt`, `test` and `entry_point`. By default `openai/openai_humaneval` on the
            Hugging Face hub.
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
        prompt = _COMPLETE.format(code=text_of(row, "prompt").rstrip())
        text_of(row, "entry_point")
        return Question(text_of(row, "task_id"), [user(prompt)], row)

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": CodeTestsReward(preamble_key="prompt", isolation=self.isolation)}


class MBPP(HumanEval):
    """Short programs (Austin et al. 2021), whose tests, which the prompt shows, run in a sandbox.

    Args:
        source: Rows with `task_id`, `prompt` (or `text`), `test_list` and perhaps `test_imports`, a list of lines. By
            default the sanitized test set of `google-research-datasets/mbpp` on the Hugging Face hub.
        isolation: The sandbox, as of the reward `code_tests`.
    """

    def public(self) -> Source:
        return HuggingFaceSource("google-research-datasets/mbpp", "test", name="sanitized")

    def question(self, row: Mapping[str, Any]) -> Question:
        tests = _lines(row, "test_list")
        if not tests:
            raise UserError("test_list: got no test; expected a list of assert statements.")
        task = text_of(row, "prompt" if "prompt" in row else "text")
        if "task_id" not in row:
            raise UserError(f"no key 'task_id'; it has: {', '.join(map(str, row))}.")
        prompt = _WRITE.format(task=task.strip(), tests="\n".join(tests))
        imports = _lines(row, "test_imports") if row.get("test_imports") else []
        return Question(str(row["task_id"]), [user(prompt)], {**row, "tests": [*imports, *tests]})

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": CodeTestsReward("tests", isolation=self.isolation)}


def _lines(row: Mapping[str, Any], key: str) -> list[str]:
    found = row.get(key)
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise UserError(f"{key}: expected a list of Python lines, got {shown(found)}.")
    return found

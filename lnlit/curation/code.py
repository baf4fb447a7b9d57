"""Post-processing of solutions that are programs (Llama-Nemotron section 3.1.2)."""

from __future__ import annotations

import ast
import re
import warnings
from importlib import import_module
from typing import Any

from lnlit.curation.rows import Row, text_of
from lnlit.curation.step import Dropped, Outcome, Step
from lnlit.errors import UserError
from lnlit.thinking import answer_of, thought_and_answer

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+#-]*)[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.M | re.S)
#: Languages by the words that mark their blocks.
_TAGS = {"python": ("python", "py", "python3"), "cpp": ("cpp", "c++", "cc"), "java": ("java",), "c": ("c",)}


class Code(Step):
    """Keeps completions that think first and then write a program, which is put under `code`.

    Dropped are completions without a trace of reasoning (`no_trace`), with a block of code inside it
    (`code_in_thinking`), without a block of the language after it (`no_code`), and with one that does not parse
    (`syntax`). The last block counts.

    Args:
        language: The language: python, which Python itself parses, or cpp, c or java, for which the packages
            tree-sitter and tree-sitter-LANGUAGE have to be installed.
        trace: Demand a trace of reasoning. Without, a completion may consist of its answer.
    """

    def __init__(self, language: str = "python", trace: bool = True) -> None:
        super().__init__()
        if language not in _TAGS:
            raise UserError(f"Code.language: unknown language {language!r}. Allowed: {', '.join(_TAGS)}.")
        self.language, self.trace = language, trace
        if language != "python":
            _parser(language)

    def each(self, row: Row) -> Outcome:
        text = text_of(row, "completion")
        if text is None:
            return Dropped("no_completion", "completion holds nothing")
        thought = thought_and_answer(text)[0]
        if self.trace and not (thought or "").strip():
            return Dropped("no_trace")
        if "```" in (thought or ""):
            return Dropped("code_in_thinking")
        blocks = _FENCE.findall(answer_of(text).replace("\r\n", "\n"))
        code = next((code for tag, code in reversed(blocks) if tag.lower() in _TAGS[self.language]), "")
        if not code.strip():
            return Dropped("no_code")
        return {**row, "code": code} if self._parses(code) else Dropped("syntax")

    def _parses(self, code: str) -> bool:
        if self.language != "python":
            return not _parser(self.language).parse(code.encode()).root_node.has_error
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes in its texts
                ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # a null character, nesting
            return False
        return True


def _parser(language: str) -> Any:
    try:
        sitter, grammar = import_module("tree_sitter"), import_module(f"tree_sitter_{language}")
    except ImportError as error:
        raise UserError(
            f"Code.language: {language} is parsed by tree-sitter; run: pip install tree-sitter tree-sitter-{language}"
        ) from error
    return sitter.Parser(sitter.Language(grammar.language()))

"""A solution that is a program: it thinks first, writes its code last, and the code parses."""

from __future__ import annotations

import sys

import pytest

from lnlit.curation.code import Code
from lnlit.curation.step import Dropped
from lnlit.errors import UserError

RIGHT = "<think>\nCount them.\n</think>\nFirst a try:\n```python\nx = (\n```\nNow:\n```python\nprint(1)\n```\nDone."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RIGHT, None),
        (RIGHT.replace("python", "Python"), None),
        (RIGHT.replace("```python\nprint", "```py\nprint").replace("\n", "\r\n"), None),
        (RIGHT.replace("<think>\n", ""), None),
        (RIGHT.replace("Count them.", "`x = 1` it is"), None),
        (RIGHT.replace("print(1)", "print('\\d')"), None),
        (RIGHT.replace("Count them.", "```python\nx\n```"), "code_in_thinking"),
        (RIGHT.replace("Count them.\n", ""), "no_trace"),
        (RIGHT.replace("<think>\nCount them.\n</think>\n", ""), "no_trace"),
        (RIGHT.replace("</think>", ""), "no_trace"),
        (RIGHT.replace("print(1)", "print(1"), "syntax"),
        (RIGHT.replace("print(1)", "print 1"), "syntax"),
        (RIGHT.replace("print(1)", "x = '\0'"), "syntax"),
        (RIGHT.replace("print(1)", "(" * 5000 + ")" * 5000), "syntax"),
        (RIGHT.replace("```python", "```cpp"), "no_code"),
        (RIGHT.replace("print(1)\n```", "print(1)").replace("x = (\n```\n", "x = (\n"), "no_code"),
        ("<think>yes</think> print(1)", "no_code"),
        ("", "no_completion"),
        (None, "no_completion"),
    ],
)
def test_what_is_kept(text, reason):
    found = Code().each({"completion": text})
    if reason is None:
        assert isinstance(found, dict) and found["code"].startswith("print(")
    else:
        assert isinstance(found, Dropped) and found.reason == reason


def test_without_a_trace():
    assert Code(trace=False).each({"completion": "```python\nx\n```"}) == {
        "completion": "```python\nx\n```",
        "code": "x\n",
    }


def test_another_language_needs_its_grammar(monkeypatch):
    monkeypatch.setitem(sys.modules, "tree_sitter_cpp", None)
    with pytest.raises(UserError, match="pip install tree-sitter tree-sitter-cpp"):
        Code("cpp")
    with pytest.raises(UserError, match=r"unknown language .cobol.\. Allowed: python"):
        Code("cobol")


def test_another_language():
    pytest.importorskip("tree_sitter_cpp", reason="needs tree-sitter-cpp")
    text = "<think>yes</think>\n```cpp\nint main() { return 0; }\n```"
    assert isinstance(Code("cpp").each({"completion": text}), dict)
    assert Code("cpp").each({"completion": text.replace("}", "")}) == Dropped("syntax")

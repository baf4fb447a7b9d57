"""Reads function calls as models write them.

Calls stand between marks (`<TOOLCALL>` of DeciLM and Llama-Nemotron, `<tool_call>` of Hermes and Qwen, `[TOOL_CALLS]`
of Mistral, Llama's `<|python_tag|>` and `<function=NAME>`), in a fenced block, or are all of the text. They are JSON
objects with a name and arguments, or Python calls such as `[weather(city="Rome")]`.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_PAIR = re.compile(r"<(tool_?calls?|function_?calls?)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_TO_THE_END = re.compile(r"(?:\[TOOL_CALLS\]|<\|python_tag\|>)(.*?)(?=\[TOOL_CALLS\]|<\|python_tag\|>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\n(.*?)```", re.DOTALL)
_NAMES, _ARGUMENTS, _ABOUT = ("name", "function"), ("arguments", "parameters", "args"), ("id", "type")
_CONSTANTS = {"true": True, "false": False, "null": None}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Call(NamedTuple):
    """A function's name and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


class _UnreadableError(ValueError):
    pass


def written_calls(text: str) -> list[Call] | None:
    """The calls that a text makes, in order: none if it makes no call, and None if it has marks of calls with something
    else between them."""
    marked = list(_marked(text))
    if marked:
        try:
            return [call for name, content in marked for call in _calls(content, name)]
        except _UnreadableError:
            return None
    for content in [*_FENCE.findall(text), text]:
        try:
            return list(_calls(content))
        except _UnreadableError:
            continue
    return []


def _marked(text: str) -> Iterator[tuple[str | None, str]]:
    """What stands between marks, each with the function's name where the mark has it."""
    inner = [(match.start(), match[1], match[2]) for match in _FUNCTION.finditer(text)]
    inner += [(match.start(), None, match[2]) for match in _PAIR.finditer(text) if "<function=" not in match[2]]
    inner += [(match.start(), None, match[1]) for match in _TO_THE_END.finditer(text)]
    return ((name, content) for _, name, content in sorted(inner, key=lambda found: found[0]))


def _calls(content: str, name: str | None = None) -> Iterator[Call]:
    """The calls that a text consists of. Raises `_UnreadableError` for any other text."""
    content = content.strip()
    if fenced := _FENCE.fullmatch(content):
        content = fenced[1].strip()
    try:
        values = [*_json_values(content)]
    except (ValueError, RecursionError):
        values = [*_python_values(content)]
    if name is not None:
        if len(values) != 1 or not isinstance(values[0], Mapping):
            raise _UnreadableError
        return iter([Call(name, values[0])])
    return iter([call for value in values for call in _as_calls(value)])


def _json_values(content: str) -> Iterator[Any]:
    """JSON values one after the other, perhaps with commas or semicolons between them."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(content):
        value, at = decoder.raw_decode(content, at)
        yield value
        while at < len(content) and content[at] in " \t\r\n,;":
            at += 1


def _as_calls(value: Any) -> Iterator[Call]:
    if isinstance(value, Call):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _as_calls(item)
    elif isinstance(value, Mapping) and isinstance(value.get("tool_calls"), list):
        yield from _as_calls(value["tool_calls"])
    elif isinstance(value, Mapping):
        yield _as_call(value)
    else:
        raise _UnreadableError


def _as_call(value: Mapping[str, Any]) -> Call:
    if isinstance(value.get("function"), Mapping):  # OpenAI's
        value = value["function"]
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    arguments = next((value[key] for key in _ARGUMENTS if value.get(key) is not None), {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise _UnreadableError from error
    bare = not value.keys() & {*_ARGUMENTS}
    if name is None or not isinstance(arguments, Mapping) or (bare and value.keys() - {*_NAMES, *_ABOUT}):
        raise _UnreadableError  # `{"name": "Ada", "born": 1815}` calls nothing
    return Call(name, arguments)


def _python_values(content: str) -> Iterator[Any]:
    """Python calls, alone, in a list, or one a line, and dictionaries."""
    try:
        body = ast.parse(content).body
        values = [statement.value for statement in body if isinstance(statement, ast.Expr)]
        if not values or len(values) < len(body):
            raise _UnreadableError
        for value in values:
            for node in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
                yield _call(node) if isinstance(node, ast.Call) else ast.literal_eval(node)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise _UnreadableError from error


def _call(node: ast.Call) -> Call:
    named = [keyword.arg for keyword in node.keywords]
    if node.args or None in named:  # which parameter an argument without a name is for, is not said
        raise _UnreadableError
    return Call(ast.unparse(node.func), {str(each.arg): _value(each.value) for each in node.keywords})


def _value(node: ast.expr) -> Any:
    """The value of an argument. An expression that is no literal, such as a variable or a call, is its source text."""
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(item) for key, item in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        sides = _value(node.left), _value(node.right)
        if all(isinstance(side, int | float) for side in sides):
            try:
                return _ARITHMETIC[type(node.op)](*sides)
            except ArithmeticError:
                return ast.unparse(node)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return ast.unparse(node)

"""Reads one message as people write it: OpenAI's and Hugging Face's `role` and `content`, or ShareGPT's `from` and
`value`.

Thoughts, tool calls and parts of content have several spellings, which are normalised for templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lnlit.errors import UserError, did_you_mean, shown

Message = dict[str, Any]

#: The names of roles in other formats, in lower case. A message from `CALLER` holds only a tool call.
CALLER = "function_call"
ROLES = {
    **{name: name for name in ("system", "developer", "user", "assistant", "tool", "ipython", "document")},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(
        ("observation", "function", "function_response", "function-response", "tool_response", "tool_result"), "tool"
    ),
    **dict.fromkeys((CALLER, "function-call", "tool_call"), CALLER),
}
#: Whether a turn is learned: OpenAI's and Mistral's name, axolotl's, ms-swift's, LLaMA-Factory's.
_LEARNED = ("weight", "train", "loss", "loss_weight")
#: Thoughts: DeepSeek's and Qwen's name, which templates are given; OpenRouter's; gpt-oss's and Anthropic's.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call")
#: Keys with content that lnlit cannot learn.
_REFUSED = {
    "audio": "lnlit learns text",
    "images": "lnlit learns text",
    "image": "lnlit learns text",
    "videos": "lnlit learns text",
    "refusal": "write what the assistant says as its content",
    "train_detail": "lnlit learns whole turns; say train for the turn",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning", "thought")
_CALL_PARTS = ("tool_call", "tool_use", "function_call")
_ARGUMENTS = ("arguments", "parameters", "input")
_CALL_KEYS = ("id", "type", "index", "function", "name", *_ARGUMENTS)
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_BODIES = ("text", "value", "thinking", "reasoning", "content")


@dataclass(frozen=True)
class Turn:
    """A message in normalised form. `unread` are its keys that are passed on unchanged."""

    message: Message
    learned: bool
    unread: tuple[str, ...] = ()


@dataclass
class _Parts:
    """The parts of a message's content, by kind."""

    thoughts: str = ""
    text: str | None = None
    calls: tuple[Any, ...] = ()


def read_messages(value: Any, name: str) -> list[Turn]:
    """The turns of a list of messages, or of one. `name` is the key that holds them. Raises `UserError`."""
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{name}: expected a list with at least one message, got {shown(value)}")
    return [read_message(message) for message in value]


def hh_messages(text: str) -> list[Message] | None:
    """The messages of a dialogue written as in Anthropic's HH data, or None for any other text. Consecutive turns of
    the same speaker are joined, because templates refuse them."""
    before, *turns = _HH_TURN.split(text)
    if before.strip() or not turns:
        return None
    messages: list[Message] = []
    for speaker, words in zip(turns[::2], turns[1::2], strict=True):
        if messages and messages[-1]["role"] == _HH_ROLES[speaker]:
            messages[-1]["content"] += f"\n\n{words.strip()}"
        else:
            messages.append({"role": _HH_ROLES[speaker], "content": words.strip()})
    return messages


def read_message(value: Any) -> Turn:
    """Reads one message. Raises `UserError` for anything else, and for a message with content that lnlit would have to
    leave out."""
    if not isinstance(value, Mapping):
        raise UserError(f"a message must be a mapping with role and content, got {shown(value)}")
    given = {key: item for key, item in value.items() if item is not None and item != []}
    role = _role(one_of(given, ("role", "from")), value)
    content = one_of(given, ("content", "value"))
    for key, why in _REFUSED.items():
        if given.get(key):
            raise UserError(f"a message with {key!r}: {why}")
    if role == CALLER:
        parts = _Parts(calls=tuple(_listed(content)))
        role = "assistant"
    else:
        parts = _parts(content, role)
    thoughts = one_of({**given, "parts": parts.thoughts}, (*_THOUGHTS, "parts"))
    calls = [*_listed(given.get("tool_calls")), *_listed(given.get("function_call")), *parts.calls]
    learned = _learned(given, role)
    read = {"role", "from", "content", "value", *_CALLS, *_THOUGHTS, *_LEARNED}
    message = {"role": role, "content": parts.text, **{key: given[key] for key in given if key not in read}}
    if thoughts:
        message["reasoning_content"] = _thoughts(thoughts, role)
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
        if role != "assistant":
            raise UserError(f"{_a(role)} message with tool calls; only the assistant calls tools")
    elif parts.text is None and not (thoughts and role == "assistant"):
        said = f"the content of {_a(role)} message must be text, got {shown(content)}"
        raise UserError(f"a message must have role and content: {said}")
    elif parts.text is None:
        message["content"] = ""
    check_text(message)
    known = ("name", "tool_call_id", "id") if role == "tool" else ("id",)
    passed_on = [key for key in given if key not in read and key not in known]
    return Turn(message, learned, tuple(f"messages[].{key}" for key in passed_on))


def check_text(value: Any) -> None:
    """Raises `UserError` for half of a surrogate pair, which JSON can say and no tokenizer can read."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            where = f"broken text at character {error.start} of {shown(value)}"
            raise UserError(f"{where}: half of a surrogate pair. Repair or remove the row.") from error
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_text(key)
            check_text(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_text(item)


def one_of(given: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value under one of several names. Raises `UserError` where two of them say different things."""
    found = {name: given[name] for name in names if given.get(name) not in (None, "", [])}
    first, *others = found.values() or [next((given[name] for name in names if name in given), None)]
    if any(other != first for other in others):
        raise UserError(f"{' and '.join(found)} say different things: {shown(found)}. Keep one of them.")
    return first


def read_tools(value: Any) -> list[Any] | None:
    """Definitions of tools in OpenAI's form, from a list or its JSON text. A bare function is wrapped."""
    if isinstance(value, str):
        value = _json(value, "tools") if value.strip() else None
    if value is None or value == []:
        return None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise UserError(f"tools: expected a list of function definitions or its JSON text, got {shown(value)}")
    return [_tool(tool) for tool in value]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"tools: a definition needs a name, got {shown(tool)}")
    if "input_schema" in function:  # Anthropic's name
        if "parameters" in function:
            raise UserError(f"tools: a definition with both parameters and input_schema, got {shown(tool)}")
        function = {("parameters" if key == "input_schema" else key): value for key, value in function.items()}
    wrapped = {**tool, "function": function} if "function" in tool else {"type": "function", "function": dict(function)}
    check_text(wrapped)
    return wrapped


def _role(value: Any, message: Mapping[str, Any]) -> str:
    if value is None:
        keys = ", ".join(map(str, message)) or "none"
        raise UserError(f"a message must have role and content (or from and value); got keys: {keys}")
    if not isinstance(value, str) or value.lower() not in ROLES:
        guess = did_you_mean(str(value).lower(), ROLES)
        raise UserError(f"a message's role is {shown(value)}.{guess} Known are: {', '.join(ROLES)}.")
    return ROLES[value.lower()]


def _learned(given: Mapping[str, Any], role: str) -> bool:
    said = {name: given[name] for name in _LEARNED if name in given}
    for name, value in said.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise UserError(
                f"a message's {name}: expected 0 or 1, got {shown(value)}. A turn is learned or it is not; repeat rows "
                "to give them more weight."
            )
    if len({bool(value) for value in said.values()}) > 1:
        raise UserError(f"a message says both that it is learned and that it is not: {shown(said)}")
    wanted = all(said.values())
    if said and wanted and role != "assistant":
        raise UserError(f"{_a(role)} message with {shown(said)}: only what the assistant says can be learned")
    return wanted and role == "assistant"


def _thoughts(value: Any, role: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"a message's thoughts must be text, got {shown(value)}")
    if role != "assistant":
        raise UserError(f"{_a(role)} message with thoughts {shown(value)}: only the assistant has thoughts")
    return value


def _parts(content: Any, role: str) -> _Parts:
    """The content of a message, by kind. Parts must come in the order in which templates write them: thoughts, text,
    calls."""
    if content is None or isinstance(content, str):
        return _Parts(text=content)
    if isinstance(content, Mapping) and "type" in content:
        content = [content]
    if not isinstance(content, list):
        raise UserError(f"the content of {_a(role)} message must be text or a list of parts, got {shown(content)}")
    found, stage = _Parts(), 0
    for part in content:
        kind, body = _part(part, role)
        if kind < stage:
            raise UserError(
                f"the content of {_a(role)} message has parts in an order that no template can write; expected "
                "thoughts, text and tool calls, in this order. Write it as several messages."
            )
        stage = kind
        if kind == 0:
            found.thoughts += body
        elif kind == 1:
            found.text = (found.text or "") + body
        else:
            found.calls += (body,)
    return found


def _part(part: Any, role: str) -> tuple[int, Any]:
    """(0 for thoughts, 1 for text, 2 for a call; what it says)."""
    if isinstance(part, str):
        return 1, part
    if not isinstance(part, Mapping):
        raise UserError(f"a part of {_a(role)} message must be text or a mapping with a type, got {shown(part)}")
    given = {key: value for key, value in part.items() if value is not None and key != "type"}
    kind = part.get("type", "text")
    if kind in _CALL_PARTS:
        body = given.pop("value", given.pop("function", None)) or given
        return 2, body
    if kind not in _TEXT_PARTS + _THOUGHT_PARTS:
        raise UserError(f"a part of type {shown(kind)} in {_a(role)} message: lnlit learns text. Leave such rows out.")
    body = one_of(given, _BODIES)
    if isinstance(body, list):  # Mistral's thinking is a list of text parts
        body = "".join(_part(inner, role)[1] for inner in body)
    unread = [key for key in given if key not in (*_BODIES, "cache_control", "signature", "annotations", "id")]
    if not isinstance(body, str) or unread:
        raise UserError(f"a part of {_a(role)} message must be text and nothing else, got {shown(dict(part))}")
    return (0 if kind in _THOUGHT_PARTS else 1), body


def _a(role: str) -> str:
    return f"{'an' if role[0] in 'ai' else 'a'} {role}"


def _listed(calls: Any) -> list[Any]:
    if isinstance(calls, str):
        calls = _json(calls, "a tool call") if calls.strip() else []
    return calls if isinstance(calls, list) else [] if calls is None or calls == {} else [calls]


def _call(call: Any) -> dict[str, Any]:
    """One call as OpenAI writes it, its arguments as a mapping, which is what templates expect."""
    said = _json(call, "a tool call") if isinstance(call, str) else call
    function = said.get("function", said) if isinstance(said, Mapping) else None
    if isinstance(function, str) and isinstance(said, Mapping):
        function = {**said, "name": function}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"a tool call must have a name and arguments, got {shown(call)}")
    name = function["name"]
    bodies = [part[key] for part in (said, function) for key in _ARGUMENTS if part.get(key) not in (None, "")]
    found = [_arguments(body, name) for body in bodies] or [{}]
    if any(other != found[0] for other in found) or said.get("name", name) not in (None, name):
        raise UserError(f"a tool call says two things: {shown(call)}; keep one name and one mapping of arguments")
    others = {key: value for key, value in {**said, **function}.items() if key not in _CALL_KEYS and value is not None}
    if others:
        raise UserError(f"a tool call says more than a name and arguments: {shown(others)}. Leave that out.")
    read = {"name": name, "arguments": found[0]}
    return {**({"id": said["id"]} if said.get("id") else {}), "type": "function", "function": read}


def _arguments(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = _json(value, f"arguments of {name}") if value.strip() else {}
    if not isinstance(value, Mapping | None):
        raise UserError(f"arguments of {name}: expected a mapping or its JSON text, got {shown(value)}")
    return dict(value or {})


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: not valid JSON: {error.msg} at column {error.colno}: {shown(text)}") from error

"""Checks that what is learned of a turn contains everything that the turn says.

Chat templates leave out what they do not know: thoughts, tool calls, content beside a call. Training on the rest would
teach the model to say less than the row does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lnlit.data.rows import Conversation
from lnlit.thinking import CLOSE, OPEN, TAGS, thought_and_answer

#: Replaces a part that was found, so that no other part is found across it.
_FOUND = "\ufdd2"
_MARK = "\ufdd3"


def missing(message: Mapping[str, Any], rendered: str) -> str | None:
    """What an assistant's message contains and its rendering lacks, in words; None if nothing is missing. White space
    around the content is ignored, because templates strip or add it. `rendered` ends before the token that ends the
    turn, in whose name short words might be found."""
    left = rendered
    for name, forms in sorted(_parts(message), key=lambda part: -max(map(len, part[1]))):
        found = next((form for form in forms if form in left), None)
        if found is None:
            return f"{name} ({forms[0]:.60})"
        left = left.replace(found, _FOUND, 1)
    lost = [tag for tag in TAGS if tag in (message.get("content") or "") and tag not in rendered]
    return f"the tag {lost[0]}" if lost else None


def marked(said: Conversation) -> Conversation:
    """The messages with a mark at the end of all that others than the assistant say, so that `unshown` finds nothing
    else."""
    messages = [
        {**message, "content": f"{message['content']}{_MARK}{number}"}
        if message["role"] != "assistant" and (message.get("content") or "").strip()
        else message
        for number, message in enumerate(said.messages)
    ]
    return replace(said, messages=messages)


def unshown(said: Conversation, rendered: str, without_tools: str) -> str | None:
    """What others than the assistant say, and which tools the conversation has, that its rendering lacks, in words;
    None if nothing is missing. Earlier assistant turns may be cut, because they are learned where they were said. A
    tool counts as shown if its name occurs more often than in `without_tools`, because calls name it too."""
    for number, message in enumerate(said.messages, start=1):
        text = message.get("content") or ""
        if message["role"] != "assistant" and not any(form.strip() in rendered for form in _forms(text)):
            return f"message {number}, of the {message['role']} ({text.partition(_MARK)[0].strip():.60})"
    for tool in said.tools or []:
        name = str(tool["function"]["name"])
        if rendered.count(name) <= without_tools.count(name):
            return f"the tool {name} (where a message shows the tools, leave the key out: columns: {{tools: null}})"
    return None


def _parts(message: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(its name, the ways to write it) of each part of a message."""
    content = message.get("content") or ""
    thought, answer = thought_and_answer(content)
    before = content.partition(CLOSE)[0].rpartition(OPEN)[0] if CLOSE in content else ""
    for name, text in (
        ("the thought", message.get("reasoning_content")),
        ("the thought", thought),
        ("the text before the thought", before),
        ("the text", answer),
    ):
        if text and text.strip():
            yield name, [text.strip()]
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        yield "the tool call", [str(function.get("name"))]
        for value in _leaves(function.get("arguments")):
            yield "an argument of the tool call", _forms(value)


def _leaves(value: Any) -> Iterator[Any]:
    """Names and values in a tool call's arguments."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value != "":
        yield value


def _forms(value: Any) -> list[str]:
    """A value as text, JSON and Python literal, without the quotes around it."""
    if isinstance(value, str):
        forms = [value, *(json.dumps(value, ensure_ascii=ascii)[1:-1] for ascii in (False, True)), repr(value)[1:-1]]
    else:
        forms = [json.dumps(value), str(value)]
    return list(dict.fromkeys(forms))

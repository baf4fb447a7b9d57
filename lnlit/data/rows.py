"""Rows as people write them, read into one form: a conversation.

Every reader of chat rows (training, preferences, prompts, splits) goes through `conversation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lnlit.errors import UserError
from lnlit.thinking import Thinking, toggle

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What a row says, in the one form that every template is given.

    Args:
        messages: each with a `role` and `content`, the system prompt in front.
        learned: of each message, whether it is to be learned: the assistant's, unless the row says otherwise.
        tools: definitions that the template shows the model, as JSON schemas.
        template_arguments: further variables of the template (Hugging Face's `chat_template_kwargs`).
    """

    messages: list[Message]
    learned: tuple[bool, ...]
    tools: list[Any] | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def without_answer(self) -> Conversation:
        """Up to what the assistant has to answer."""
        stop = len(self.messages)
        while stop and self.messages[stop - 1]["role"] == "assistant":
            stop -= 1
        return replace(self, messages=self.messages[:stop], learned=self.learned[:stop])


def conversation(row: Mapping[str, Any], thinking: Thinking | None = None) -> Conversation:
    """A row's conversation with its system prompt in front.

    Reads `messages`; or Hugging Face's `prompt` and `completion`, each text or messages, the second where there is one;
    or the Llama-Nemotron schema (`input`: text or messages, `output`: text). The system prompt is the
    row's `system_prompt`; or else the toggle from the row's `thinking` or `reasoning`; or else from the argument. It
    precedes a system message that the conversation already has.
    """
    messages = _messages(row)
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"a message must be a mapping with role and content, got {message!r}")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise UserError(f"the content of a {message['role']} message must be text, got {message.get('content')!r}")
    messages = _with_system(messages, _system_prompt(row, thinking))
    return Conversation(messages, tuple(message["role"] == "assistant" for message in messages))


def _messages(row: Mapping[str, Any]) -> list[Message]:
    if "messages" in row:
        if not isinstance(row["messages"], list) or not row["messages"]:
            raise UserError(f"messages: expected a list with at least one message, got {row['messages']!r}")
        return row["messages"]
    if "prompt" in row:
        return [*_turns(row["prompt"], "user"), *_turns(row.get("completion", []), "assistant")]
    if "input" not in row or "output" not in row:
        keys = ", ".join(map(str, row)) or "none"
        raise UserError(
            "expected the key messages, or prompt with or without completion (Hugging Face's), or input and output "
            f"(Llama-Nemotron's); got keys: {keys}"
        )
    prompt = [{"role": "user", "content": row["input"]}] if isinstance(row["input"], str) else row["input"]
    if not isinstance(prompt, list) or not isinstance(row["output"], str):
        raise UserError("expected input as text or a list of messages, and output as text")
    return [*prompt, {"role": "assistant", "content": row["output"]}]


def _turns(given: Any, role: str) -> list[Message]:
    """Text as a turn of `role`; turns as they are."""
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    if not isinstance(given, list):
        raise UserError(f"expected prompt and completion as text or lists of messages, got {given!r}")
    return given


def _system_prompt(row: Mapping[str, Any], thinking: Thinking | None) -> str | None:
    if row.get("system_prompt"):
        return str(row["system_prompt"])
    for value in (row.get("thinking"), row.get("reasoning"), thinking):
        if value is not None:
            return toggle(value)
    return None


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None:
        return list(messages)
    first = messages[0] if messages else None
    if first is None or first["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if first["content"].startswith(system):
        return list(messages)
    return [{**first, "content": f"{system}\n\n{first['content']}"}, *messages[1:]]

"""Rows that say what lnlit cannot honour: each is refused in one short message that says what to do."""

import random

import pytest
from row_samples import CALL, OLDER, ONE, SCHEMA, THOUGHT, assistant, user

from lnlit.data.preference_rows import preference_row
from lnlit.data.rows import ANSWERS, CONTEXT, PROMPTS, asked, conversation
from lnlit.errors import UserError

IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}
REFUSED = {
    "image part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]}, ONE[1]]},
        "'image_url'.*lnlit learns text",
    ),
    "images": ({"messages": ONE, "images": ["x.png"]}, "images: lnlit learns text"),
    "tool result part": (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "7"}]}]},
        "tool_result",
    ),
    "documents": ({"messages": ONE, "documents": [{"text": "x"}]}, "documents: put their text into a message"),
    "KTO's bad answer": (
        {"prompt": "Why?", "completion": "Meh.", "label": False},
        "label: the row says that its answer is a bad one",
    ),
    "train_detail": (
        {
            "conversations": [
                {"from": "human", "value": "?"},
                {"from": "gpt", "value": "a", "train_detail": [{"begin_offset": 0}]},
            ]
        },
        "whole turns",
    ),
    "half a weight": ({"messages": [ONE[0], {**ONE[1], "weight": 0.5}]}, "expected 0 or 1, got 0.5"),
    "learned user": ({"messages": [{**ONE[0], "train": True}, ONE[1]]}, "only what the assistant says can be learned"),
    "weight of a row": ({"messages": ONE, "weight": 0.5}, "every row counts once"),
    "another mask": ({"conversations": ONE, "mask": "Assistant"}, "mask: only the assistant's"),
    "two prompts": (
        {"messages": ONE, "prompt": "When?"},
        r"messages are read, and prompt says something else: 'When\?'",
    ),
    "two answers": ({"prompt": "Why?", "completion": "Because.", "output": "No."}, "output says something else"),
    "another answer": ({"messages": ONE, "response": "No."}, "response says something else"),
    "context beside a prompt": (
        {"prompt": "Who?", "context": "Ada wrote it.", "response": "Ada"},
        "prompt: instruction",
    ),
    "a preference row": (
        {"conversations": OLDER[:3], "chosen": ONE[1], "rejected": assistant("No.")},
        "PreferenceData",
    ),
    "HH": ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "PreferenceData"),
    "two systems": (
        {"messages": ONE, "system": "a", "system_prompt": "b"},
        "system and system_prompt say different things",
    ),
    "two tools": (
        {"messages": ONE, "tools": [SCHEMA], "functions": [{**SCHEMA, "name": "x"}]},
        "tools and functions say different",
    ),
    "text": ({"text": "plain"}, "Rows of text are for TextData"),
    "question and answer": (
        {"question": "1 + 1?", "answer": "2"},
        r"columns: \{question: prompt, answer: completion\}",
    ),
    "a question beside a response": (
        {"system_prompt": "s", "question": "q", "response": "a"},
        r"columns: \{question: prompt\}",
    ),
    "a dialogue of another name": ({"conversation": ONE, "toxic": False}, r"columns: \{conversation: messages\}"),
    "tokens": ({"input_ids": [1, 2], "labels": [1, 2]}, "got keys: input_ids, labels"),
    "a tree": (
        {"prompt": {"text": "?", "role": "prompter", "replies": [{"text": "a" * 5000}]}},
        "write a row for each path",
    ),
    "unknown role": (
        {"messages": [{"role": "asistant", "content": "a"}]},
        r"role is 'asistant'. Did you mean 'assistant'\?",
    ),
    "role alone": ({"messages": [{"role": "user"}]}, "content of a user message must be text"),
    "no role": ({"messages": [{"content": "a"}]}, "got keys: content"),
    "content and value": (
        {"messages": [{"role": "user", "content": "a", "value": "b"}]},
        "content and value say different things",
    ),
    "structured content": (
        {"messages": [ONE[0], {"role": "assistant", "content": {"answer": "a"}}]},
        "must be text or a list",
    ),
    "thinking user": ({"messages": [{**ONE[0], "thinking": "Hm."}, ONE[1]]}, "only the assistant has thoughts"),
    "two thoughts": (
        {"messages": [ONE[0], {**THOUGHT[1], "thinking": "Oh."}]},
        "reasoning_content and thinking say different things",
    ),
    "thoughts last": (
        {
            "messages": [
                ONE[0],
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}],
                },
            ]
        },
        "order",
    ),
    "thoughts as a column": (
        {"prompt": "Why?", "reasoning": "Let me see.", "response": "Because."},
        r"columns: \{reasoning: reasoning_content\}",
    ),
    "broken arguments": (
        {"messages": [ONE[0], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "not valid JSON",
    ),
    "call with more": (
        {
            "messages": [
                ONE[0],
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}", "note": "n"}}]},
            ]
        },
        "more than a name",
    ),
    "two mappings of arguments": (
        {
            "messages": [
                ONE[0],
                {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {}, "input": {"b": 1}}]},
            ]
        },
        "a tool call says two things",
    ),
    "arguments beside a function": (
        {"messages": [ONE[0], {"role": "assistant", "tool_calls": [{**CALL, "arguments": {"city": "Rome"}}]}]},
        "a tool call says two things",
    ),
    "a name beside a function": (
        {"messages": [ONE[0], {"role": "assistant", "tool_calls": [{**CALL, "name": "wind"}]}]},
        "a tool call says two things",
    ),
    "thinking as text": ({"messages": ONE, "enable_thinking": "false"}, "enable_thinking: expected true or false"),
    "thinking as a number": (
        {"messages": ONE, "chat_template_kwargs": {"enable_thinking": 0}},
        "enable_thinking: expected true or false",
    ),
    "a solution and its short answer": (
        {"problem": "1 + 2?", "solution": "1 + 2 = 3", "answer": "3"},
        "solution: completion",
    ),
    "HH without a question": (
        {"prompt": "\n\nHuman: a\n\nAssistant: b", "completion": "c"},
        "what the assistant has to answer",
    ),
    "calling user": ({"messages": [{"role": "user", "tool_calls": [CALL]}]}, "only the assistant calls tools"),
    "refusal": ({"messages": [ONE[0], {"role": "assistant", "content": "", "refusal": "I cannot."}]}, "'refusal'"),
    "tools of text": ({"messages": ONE, "tools": "weather(city)"}, "tools: not valid JSON"),
    "messages in kwargs": ({"messages": ONE, "chat_template_kwargs": {"tools": []}}, "none of a template's variables"),
    "surrogate": ({"messages": [user("a\ud83d"), ONE[1]]}, "half of a surrogate pair"),
    "surrogate in a system prompt": ({"messages": ONE, "system": "a\ud83d"}, "half of a surrogate pair"),
    "surrogate in tools": (
        {"messages": ONE, "tools": [{**SCHEMA, "description": "\udc00"}]},
        "half of a surrogate pair",
    ),
    "history of text": ({"instruction": "a", "output": "b", "history": ["q", "r"]}, "history: expected pairs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_in_one_short_message(name):
    row, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        conversation(row)
    assert len(str(caught.value)) < 500


def anything(rng: random.Random, depth: int = 0):
    """Any JSON value, often one that means something in a message."""
    if depth == 3 or rng.random() < 0.6:
        plain = [None, True, False, 0, 1, 0.5, float("nan"), "", "on", "user", "assistant", "gpt", "function_call", "{"]
        return rng.choice([*plain, "text", "tool_call", '{"name": "f", "arguments": {}}', "\ud83d", [], {}])
    if rng.random() < 0.5:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = [
        "role",
        "from",
        "content",
        "value",
        "tool_calls",
        "weight",
        "thinking",
        "type",
        "text",
        "function",
        "arguments",
    ]
    return {rng.choice(keys): anything(rng, depth + 1) for _ in range(rng.randrange(5))}


def test_no_row_is_a_traceback():
    rng = random.Random(0)
    keys = [*CONTEXT, *PROMPTS, *ANSWERS, "history", "context", "label", "chosen", "rejected", "completions", "rewards"]
    keys += ["reasoning_content", "preferred_output", "non_preferred_output"]
    for _ in range(4000):
        row = {rng.choice(keys): anything(rng) for _ in range(rng.randint(1, 5))}
        for reader in (conversation, asked, preference_row):
            try:
                reader(row)
            except UserError as error:
                assert len(str(error)) < 700

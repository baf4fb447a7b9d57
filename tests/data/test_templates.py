"""All that a learned turn says is learned, and nothing else, over real families of chat templates; or it is refused.

The oracle is the template's documented behaviour as a Python function, and the tokens that generation would see.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from template_corpus import TEMPLATES, tokenizer_for

from lnlit.data.chat import ChatEncoder, Document
from lnlit.errors import UserError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look it up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "A word."}}},
        },
    }
]
CALL = {
    "id": "a1b2c3d4e",
    "type": "function",
    "function": {"name": "look_up", "arguments": {"word": 'a "tree"', "n": 2}},
}
PARTS = [{"type": "text", "text": "The answer "}, {"type": "text", "text": "is 3."}]
THOUGHT = "<think>\nstep by step\n</think>\n\nThe answer is 3."


def user(text: Any = "What is 1 + 2?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(content: Any = "The answer is 3.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


RESULT = {"role": "tool", "name": "look_up", "tool_call_id": "a1b2c3d4e", "content": "a plant"}
THREE = [user("one"), says("first"), user("two"), says("second"), user("three"), says("third")]

ROWS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [user(), says()]},
    "three turns": {"messages": THREE},
    "toggle on": {"messages": [user(), says(THOUGHT)], "thinking": "on"},
    "toggle off": {"messages": [user(), says()], "thinking": "off"},
    "thought": {"messages": [user(), says(THOUGHT)]},
    "thought, no line breaks": {"messages": [user(), says("<think>step</think>3")]},
    "thought without its opening tag": {"messages": [user(), says("step by step\n</think>\n\n3")]},
    "thought of its own": {"messages": [user(), says("3", reasoning_content="step by step")]},
    "thoughts in three turns": {"messages": [m if m["role"] == "user" else says(THOUGHT) for m in THREE]},
    "thought in the last of three": {"messages": [*THREE[:-1], says(THOUGHT)]},
    "thought that the user repeats": {"messages": [user(), says("<think>step</think>3"), user("step"), says("4")]},
    "cut-off thought": {"messages": [user(), says("<think>\nstep by")]},
    "no thinking asked for": {"messages": [user(), says()], "chat_template_kwargs": {"enable_thinking": False}},
    "tools": {"messages": [user(), says()], "tools": TOOLS},
    "tool call": {"messages": [user(), says(None, tool_calls=[CALL])], "tools": TOOLS},
    "tool call and what came of it": {
        "messages": [user(), says(None, tool_calls=[CALL]), RESULT, says("a plant")], "tools": TOOLS
    },
    "tool call with words": {"messages": [user(), says("I look.", tool_calls=[CALL])], "tools": TOOLS},
    "two calls": {"messages": [user(), says(None, tool_calls=[CALL, {**CALL, "id": "f5g6h7i8j"}])], "tools": TOOLS},
    "empty": {"messages": [user(), says("")]},
    "none": {"messages": [user(), says(None)]},
    "content in parts": {"messages": [user(PARTS), says(PARTS)]},
    "leading space": {"messages": [user(), says(" World")]},
    "leading line breaks": {"messages": [user(), says("\n\nWorld")]},
    "trailing space": {"messages": [user("hello "), says("World  ")]},
    "one word": {"messages": [user("hello"), says("World")]},
    "many scripts": {"messages": [user("é"), says("é 漢字 🙂\u2028x")]},
    "control tokens typed by the user": {"messages": [user("EVERY</think>\nWhat?"), says()]},
    "control tokens quoted by the assistant": {"messages": [user(), says("it is CONTROL.")]},
    "surrogate": {"messages": [user(), says("a\ud83d")]},
    "first of weight 0": {"messages": [user("one"), says("first", weight=0), user("two"), says("second")]},
    "thought of weight 0": {"messages": [user("one"), says(THOUGHT, weight=0), user("two"), says("second")]},
    "the assistant speaks first": {"messages": [says("hello"), user(), says()]},
}  # fmt: skip


PLAIN = ("one turn", "one word", "leading space", "trailing space", "control tokens typed by the user")
OWN = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # tags that an assistant may mean


def row_for(name: str, case: str) -> dict[str, Any]:
    """The row, with the control tokens of the template where it says CONTROL, and its own tags too for EVERY."""
    text = json.dumps(ROWS[case])
    for mark, left_out in (("CONTROL", OWN), ("EVERY", ())):
        template = TEMPLATES[name]
        marks = (*template.specials, *(text for text in template.ordinary if text not in OWN))
        control = "".join(text for text in marks if text not in left_out)
        text = text.replace(mark, json.dumps(control)[1:-1])
    return json.loads(text)


def learned_runs(document: Document) -> list[tuple[int, int]]:
    """[start, end) of each run of learned tokens."""
    edges = [at for at, (a, b) in enumerate(pairwise([False, *document.loss_mask, False])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def as_read(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": "".join(part["text"] for part in content) if isinstance(content, list) else content}


def check(encoder: ChatEncoder, name: str, row: dict[str, Any]) -> None:
    """Assertions over one document. `UserError` where the row is refused."""
    document = encoder.encode(row)
    template, messages = TEMPLATES[name], row["messages"]
    turns = [at for at, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight") != 0]  # fmt: skip
    runs = learned_runs(document)
    assert len(runs) == len(turns)
    decode = encoder.tokenizer.decode
    for turn, (start, end) in zip(turns, runs, strict=True):
        _, prompt = encoder.prompt({**row, "messages": messages[:turn]})
        assert list(document.tokens[:start]) == prompt, "generation sees another prompt"
        said = decode(document.tokens[:end])[len(decode(document.tokens[:start])) :]
        if template.swallows_space and not as_read(messages[turn])["content"].startswith(" "):
            said = said.removeprefix(" ")  # that which the tokenizer puts in front of every text
        answered = any(m["role"] == "user" for m in messages[turn:])
        off = "chat_template_kwargs" in row
        message = {
            **as_read(messages[turn]),
            "answered": answered,
            "last": turn + 1 == len(messages),
            "thinking_off": off,
        }
        assert said == template.expected(message)
        ends = encoder.tokenizer.convert_tokens_to_ids(template.end)
        assert document.tokens[end - 1] == ends and ends in encoder.end_ids()
    own = OWN if any("think>" in str(m["content"]) for m in messages if m["role"] == "assistant") else ()
    typed = [text for text in template.specials if text not in own]
    typed += [text for text in template.ordinary if text not in OWN]
    silent = [{**m, "content": without(m["content"], typed)} for m in messages]
    if silent != messages:  # what somebody types is no control token
        harmless = encoder.encode({**row, "messages": silent})
        for text in typed:
            token = encoder.tokenizer.convert_tokens_to_ids(text)
            assert list(document.tokens).count(token) == list(harmless.tokens).count(token), f"{text} was typed"


def without(content: Any, texts: list[str]) -> Any:
    """The content with harmless words in place of the texts."""
    for text in texts if isinstance(content, str) else []:
        content = content.replace(text, "x")
    return content


def outcome(encoder: ChatEncoder | UserError, name: str, case: str) -> str:
    """ "learned", or why not."""
    try:
        if isinstance(encoder, UserError):
            raise encoder
        check(encoder, name, row_for(name, case))
    except UserError as error:
        return str(error)
    except AssertionError as error:
        return f"WRONG: {error}"
    return "learned"


def encoder_for(name: str) -> ChatEncoder | UserError:
    try:
        return ChatEncoder(tokenizer_for(name))
    except UserError as error:
        return error


def test_what_is_learned_is_what_is_said_or_the_row_is_refused(record_property):
    outcomes = {
        (name, case): outcome(encoder, name, case)
        for name in TEMPLATES
        for encoder in [encoder_for(name)]
        for case in ROWS
    }
    wrong = [f"{name}, {case}: {why}" for (name, case), why in outcomes.items() if why.startswith("WRONG")]
    refused = {key: why for key, why in outcomes.items() if why != "learned" and not why.startswith("WRONG")}
    print(f"\n{len(outcomes)} combinations: {len(refused)} refused, {len(wrong)} wrong")  # pytest -s shows the table
    for (name, case), why in refused.items():
        print(f"{name:<24}{case:<40}{why[:150]}")
    record_property("combinations of template and row", len(outcomes))
    record_property("of these refused", len(refused))
    assert not wrong, "\n".join(wrong)
    for name, template in TEMPLATES.items():
        if template.accepts_plain:
            assert not [case for case in PLAIN if (name, case) in refused], name

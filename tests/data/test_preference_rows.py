"""Preference rows as other tools write them, and the invariant of all rows: nothing that a row says vanishes."""

import json
import random
import string

import pytest
from chat_samples import CHATML
from row_samples import BRIEF, CALLED, ONE, SCHEMA, assistant, user

from lnlit.data.chat import ChatEncoder
from lnlit.data.preference import Group, encode_groups
from lnlit.data.preference_rows import chats, preference_row, unread
from lnlit.data.rows import conversation
from lnlit.errors import UserError

PAIR = {"messages": [user("Why?")], "completions": ["Because.", "No."], "rewards": [1.0, 0.0]}
PREFERENCES = {
    "Alpaca's": ({"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No."}, PAIR),
    "Alpaca's with input": (
        {"instruction": "Translate.", "input": "chat", "chosen": "Because.", "rejected": "No."},
        {**PAIR, "messages": [user("Translate.\nchat")]},
    ),
    "HH's prompt": ({"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": "Because.", "rejected": "No."}, PAIR),
    "a turn that is not learned": (
        {
            "messages": [user("Hi"), {**assistant("Hello"), "weight": 0}, user("Why?")],
            "chosen": "Because.",
            "rejected": "No.",
        },
        {**PAIR, "messages": [user("Hi"), assistant("Hello"), user("Why?")]},
    ),
    "OpenAI's": (
        {
            "input": {"messages": [user("Why?")], "tools": [SCHEMA]},
            "preferred_output": [ONE[1]],
            "non_preferred_output": [assistant("No.")],
        },
        {**PAIR, "tools": [SCHEMA]},
    ),
    "UltraFeedback's": (
        {
            "prompt": "Why?",
            "chosen": ONE,
            "rejected": [ONE[0], assistant("No.")],
            "messages": ONE,
            "score_chosen": 1.0,
            "score_rejected": 0.0,
        },
        PAIR,
    ),
    "a system column": (
        {"system": "Be brief.", "prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {**PAIR, "system": "Be brief."},
    ),
    "calls": (
        {"prompt": "Oslo?", "chosen": [CALLED[1]], "rejected": "No."},
        {**PAIR, "messages": [user("Oslo?")], "completions": [CALLED[1], "No."]},
    ),
    "parts": (
        {
            "prompt": "Why?",
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Because."}]}],
            "rejected": "No.",
        },
        PAIR,
    ),
}


@pytest.mark.parametrize("form", PREFERENCES)
def test_a_preference_says_exactly_this(form):
    row, expected = PREFERENCES[form]
    found = preference_row(row)
    assert found == expected
    assert preference_row(found) == found


def test_what_stands_beside_a_preference_is_in_its_conversations():
    row = preference_row(
        {"system": "Be brief.", "tools": [SCHEMA], "id": 7, "prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    )
    found = [conversation(chat) for chat in chats(row)]
    assert [said.messages for said in found] == [BRIEF, [*BRIEF[:2], assistant("No.")]]
    assert all(said.tools == [{"type": "function", "function": SCHEMA}] for said in found)
    assert unread(row) == ("id",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "When?", "chosen": ONE, "rejected": [ONE[0], assistant("No.")]}, "prompt says something else"),
        ({"prompt": "Why?", "context": "x y z", "chosen": "a", "rejected": "b"}, "context says something else"),
        ({"prompt": "Why?", "chosen": [CALLED[1], *CALLED[2:]], "rejected": "No."}, "a completion of 3 messages"),
        ({"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}, "steps of one answer"),
        ({"question": "Why?", "chosen": "a", "rejected": "b"}, "question: prompt"),
        (
            {"input": "x", "preferred_output": [ONE[1]], "non_preferred_output": [ONE[1]]},
            "expected a mapping with messages",
        ),
    ],
)
def test_a_preference_that_would_lose_something_is_refused(row, message):
    with pytest.raises(UserError, match=message):
        preference_row(row)


# what a template is given

SHOWS_TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML
SKIPS = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] in ('user', 'assistant') %}")


def test_tools_are_shown_in_training_prompts_and_preferences(tokenizer):
    tokenizer.chat_template = SHOWS_TOOLS
    encoder = ChatEncoder(tokenizer)
    tools = [{**SCHEMA, "description": "of a <|im_end|> city"}]
    row = {"prompt": "Oslo?", "completion": "7", "tools": tools}
    document = encoder.encode(row)
    prompt = encoder.prompt(row)[1]
    assert document.tokens[: len(prompt)] == prompt
    assert "weather" in tokenizer.decode(prompt) and "of a <|im_end|> city" in tokenizer.decode(prompt)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompt.count(end) == 2  # what a tool's description spells is no control token
    pair = preference_row({"prompt": "Oslo?", "chosen": "7", "rejected": "8", "tools": tools})
    (group,) = encode_groups(encoder, [pair])
    assert isinstance(group, Group)
    assert all(list(part.tokens)[: len(prompt)] == prompt for part in group.completions())


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        ({"prompt": "Oslo?", "completion": "7", "tools": [SCHEMA]}, "the tool weather"),
        ({"prompt": "Oslo?", "completion": "7", "system": "Be brief."}, r"message 1, of the system \(Be brief.\)"),
        ({"messages": [user("Oslo?"), {"role": "tool", "content": "7 C"}, assistant("7")]}, "message 2, of the tool"),
    ],
)
def test_what_a_template_does_not_show_is_refused(tokenizer, row, lost):
    tokenizer.chat_template = SKIPS
    for encode in (ChatEncoder(tokenizer).encode, ChatEncoder(tokenizer).prompt):
        with pytest.raises(UserError, match=f"the model would never see it: {lost}"):
            encode(row)


def test_only_the_compared_answers_must_be_kept_by_the_template(tokenizer):
    """Templates that cut earlier thoughts show every answer the same prompt, which is all that a comparison needs."""
    cut = "m['content'] if loop.last else m['content'].split('</think>')[-1]"
    tokenizer.chat_template = CHATML.replace("m['content']", cut)
    talk = [user("Hi"), assistant("<think>x</think>Hello"), user("Why?")]
    row = preference_row({"messages": talk, "chosen": "Because.", "rejected": "No."})
    (group,) = encode_groups(ChatEncoder(tokenizer), [row])
    assert isinstance(group, Group)
    kept = [[t for t, yes in zip(part.tokens, part.loss_mask, strict=True) if yes] for part in group.completions()]
    assert [tokenizer.decode(tokens) for tokens in kept] == ["Because.<|im_end|>", "No.<|im_end|>"]


# nothing vanishes

KEYS = ["messages", "conversations", "prompt", "instruction", "input", "context", "history", "completion", "response",
        "output", "system", "system_prompt", "reasoning_content", "question", "answer", "chosen", "rejected", "tools",
        "category", "title", "thinking", "chat_template_kwargs"]  # fmt: skip


def random_row(rng: random.Random) -> dict:
    """Keys of all formats mixed at random, each string in it a word of its own."""

    def word() -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=12))

    def content():
        part = [
            {"type": rng.choice(["text", "text", "thinking"]), rng.choice(["text", "thinking", "value"]): word()}
            for _ in range(2)
        ]
        return rng.choice([word(), word(), word(), part, None])

    def message(role: str) -> dict:
        keys = rng.choice([("role", "content"), ("from", "value")])
        made = {keys[0]: role, keys[1]: content()}
        for key in ("reasoning_content", "thinking", "name", "note", "refusal"):
            if rng.random() < 0.07:
                made[key] = word()
        if rng.random() < 0.1:
            made["tool_calls"] = [{"function": {"name": word(), "arguments": json.dumps({"a": word()})}}]
        return made

    def talk(*roles: str) -> list[dict]:
        return [message(role) for role in roles]

    made = {
        "messages": lambda: talk("system", "user", "assistant", "user", "assistant")[rng.randrange(2) :],
        "conversations": lambda: talk("human", "gpt"),
        "history": lambda: [[word(), word()]],
        "tools": lambda: [{"name": word(), "description": word()}],
        "chat_template_kwargs": lambda: {word(): word()},
        "thinking": lambda: rng.choice(["on", word()]),
        "chosen": lambda: rng.choice([word(), talk("assistant"), talk("user", "assistant")]),
        "rejected": lambda: rng.choice([word(), talk("assistant"), talk("user", "assistant")]),
        "prompt": lambda: rng.choice([word(), talk("user"), talk("system", "user")]),
        "input": lambda: rng.choice([word(), "", talk("user")]),
        "completion": lambda: rng.choice([word(), talk("assistant")]),
    }
    few = rng.sample(KEYS, rng.randint(1, 5))
    return {key: made.get(key, word)() for key in few}


def words(value) -> list[str]:
    """Every word of a row, JSON inside strings opened."""
    text = json.dumps(value).replace("\\n", " ")
    return [part for part in "".join(c if c.isalpha() else " " for c in text).split() if len(part) == 12]


def test_no_word_of_a_row_vanishes(record_property):
    rng = random.Random(0)
    read = refused = 0
    for _ in range(6000):
        row = random_row(rng)
        for reader in (chat_says, preference_says):
            try:
                said, left = reader(row)
            except UserError as error:
                assert len(str(error)) < 600
                refused += 1
                continue
            read += 1
            in_messages = {key.removeprefix("messages[].") for key in left if "[]." in key}
            counted = words([row[key] for key in left if key in row])
            counted += words([m[key] for m in _all_messages(row) for key in in_messages if key in m])
            spoken = json.dumps(said)
            missing = [word for word in words(row) if word not in spoken and word not in counted]
            assert not missing, (row, said, left)
    record_property("rows read", read)
    record_property("rows refused", refused)
    assert read > 500


def _all_messages(value) -> list[dict]:
    if isinstance(value, dict):
        return [value, *(m for item in value.values() for m in _all_messages(item))]
    return [m for item in value for m in _all_messages(item)] if isinstance(value, list) else []


def chat_says(row):
    found = conversation(row)
    return [found.messages, found.tools, dict(found.template_arguments)], found.unread


def preference_says(row):
    found = preference_row(row)
    if not found["completions"]:
        raise UserError("left out, and counted as unpaired")
    parts = [conversation(chat) for chat in chats(found)]
    return [found["messages"], *([p.messages, p.tools, dict(p.template_arguments)] for p in parts)], unread(found)

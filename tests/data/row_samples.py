"""Turns and rows that tests of rows share."""


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


SCHEMA = {"name": "weather", "description": "of a city", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = [
    user("Oslo?"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "7"},
    assistant("7 degrees"),
]
CALL_TEXT = '{"name": "weather", "arguments": {"city": "Oslo"}}'
THOUGHT = [user("Why?"), {"role": "assistant", "content": "Because.", "reasoning_content": "Hm."}]
ONE = [user("Why?"), assistant("Because.")]
BRIEF = [system("Be brief."), *ONE]
OLDER = [user("Hi"), assistant("Hello"), *ONE]

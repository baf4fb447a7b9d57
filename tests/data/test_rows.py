"""Rows as other tools write them: what each says, exactly."""

import json

import pytest
from chat_samples import SHARED
from row_samples import BRIEF, CALL, CALL_TEXT, CALLED, OLDER, ONE, SCHEMA, THOUGHT, assistant, system, user

from lnlit.data.rows import asked, conversation
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError

FORMS = {
    "OpenAI's messages": ({"messages": BRIEF}, BRIEF),
    "a developer's message": (
        {"messages": [{"role": "developer", "content": "d"}, *ONE]},
        [{"role": "developer", "content": "d"}, *ONE],
    ),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}, ONE),
    "ShareGPT with a system column": (
        {
            "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}],
            "system": "Be brief.",
        },
        BRIEF,
    ),
    "NeMo's": (
        {
            "system": "",
            "mask": "User",
            "conversations": [
                {"from": "User", "value": "Why?", "label": None},
                {"from": "Assistant", "value": "Because."},
            ],
        },
        ONE,
    ),
    "axolotl's conversations": ({"conversations": ONE}, ONE),
    "Pygmalion's": ({"conversations": [{"role": "user", "value": "Why?"}, {"role": "bot", "value": "Because."}]}, ONE),
    "prompt and completion": ({"prompt": "Why?", "completion": "Because."}, ONE),
    "prompt and completion as messages": ({"prompt": BRIEF[:2], "completion": BRIEF[2:]}, BRIEF),
    "prompt with system": ({"prompt": "Why?", "completion": "Because.", "system": "Be brief."}, BRIEF),
    "prompt and response": ({"prompt": "Why?", "response": "Because."}, ONE),
    "Alpaca": (
        {"instruction": "Translate.", "input": "chat", "output": "cat"},
        [user("Translate.\nchat"), assistant("cat")],
    ),
    "Alpaca without input": ({"instruction": "Why?", "input": "", "output": "Because."}, ONE),
    "Alpaca with history and system": (
        {"instruction": "Why?", "input": "", "output": "Because.", "history": [["Hi", "Hello"]], "system": "Be brief."},
        [system("Be brief."), *OLDER],
    ),
    "GPTeacher's": ({"instruction": "Why?", "input": "", "response": "Because."}, ONE),
    "dolly": (
        {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "qa"},
        [user("Who?\nAda wrote it."), assistant("Ada")],
    ),
    "Llama-Nemotron": (
        {"input": [user("Why?")], "output": "Because.", "system_prompt": "detailed thinking off", "reasoning": "off"},
        [system("detailed thinking off"), *ONE],
    ),
    "Llama-Nemotron, text": (
        {"input": "Why?", "output": "Because.", "reasoning": "on"},
        [system("detailed thinking on"), *ONE],
    ),
    "toggle and system prompt": (
        {"messages": ONE, "system_prompt": "Be brief.", "reasoning": "on"},
        [system("detailed thinking on\n\nBe brief."), *ONE],
    ),
    "messages and their answer": ({"messages": [user("Why?")], "response": "Because."}, ONE),
    "UltraChat's prompt beside messages": ({"prompt": "Why?", "prompt_id": "8", "messages": ONE}, ONE),
    "the answer twice": ({"messages": ONE, "output": "Because."}, ONE),
    "content as parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "W"}, {"type": "text", "text": "hy?"}]},
                ONE[1],
            ]
        },
        ONE,
    ),
    "LLaMA-Factory's parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "value": "Why?"}]}, ONE[1]]},
        ONE,
    ),
    "reasoning_content": ({"messages": THOUGHT}, THOUGHT),
    "gpt-oss's thinking": ({"messages": [ONE[0], {**ONE[1], "thinking": "Hm."}]}, THOUGHT),
    "thinking parts": (
        {
            "messages": [
                ONE[0],
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Because."}],
                },
            ]
        },
        THOUGHT,
    ),
    "Mistral's thinking parts": (
        {
            "messages": [
                ONE[0],
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                        {"type": "text", "text": "Because."},
                    ],
                },
            ]
        },
        THOUGHT,
    ),
    "thoughts beside an answer": ({"prompt": "Why?", "completion": "Because.", "reasoning_content": "Hm."}, THOUGHT),
    "OpenAI's tool calls": (
        {
            "messages": [
                CALLED[0],
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{**CALL, "function": {**CALL["function"], "arguments": '{"city": "Oslo"}'}}],
                },
                *CALLED[2:],
            ]
        },
        CALLED,
    ),
    "OpenAI's function_call": (
        {
            "messages": [
                CALLED[0],
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                },
                {"role": "function", "content": "7"},
                CALLED[3],
            ]
        },
        CALLED,
    ),
    "TRL's tool calls": ({"messages": [CALLED[0], {"role": "assistant", "tool_calls": [CALL]}, *CALLED[2:]]}, CALLED),
    "ShareGPT's function_call": (
        {
            "conversations": [
                {"from": "human", "value": "Oslo?"},
                {"from": "function_call", "value": CALL_TEXT},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "7 degrees"},
            ]
        },
        CALLED,
    ),
    "LLaMA-Factory's tool_call parts": (
        {
            "messages": [
                CALLED[0],
                {"role": "assistant", "content": [{"type": "tool_call", "value": CALL_TEXT}]},
                *CALLED[2:],
            ]
        },
        CALLED,
    ),
    "Anthropic's tool_use parts": (
        {
            "messages": [
                CALLED[0],
                {"role": "assistant", "content": [{"type": "tool_use", "name": "weather", "input": {"city": "Oslo"}}]},
                *CALLED[2:],
            ]
        },
        CALLED,
    ),
    "as Parquet fills it": (
        {
            "messages": [
                {**user("Why?"), "tool_calls": None, "name": None},
                {**assistant("Because."), "tool_calls": []},
            ],
            "tools": None,
            "prompt": None,
        },
        ONE,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_says_exactly_these_messages(form):
    row, expected = FORMS[form]
    said = conversation(row)
    assert said.messages == expected
    assert said.learned == tuple(message["role"] == "assistant" for message in expected)


@pytest.mark.parametrize("tools", [[SCHEMA], json.dumps([SCHEMA]), [{"type": "function", "function": SCHEMA}], SCHEMA])
@pytest.mark.parametrize("key", ["tools", "functions"])
def test_tools_are_read(tools, key):
    said = conversation({"messages": CALLED, key: tools})
    assert said.tools == [{"type": "function", "function": SCHEMA}]
    assert asked({"messages": CALLED, key: tools}).tools == said.tools
    assert said.unread == ()


@pytest.mark.parametrize("key", ["weight", "train", "loss", "loss_weight"])
@pytest.mark.parametrize("no", [0, 0.0, False])
def test_a_turn_that_the_row_excepts_is_not_learned(key, no):
    said = conversation(
        {"messages": [user("Hi"), {**assistant("bad"), key: no}, user("?"), {**assistant("good"), key: 1}]}
    )
    assert said.messages == [user("Hi"), assistant("bad"), user("?"), assistant("good")]
    assert said.learned == (False, False, False, True)


def test_template_arguments_are_read():
    row = {"messages": ONE, "chat_template_kwargs": {"enable_thinking": False}}
    assert conversation(row).template_arguments == {"enable_thinking": False}
    assert conversation({"messages": ONE, "chat_template_kwargs": '{"a": 1}'}).template_arguments == {"a": 1}
    assert conversation({"messages": ONE, "enable_thinking": True}).template_arguments == {"enable_thinking": True}
    assert conversation({"messages": ONE}).template_arguments == {}


# the toggle


@pytest.mark.parametrize("default", [None, "on", "off"])
@pytest.mark.parametrize("own", ["on", "off"])
@pytest.mark.parametrize(
    "row",
    [
        lambda said: {"messages": [system(f"detailed thinking {said}"), *ONE]},
        lambda said: {"messages": ONE, "system": f"detailed thinking {said}"},
        lambda said: {"messages": ONE, "system_prompt": f"detailed thinking {said}", "reasoning": said},
        lambda said: {"prompt": "Why?", "completion": "Because.", "thinking": said == "on"},
    ],
)
def test_the_rows_own_toggle_wins(row, own, default):
    assert conversation(row(own), default).messages == [system(f"detailed thinking {own}"), *ONE]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [system("detailed thinking off"), *ONE], "thinking": "on"},
        {"messages": ONE, "system_prompt": "detailed thinking on", "reasoning": "off"},
        {"messages": [system("detailed thinking on"), *ONE], "system": "detailed thinking off"},
        {"messages": [system("detailed thinking on\n\ndetailed thinking off"), *ONE]},
        {"messages": ONE, "thinking": "on", "reasoning": "off"},
    ],
)
def test_a_row_that_contradicts_itself_is_refused(row):
    with pytest.raises(UserError, match=r"agree|different things"):
        conversation(row)


def test_a_rewards_keys_are_nobody_elses_business():
    row = {"prompt": "1 + 1?", "output": 2, "label": False, "completion": {"a": 1}, "chosen": 3, "answer": "2"}
    assert asked(row).messages == [user("1 + 1?")]
    assert asked({"messages": ONE}).messages == [user("Why?")]
    assert asked({"messages": CALLED[:3]}).messages == CALLED[:3]


def test_a_toggle_in_front_of_an_empty_system_prompt_is_all_of_it():
    said = conversation({"messages": [system(""), *ONE], "reasoning": "on"})
    assert said.messages == [system("detailed thinking on"), *ONE]


def test_the_schema_of_a_tool_is_called_parameters_as_templates_expect():
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    said = conversation({"messages": ONE, "tools": [{"name": "weather", "input_schema": schema}]})
    assert said.tools == [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    with pytest.raises(UserError, match="parameters and input_schema"):
        conversation({"messages": ONE, "tools": [{"name": "a", "input_schema": schema, "parameters": {}}]})


def test_a_prompt_written_as_an_hh_dialogue_is_a_dialogue():
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    said = conversation({"prompt": prompt, "completion": " Because."})
    assert said.messages == [*OLDER[:3], assistant(" Because.")]
    assert said.learned == conversation({"prompt": OLDER[:3], "completion": " Because."}).learned
    assert asked({"prompt": prompt}).messages == OLDER[:3]
    asks_about = user("Human: is that a word?")
    assert asked({"prompt": asks_about["content"]}).messages == [asks_about]


def test_keys_that_nobody_reads_are_named():
    row = {"messages": [{**user("Why?"), "time": "noon", "name": "Ada"}, ONE[1]], "id": "7", "answer": "b", "empty": ""}
    assert conversation(row).unread == ("id", "answer", "messages[].time", "messages[].name")


# files of others


@pytest.mark.parametrize(
    ("file", "count", "roles"),
    [
        ("instruct/gpteacher_roleplay.json", 3146, {"user", "assistant"}),
        ("instruct/dolly_hhrlhf_1k.jsonl", 1000, {"user", "assistant"}),
        ("reasoning_traces/marco_o1_cot_demo.json", 125, {"user", "assistant"}),
        ("reasoning_traces/reason_tool_use_demo_50.jsonl", 50, {"system", "user", "assistant", "tool"}),
        ("tools/glaive_toolcall_en_demo.json", 300, {"user", "assistant", "tool"}),
    ],
)
def test_all_that_a_file_says_is_read(file, count, roles, record_property):
    if not SHARED.is_dir():
        pytest.skip("shared/data is not there")
    source = JsonlSource(str(SHARED / file))
    found = 0
    seen = set()
    for row in source.rows():
        said = conversation(row)
        spoken = json.dumps([said.messages, said.tools])
        for key in ("instruction", "input", "output", "prompt", "response"):
            assert json.dumps(row.get(key, ""))[1:-1] in spoken
        seen |= {message["role"] for message in said.messages}
        assert said.unread == () and any(said.learned)
        assert (said.tools is not None) == (row.get("tools", "[]") != "[]")
        found += 1
    record_property(f"rows of {file}", found)
    assert (found, seen) == (count, roles)


def test_questions_and_answers_are_read_by_their_columns(record_property):
    if not SHARED.is_dir():
        pytest.skip("shared/data is not there")
    source = JsonlSource(str(SHARED / "gsm8k/test.jsonl"), {"question": "prompt", "answer": "completion"})
    plain = JsonlSource(str(SHARED / "gsm8k/test.jsonl"))
    found = [(conversation(row).messages, was) for row, was in zip(source.rows(), plain.rows(), strict=True)]
    assert all(said == [user(was["question"]), assistant(was["answer"])] for said, was in found)
    record_property("rows of gsm8k", len(found))
    assert len(found) == 1319

"""What a template leaves out is noticed also where the same letters stand elsewhere in its text."""

from __future__ import annotations

from typing import Any

import pytest
from row_samples import CALL, SCHEMA, assistant, system, user
from template_corpus import CHATML, tokenizer_for, tokenizer_of

from lnlit.data.chat import ChatEncoder
from lnlit.errors import UserError

# Calls are written, and nobody says which tools there are.
ONLY_CALLS = """{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\n' + (m.content or '') -}}
{%- for c in m.tool_calls or [] -%}{{- '<tool_call>' + c.function | tojson + '</tool_call>' -}}{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""


@pytest.mark.parametrize(
    ("template", "message", "lost"),
    [
        # letters of <|eot_id|>, of <|im_end|> and of <|end_of_text|>
        ("llama31", {**assistant("Yes."), "reasoning_content": "t"}, r"the thought \(t\)"),
        ("chatml", {**assistant("Yes."), "reasoning_content": "end"}, r"the thought \(end\)"),
        ("granite", {**assistant("Yes."), "reasoning_content": "text"}, r"the thought \(text\)"),
        ("nemotron_super_v1", assistant("<think>I</think>Yes."), r"the thought \(I\)"),
        ("qwen3", assistant("Sure. <think>Hm.</think>Yes."), r"the text before the thought \(Sure\.\)"),
        ("r1_distill_old", assistant("Sure. <think>Hm.</think>Yes."), r"the text before the thought|the thought"),
    ],
)
def test_nothing_that_a_turn_says_is_taken_for_a_part_of_the_template(template, message, lost):
    with pytest.raises(UserError, match=f"message 2: the chat template leaves out .*{lost}"):
        ChatEncoder(tokenizer_for(template)).encode({"messages": [user("Why?"), message]})


def test_what_stands_before_a_thought_is_learned_where_the_template_writes_it():
    encoder = ChatEncoder(tokenizer_for("chatml"))
    document = encoder.encode({"messages": [user("Why?"), assistant("Sure. <think>Hm.</think>Yes.")]})
    learned = [token for token, mark in zip(document.tokens, document.loss_mask, strict=True) if mark]
    assert encoder.tokenizer.decode(learned) == "Sure. <think>Hm.</think>Yes.<|im_end|>"


def test_a_tool_that_only_a_call_names_is_not_shown():
    encoder = ChatEncoder(tokenizer_of(ONLY_CALLS, "bytes", CHATML, eos_token="<|im_end|>"))
    called: dict[str, Any] = {"messages": [user("Oslo?"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]}
    assert any(encoder.encode(called).loss_mask)
    for read in (encoder.encode, encoder.prompt):
        with pytest.raises(UserError, match=r"the model would never see it: the tool weather.*tools: null"):
            read({**called, "tools": [SCHEMA]})
    shows = ChatEncoder(tokenizer_for("ours/chatml"))
    assert any(shows.encode({**called, "tools": [SCHEMA]}).loss_mask)


USERS_ALONE = """{{- '<|im_start|>system\nToday is 26 Jul 2024.<|im_end|>\n' -}}
{%- for m in messages if m.role in ['user', 'assistant'] -%}
{{- '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""


@pytest.mark.parametrize(
    ("messages", "lost"),
    [
        ([user("How many?"), assistant("I look."), {"role": "tool", "content": "2"}, assistant("Two.")], "tool"),
        ([user("How many?"), assistant("I look."), {"role": "tool", "content": "13"}, assistant("It is 13.")], "tool"),
        ([system("Be brief."), user("Be brief. Why?"), assistant("So.")], "system"),
    ],
)
def test_what_another_says_too_is_not_taken_for_shown(messages, lost):
    encoder = ChatEncoder(tokenizer_of(USERS_ALONE, "bytes", CHATML, eos_token="<|im_end|>"))
    with pytest.raises(UserError, match=rf"the model would never see it: message \d, of the {lost} \([^\ufdd3]*\)"):
        encoder.encode({"messages": messages})


def test_a_variable_that_the_template_lacks_is_refused_and_one_of_nothing_is_not():
    row = {"messages": [user("Why?"), assistant("Because.")]}
    plain, switched = ChatEncoder(tokenizer_for("llama31")), ChatEncoder(tokenizer_for("qwen3"))
    for key in ({"enable_thinking": False}, {"chat_template_kwargs": {"custom_instructions": "Be brief."}}):
        for read in (plain.encode, plain.prompt):
            with pytest.raises(UserError, match=r"the row sets (enable_thinking|custom_instructions) to .*: null"):
                read({**row, **key})
    nothing = {"custom_instructions": "", "python_tools": None, "xml_tools": []}
    assert plain.encode({**row, "chat_template_kwargs": nothing}) == plain.encode(row)
    assert any(switched.encode({**row, "enable_thinking": False}).loss_mask)

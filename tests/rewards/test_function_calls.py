"""Function calls are read in every form, and are right if BFCL's answers say so."""

from __future__ import annotations

from typing import Any

import pytest
from bfcl_answers import BFCL, forms, right, rows, wrong

from lnlit.errors import UserError
from lnlit.interfaces import RewardRequest
from lnlit.rewards.function_calls import FunctionCallsReward
from lnlit.rewards.written_calls import Call, written_calls

TEXT, INTEGER, FLOAT = ({"type": kind} for kind in ("string", "integer", "float"))
PLAN = {
    "name": "trip.plan",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": TEXT, "days": INTEGER, "price": FLOAT, "sure": {"type": "boolean"},
            "stops": {"type": "array", "items": TEXT},
            "who": {"type": "dict", "properties": {"name": TEXT, "age": INTEGER}},
            "at": {"type": "tuple", "items": FLOAT},
        },
        "required": ["city"],
    },
}  # fmt: skip


def score(text: str, *expected: dict[str, Any], functions: Any = (PLAN,)) -> float:
    row = {"function": list(functions), "ground_truth": [{"trip.plan": each} for each in expected]}
    return FunctionCallsReward().score(RewardRequest([], text, False, row))


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<TOOLCALL>[f(a=1), g.h()]</TOOLCALL>", [Call("f", {"a": 1}), Call("g.h", {})]),
        ('<TOOLCALL>[{"name": "f", "arguments": {"a": null}}]', [Call("f", {"a": None})]),
        ('<tool_call>{"name": "f"}</tool_call> <tool_call>{"name": "g"}</tool_call>', [Call("f", {}), Call("g", {})]),
        ("<tool_call>\n{'name': 'f', 'arguments': {'a': True}}\n</tool_call>", [Call("f", {"a": True})]),
        ('<tool_call>```json\n{"name": "f"}\n```</tool_call>', [Call("f", {})]),
        ('<function=f>{"a": 1}</function>', [Call("f", {"a": 1})]),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', [Call("f", {"a": 1})]),
        ('{"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}', [Call("f", {})]),
        ("f(a=-1, b=[1, (2,)], c={'d': 2*3}, e=today, g=h(1), i=true)",
         [Call("f", {"a": -1, "b": [1, (2,)], "c": {"d": 6}, "e": "today", "g": "h(1)", "i": True})]),
        ("f(a=1)\ng(b=2)", [Call("f", {"a": 1}), Call("g", {"b": 2})]),
        ('{"name": "f", "type": "function", "arguments": null}', [Call("f", {})]),
        ('For example:\n```json\n{"name": "Ada", "born": 1815}\n```', []),
        ("[]", []),
        ("<TOOLCALL>[]</TOOLCALL>", []),
        ("None of them can: f(a=1) wants a number.", []),
        ("", []),
        ("<TOOLCALL>call f</TOOLCALL>", None),
        ("<TOOLCALL>[f(1)]</TOOLCALL>", None),
        ("<tool_call>{\"name\": 3}</tool_call>", None),
        ("<TOOLCALL>[f(a=1), 3]</TOOLCALL>", None),
        ("<TOOLCALL>" + "[" * 100_000, None),
        ("[" * 100_000, []),
        ("f(a=" + "(" * 100_000, []),
    ],
)  # fmt: skip
def test_calls_are_read_in_every_form(text, calls):
    assert written_calls(text) == calls


@pytest.mark.parametrize(
    ("arguments", "expected", "value"),
    [
        ("city='Rome'", {"city": ["Roma", "Rome"]}, 1),
        ("city='st. john-S'", {"city": ["St John's"]}, 0),
        ("city='new york, ny'", {"city": ["New York NY"]}, 1),
        ("city='Rome', days=3", {"city": ["Rome"], "days": ["", 3]}, 1),
        ("city='Rome'", {"city": ["Rome"], "days": ["", 3]}, 1),
        ("city='Rome'", {"city": ["Rome"], "days": [3]}, 0),
        ("city='Rome', days=3.0", {"city": ["Rome"], "days": [3]}, 0),
        ("city='Rome', days='3'", {"city": ["Rome"], "days": [3]}, 0),
        ("city='Rome', price=3", {"city": ["Rome"], "price": [3.0]}, 1),
        ("city='Rome', sure=True", {"city": ["Rome"], "sure": [True]}, 1),
        ("city='Rome', sure=1", {"city": ["Rome"], "sure": [True]}, 0),
        ("city='Rome', days=True", {"city": ["Rome"], "days": [1]}, 0),
        ("city='Rome', stops=['pisa']", {"city": ["Rome"], "stops": [["Pisa"], ["Siena"]]}, 1),
        ("city='Rome', stops=['Siena', 'Pisa']", {"city": ["Rome"], "stops": [["Pisa", "Siena"]]}, 0),
        ("city='Rome', stops=('Pisa',)", {"city": ["Rome"], "stops": [["Pisa"]]}, 0),
        ("city='Rome', at=(1, 2)", {"city": ["Rome"], "at": [[1.0, 2.0]]}, 1),
        ("city='Rome', who={'name': 'al'}", {"city": ["Rome"], "who": [{"name": ["Al", "Bo"], "age": ["", 3]}]}, 1),
        ("city='Rome', who={'name': 'al'}", {"city": ["Rome"], "who": [{"name": ["Al"], "age": [3]}]}, 0),
        ("city='Rome', who={'name': ['Al', 'Bo']}", {"city": ["Rome"], "who": [{"name": ["Al", "Bo"]}]}, 0),
        ("city='Rome', stops=[]", {"city": ["Rome"], "stops": []}, 1),
        ("days=3", {"city": ["", "Rome"], "days": [3]}, 0),  # the schema requires it
    ],
)  # fmt: skip
def test_arguments_need_the_right_name_type_and_value(arguments, expected, value):
    assert score(f"<TOOLCALL>[trip.plan({arguments})]</TOOLCALL>", expected) == value
    assert score(f"<think>trip.plan(city='Oslo')</think>[trip.plan({arguments})]", expected) == value


def test_calls_match_in_any_order_even_where_one_fits_two():
    either, rome = {"city": ["Rome", "Oslo"]}, {"city": ["Rome"]}
    calls = "[trip.plan(city='Rome'), trip.plan(city='Oslo')]"
    assert score(calls, either, rome) == score(calls, rome, either) == 1
    assert score("[trip.plan(city='Oslo'), trip.plan(city='Oslo')]", either, rome) == 0
    assert score("[trip.plan(city='Rome')]", either, rome) == 0


def test_it_can_be_right_to_call_nothing_or_anything():
    assert score("It rains.") == 1
    assert score("[trip.plan(city='Rome')]") == score("<TOOLCALL>trip!</TOOLCALL>") == 0
    nothing = {"function": [], "ground_truth": []}  # a few rows of BFCL offer no function
    assert FunctionCallsReward().score(RewardRequest([], "I cannot.", False, nothing)) == 1
    row = {"function": [PLAN], "ground_truth": None}
    any_call = [FunctionCallsReward().score(RewardRequest([], text, False, row)) for text in ("[trip.plan()]", "[f()]")]
    assert any_call == [1, 0]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "function must be a list of schemas"),
        ({"function": [{"parameters": {}}]}, "function must be a list of schemas"),
        ({"function": [PLAN]}, "ground_truth must be null or a list .* got nothing"),
        (
            {"function": [PLAN], "ground_truth": [{"trip.plan": {"city": "Rome"}}]},
            "ground_truth must be null or a list",
        ),
        (
            {"function": [PLAN], "ground_truth": [{"trip.go": {}}]},
            "calls 'trip.go', none of the functions",
        ),
    ],
)
def test_a_row_that_nothing_can_be_judged_by_is_told(row, says):
    with pytest.raises(UserError, match=says):
        FunctionCallsReward().check_row(row)


@pytest.mark.data
@pytest.mark.skipif(not BFCL.is_dir(), reason="needs ../shared/data/bfcl")
def test_every_right_answer_of_bfcl_is_right_and_no_changed_one():
    reward, answers, changes = FunctionCallsReward(), 0, 0
    for row in rows():
        for text in {*forms(right(row)).values(), *(forms(right(row, take))["json"] for take in (1, 2, 9))}:
            answers += 1
            assert reward.score(RewardRequest([], text, False, row)) == 1, (row["id"], text)
        for what, calls in wrong(row):
            changes += 1
            assert reward.score(RewardRequest([], forms(calls)["json"], False, row)) == 0, (row["id"], what)
    assert answers > 20_000 and changes > 50_000

"""A reward for calling the right functions with the right arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.errors import UserError, shown
from lnlit.interfaces import Reward, RewardRequest
from lnlit.rewards.written_calls import Call, written_calls
from lnlit.thinking import answer_of

#: What does not tell two texts apart, as in "April 1, 2024" and "april 1 2024".
_IGNORED = re.compile(r"[ ,./\-_*^]")
_WITH_A_POINT = ("float", "number", "any")


class FunctionCallsReward(Reward):
    """1 where the answer after the thinking makes exactly the row's calls, in any order, else 0. It is the check of
    BFCL (Berkeley Function Calling Leaderboard) by syntax tree: nothing is called.

    A row is BFCL's: `function`, a list of JSON schemas, and `ground_truth`, a list of calls such as `{"weather":
    {"city": ["Rome", "Roma"], "unit": ["", "C"]}}` with all values that are right, of which "" stands for leaving the
    argument out. With an empty `ground_truth` it is right to call nothing; with null, to call any of the functions.

    Arguments need the right name, type and value. Texts are compared without case, spaces and `,./-_*^`; a whole
    number may stand where the schema asks for a float, but not the other way round. Where the schema and `ground_truth`
    differ, as they do in a few rows of BFCL, the latter counts. `written_calls` says in which forms calls are read.
    """

    def score(self, request: RewardRequest) -> float:
        self.check_row(request.row)
        calls, expected = written_calls(answer_of(request.completion)), request.row["ground_truth"]
        if calls is None:
            return 0.0
        schemas = {schema["name"]: schema for schema in request.row["function"]}
        if expected is None:
            return float(bool(calls) and all(call.name in schemas for call in calls))
        return float(len(calls) == len(expected) and _match(calls, expected, schemas))

    def final_answer(self, completion: str) -> str | None:
        answer = answer_of(completion)
        calls = written_calls(answer)
        if not calls:
            return "no call" if calls == [] and answer.strip() else None
        return "\n".join(sorted(json.dumps(call, sort_keys=True, default=str) for call in calls))

    def check_row(self, row: Mapping[str, Any]) -> None:
        schemas, expected = row.get("function"), row.get("ground_truth", _MISSING)
        if not isinstance(schemas, list) or not all(map(_is_schema, schemas)):
            raise UserError(
                "function_calls: the row's function must be a list of schemas with name and parameters, got "
                f"{shown(schemas)}"
            )
        if expected is not None and not (isinstance(expected, list) and all(map(_is_expected, expected))):
            said = "nothing" if expected is _MISSING else shown(expected)
            raise UserError(
                "function_calls: the row's ground_truth must be null or a list of {function: {argument: [values]}}, "
                f"got {said}"
            )
        names = [schema["name"] for schema in schemas]
        if unknown := [name for call in expected or () for name in call if name not in names]:
            raise UserError(f"function_calls: ground_truth calls {unknown[0]!r}, none of the functions {names}")


_MISSING = object()


def _is_schema(schema: Any) -> bool:
    return (
        isinstance(schema, Mapping)
        and isinstance(schema.get("name"), str)
        and isinstance(schema.get("parameters", {}), Mapping)
    )


def _is_expected(call: Any) -> bool:
    if not isinstance(call, Mapping) or len(call) != 1:
        return False
    (arguments,) = call.values()
    return isinstance(arguments, Mapping) and all(isinstance(values, list) for values in arguments.values())


def _match(calls: Sequence[Call], expected: Sequence[Mapping[str, Any]], schemas: Mapping[str, Any]) -> bool:
    """True if each call can be paired with an expected one that it agrees with."""
    if not calls:
        return True
    first, *others = calls
    return any(
        _agrees(first, one, schemas) and _match(others, [*expected[:at], *expected[at + 1 :]], schemas)
        for at, one in enumerate(expected)
    )


def _agrees(call: Call, expected: Mapping[str, Any], schemas: Mapping[str, Any]) -> bool:
    ((name, arguments),) = expected.items()
    if call.name != name:
        return False
    parameters = schemas[name].get("parameters", {})
    kinds, required = parameters.get("properties") or {}, parameters.get("required") or []
    # Some answers say of an argument that the schema requires that it may be left out, and nothing else.
    needed = {
        key
        for key, values in arguments.items()
        if "" not in values or (key in required and any(value != "" for value in values))
    }
    return needed <= call.arguments.keys() <= arguments.keys() and all(
        _is_one_of(value, arguments[key], kinds.get(key) or {}) for key, value in call.arguments.items()
    )


def _is_one_of(value: Any, values: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    if not values:  # in two rows of BFCL, where the question asks for an empty list
        return value == []
    return any(_is(value, each, schema) for each in values)


def _is(value: Any, right: Any, schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    if isinstance(right, bool) or right is None:
        return value is right
    if isinstance(right, str):
        return isinstance(value, str) and _plain(value) == _plain(right)
    if isinstance(right, int | float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and value == right and (type(value) is type(right) or kind in _WITH_A_POINT)
    if isinstance(right, list):
        is_list = isinstance(value, list) or (kind == "tuple" and isinstance(value, tuple))
        items = schema.get("items") or {}
        return (
            is_list and len(value) == len(right) and all(_is(*pair, items) for pair in zip(value, right, strict=True))
        )
    if not isinstance(value, Mapping) or not value.keys() <= right.keys():
        return False
    kinds = schema.get("properties") or {}
    optional = {key for key, values in right.items() if isinstance(values, list) and "" in values}
    return right.keys() - value.keys() <= optional and all(
        # A dictionary has all right values of a key, and one inside it the only one.
        _is_one_of(value[key], values if isinstance(values := right[key], list) else [values], kinds.get(key) or {})
        for key in value
    )


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')

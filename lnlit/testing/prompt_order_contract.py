"""The contract of prompt orders, as a function for a test to call.

    from lnlit.testing.prompt_order_contract import check_prompt_order

    def test_contract():
        check_prompt_order(lambda: MyOrder())

Raises AssertionError naming the order and the broken promise.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from lnlit.errors import UserError
from lnlit.interfaces import PromptOrder
from lnlit.testing.promises import expect

#: Twelve prompts, all different, of four pass rates.
ROWS = [{"input": "?" * (1 + 5 * at % 12), "pass_rate": (at % 4) / 4, "samples": 8} for at in range(12)]
_ROLLOUTS, _PROMPTS = 6, 4


def check_prompt_order(make: Callable[[], PromptOrder]) -> None:
    """Checks an order built by `make` over two epochs of a few prompts."""
    label = type(make()).__name__
    order = _started(make)
    taken, states = [], []
    for rollout in range(_ROLLOUTS):
        taken.append(order.take(_PROMPTS, rollout))
        states.append(json.dumps(order.state_dict()))
    for rollout, found in enumerate(taken):
        expect(len(found) == _PROMPTS, label, f"{len(found)} prompts instead of {_PROMPTS}")
        expect(all(type(at) is int and 0 <= at < len(ROWS) for at in found), label, f"{found} are no indices of rows")
        expect(len({*found}) == len(found), label, f"a prompt twice in rollout {rollout}: {found}")
    again = _started(make)
    expect([again.take(_PROMPTS, at) for at in range(_ROLLOUTS)] == taken, label, "the same seed, other prompts")
    for done, state in enumerate(states[:-1], start=1):
        resumed = _started(make)
        resumed.load_state_dict(json.loads(state))
        rest = [resumed.take(_PROMPTS, at) for at in range(done, _ROLLOUTS)]
        expect(rest == taken[done:], label, f"resumed after {done} rollouts, other prompts")
    try:
        make().start([], 0, _ROLLOUTS)
    except UserError:
        return
    raise AssertionError(f"{label}: starts without a prompt; that is a UserError")


def _started(make: Callable[[], PromptOrder]) -> PromptOrder:
    order = make()
    order.start(ROWS, 3, _ROLLOUTS)
    return order

from __future__ import annotations

from lnlit import registry
from lnlit.testing.task_contract import check_task


def test_contract():
    check_task(lambda: registry.build("task", "example"), [("0 + 0 is 0.", 1.0), ("0 + 0 is 1.", 0.0)])

from __future__ import annotations

from lnlit import registry
from lnlit.testing.prompt_order_contract import check_prompt_order


def test_contract():
    check_prompt_order(lambda: registry.build("prompt_order", "example"))

from __future__ import annotations

from lnlit import AdamW, registry
from lnlit.testing.method_contract import check_method


def test_contract():
    check_method(lambda model: registry.build("method", "example", model, AdamW(1e-3)))

from __future__ import annotations

from lnlit.testing import contracts


def test_contract():
    contracts.check_layer("attention", "example", {"num_heads": 4, "head_dim": 8})

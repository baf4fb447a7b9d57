from __future__ import annotations

from lnlit import registry
from lnlit.testing.algorithm_contract import check_algorithm


def test_contract():
    check_algorithm(registry.build("algorithm", "example"))

from __future__ import annotations

from lnlit.testing.solver_contract import check_solver


def test_contract():
    check_solver("example")

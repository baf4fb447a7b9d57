from __future__ import annotations

from lnlit import registry
from lnlit.testing.rollout_contract import check_rollout_engine


def test_contract():
    check_rollout_engine(lambda: registry.build("rollout", "example"), runs_the_model=False)  # True for a real one

from __future__ import annotations

from lnlit import registry
from lnlit.interfaces import RewardRequest
from lnlit.testing.reward_contract import check_reward


def test_contract():
    polite, rude = (RewardRequest([], text, False) for text in ("Yes, Please.", "Now!"))
    check_reward(lambda: registry.build("reward", "example"), [(polite, 1.0), (rude, 0.0)])

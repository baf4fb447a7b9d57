"""A reward that fails in every way there is. It has a module of its own, for each of its processes has to import it."""

from __future__ import annotations

import math
import time

from lnlit.interfaces import Reward, RewardRequest


class Sorry(Reward):
    """How it fails depends on the prompt."""

    time_limit_s = 0.5

    def score(self, request: RewardRequest) -> float | None:
        match int(request.row["answer"]) % 5:
            case 0:
                raise ValueError("no idea")
            case 1:
                time.sleep(60)
            case 2:
                return None
            case 3:
                return math.nan
        return float(len(request.completion) % 3)

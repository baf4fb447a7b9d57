"""Pays for a right result, whatever way it is written."""

from __future__ import annotations

import logging

from lnlit.errors import UserError
from lnlit.interfaces import Reward, RewardRequest
from lnlit.thinking import answer_of, last_boxed


class MathAnswerReward(Reward):
    """1 where the answer after the thinking equals the row's, as math-verify compares expressions; else 0.

    The last `\\boxed{}` with something in it counts, or else the last expression. Where the row's answer is of several
    values, these may stand in boxes of their own. Needs `pip install lnlit[rl]`.

    Args:
        key: of the expected answer in the prompt's row.
        time_limit_s: for one completion; comparing expressions can take forever.
    """

    def __init__(self, key: str = "answer", time_limit_s: float = 5.0) -> None:
        self.key, self.time_limit_s = key, time_limit_s

    def score(self, request: RewardRequest) -> float:
        try:
            from math_verify import parse, verify
            from sympy import Set, Tuple
        except ImportError as error:
            raise UserError("math-verify is not installed; run: pip install 'lnlit[rl]'") from error
        if self.key not in request.row:
            raise UserError(f"the prompt's row has no {self.key!r}; it has {', '.join(request.row) or 'nothing'}")
        # No time limits of its own, and no warning of it: those are alarm signals, and this process may be killed.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        expected = parse(f"${request.row[self.key]}$", parsing_timeout=0)
        if not expected:
            raise UserError(f"{self.key}: {request.row[self.key]!r} cannot be read as mathematics")
        answer = answer_of(request.completion)
        boxed = last_boxed(answer)
        # Of boxes near each other math-verify makes one set, so a box that counts alone must come alone.
        texts = [f"\\boxed{{{boxed[1]}}}"] if boxed else [answer]
        if boxed and any(isinstance(value, (Set, Tuple)) for value in expected):
            texts.append(answer)
        return float(any(verify(expected, parse(text, parsing_timeout=0), timeout_seconds=0) for text in texts))

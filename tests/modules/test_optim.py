"""The learning-rate schedule of the paper's section 4."""

from itertools import pairwise

import pytest
import torch

from lnlit.errors import UserError
from lnlit.modules.optim import AdamW


def test_ln_ultras_schedule_rises_for_a_tenth_and_ends_at_its_floor():
    optimizer = AdamW(learning_rate=1e-5, final_learning_rate=1e-6, warmup_ratio=0.1)
    rates = [1e-5 * optimizer.factor(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-6) and rates[9] == pytest.approx(1e-5)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(1e-6) and rates[10] == pytest.approx(1e-5)
    assert rates[55] == pytest.approx((1e-5 + 1e-6) / 2, rel=0.02)


def test_constant_schedule_stays_at_the_peak():
    optimizer = AdamW(learning_rate=5e-6, schedule="constant", warmup_ratio=0.0)
    assert {optimizer.factor(step, 10) for step in range(50)} == {1.0}


def test_norms_and_biases_are_not_decayed():
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))]
    groups = AdamW(1e-3, weight_decay=0.1).build(parameters).param_groups
    assert [(g["weight_decay"], [p.dim() for p in g["params"]]) for g in groups] == [(0.1, [2]), (0.0, [1])]


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"final_learning_rate": 1.0}, {"warmup_ratio": 1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=r"optimizer"):
        AdamW(**{"learning_rate": 1e-3, **wrong})

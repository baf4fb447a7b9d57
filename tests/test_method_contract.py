"""The contract of a training method, on ours and on broken ones."""

from __future__ import annotations

import pytest
import torch

from lnlit import SFT, AdamW
from lnlit.testing.method_contract import check_method


def test_sft():
    check_method(lambda model: SFT(model, AdamW(1e-3)))


class Mean(SFT):
    """A mean of each micro-batch, whatever its number of tokens."""

    def training_step(self, batch, batch_idx):
        total, count = self.cross_entropy(batch)
        self.step_loss(total, count)
        return total / count


class Still(SFT):
    def training_step(self, batch, batch_idx):
        total, count = self.cross_entropy(batch)
        return self.step_loss(total * 0, count)


class Noisy(SFT):
    def training_step(self, batch, batch_idx):
        total, count = self.cross_entropy(batch)
        return self.step_loss(total * torch.rand((), generator=NOISE), count)


NOISE = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("method", "promise"),
    [(Mean, "half the size, other weights"), (Still, "change no weight"), (Noisy, "the same seed, other weights")],
)
def test_a_broken_method_is_caught(method, promise):
    with pytest.raises(AssertionError, match=promise):
        check_method(lambda model: method(model, AdamW(1e-3, weight_decay=0.0)))

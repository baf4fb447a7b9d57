from __future__ import annotations

import torch
from torch.nn.functional import gelu

from lnlit import registry
from lnlit.interfaces import LayerContext
from lnlit.specs import RopeSpec
from lnlit.testing import contracts


def test_contract():
    contracts.check_layer("ffn", "example", {"intermediate_size": 48})


def test_the_gate_is_gelu():
    layer = registry.build("ffn", "example", LayerContext(4, 0, RopeSpec(), 16), intermediate_size=4)
    for linear in (layer.gate_proj, layer.up_proj, layer.down_proj):
        torch.nn.init.eye_(linear.weight)
    x_BTD = torch.randn(1, 3, 4)
    assert torch.allclose(layer(x_BTD), gelu(x_BTD) * x_BTD)

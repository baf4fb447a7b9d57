"""Blocks that are computed again in the backward pass give the gradients of blocks that are not."""

from __future__ import annotations

import pytest
import torch

from lnlit.models.build import build_decoder, init_weights
from lnlit.models.compiling import compile_blocks
from lnlit.models.recompute import _Waiting
from lnlit.specs import ModelSpec
from lnlit.testing.tiny import mixed_spec, tiny_spec

TOKENS = torch.arange(48).view(2, 24) % 200


def gradients(
    how, *, spec: ModelSpec | None = None, autocast: bool = False, compiled: bool = False
) -> dict[str, torch.Tensor]:
    decoder = init_weights(build_decoder(spec or mixed_spec(), "cpu", activation_checkpointing=how)).train()
    if compiled and not compile_blocks(decoder, required=False):
        pytest.skip("no compiler")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = decoder(TOKENS, lengths=[24, 10, 14], read_out=lambda x_BTD, head: (x_BTD.float() ** 2).mean())
    loss.backward()
    return {name: parameter.grad for name, parameter in decoder.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("autocast", [False, True])
def test_offloading_changes_no_gradient(autocast: bool):
    expected = gradients(True, autocast=autocast)
    found = gradients("offload", autocast=autocast)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name


def test_compiled_blocks_are_offloaded_too():
    expected, found = (gradients(how, spec=tiny_spec(), compiled=True) for how in (True, "offload"))
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name


def test_what_was_put_away_is_held_nowhere_else():
    tensor = torch.randn(4, 4, requires_grad=True)
    waiting = _Waiting(tensor)
    assert waiting.here() is tensor
    waiting.put_away()
    back = waiting.here()
    assert torch.equal(back, tensor) and back.data_ptr() != tensor.data_ptr()
    assert back.requires_grad and not back.is_leaf

"""What a rank holds of a model, as plans count it."""

from __future__ import annotations

import pytest

from lnlit.models.parts import packed
from lnlit.planning.sizes import Sized, divides
from lnlit.specs import NOOP, BlockSpec, ModelSpec
from lnlit.testing.tiny import attention, swiglu, tiny_spec


def spec(width: int) -> ModelSpec:
    return tiny_spec().replace(layers=(BlockSpec(attention(), swiglu(width)), BlockSpec(NOOP, swiglu(2 * width))))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gate_and_up_as_one_matrix_are_shared_like_two(ranks):
    two, one = (Sized(spec(64), ranks, fuse_gate_up=fused) for fused in (False, True))
    assert one.local == two.local and one.largest == max(two.largest, 2 * 128 * 32)


def test_ranks_that_can_share_two_matrices_but_not_the_one_are_told():
    alone = spec(48).replace(layers=(BlockSpec(NOOP, swiglu(48)),))
    assert divides(alone, 3) is None
    assert divides(packed(alone), 3) == "layers[0].ffn has 16 runs of gate and up channels, which 3 does not divide"

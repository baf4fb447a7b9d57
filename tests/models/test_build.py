"""Wrong arguments anywhere in a spec are found before anything is built."""

import pytest

from lnlit.errors import UserError
from lnlit.models.build import build_decoder, check_spec
from lnlit.specs import BlockSpec, PartSpec, RopeSpec
from lnlit.testing.tiny import attention, swiglu, tiny_spec


def with_part(part: PartSpec, slot: str = "attention"):
    blocks = list(tiny_spec().layers)
    blocks[1] = blocks[1].replace(**{slot: part})
    return tiny_spec().replace(layers=tuple(blocks))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            with_part(PartSpec("gqa", {"num_heads": 4, "num_kv_head": 2, "head_dim": 8})),
            r"spec.layers\[1\].attention.args: unknown key 'num_kv_head'. Did you mean 'num_kv_heads'\?",
        ),
        (with_part(attention().replace(num_heads="4")), r"layers\[1\].attention.args.num_heads: expected int, got '4'"),
        (with_part(PartSpec("swiglu", {}), "ffn"), r"layers\[1\].ffn.args: 'swiglu' needs 'intermediate_size'"),
        (with_part(PartSpec("swigl", {}), "ffn"), r"layers\[1\].ffn.type: unknown ffn 'swigl'. Did you mean 'swiglu'"),
        (
            tiny_spec().replace(rope=RopeSpec(1e4, PartSpec("yarn", {}))),
            r"spec.rope.scaling: unknown rule 'yarn'. Allowed: llama3, linear",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_its_path(spec, message):
    with pytest.raises(UserError, match=message):
        check_spec(spec)


@pytest.mark.parametrize(
    ("part", "slot", "message"),
    [
        (attention(3), "attention", r"num_heads \(4\) must be a positive multiple of num_kv_heads \(3\)"),
        (attention().replace(head_dim=7), "attention", "head_dim must be even"),
        (swiglu(0), "ffn", "intermediate_size must be positive, got 0; use noop"),
    ],
)
def test_an_impossible_size_is_refused(part, slot, message):
    with pytest.raises(UserError, match=message):
        build_decoder(with_part(part, slot))


def test_a_block_can_be_swapped_by_replace():
    assert with_part(swiglu(16), "ffn").layers[1] == BlockSpec(attention(), swiglu(16))

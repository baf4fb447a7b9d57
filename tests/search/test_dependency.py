"""The block-dependency matrix against its definition, and the greedy windows on matrices worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from lnlit.errors import UserError
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.models.lineage import child_spec, child_weights
from lnlit.search.dependency import Dependency, block_dependency, parallel_windows
from lnlit.specs import NOOP, BlockSpec
from lnlit.testing.tiny import attention, mixed_spec, swiglu, tiny_decoder, tiny_spec


def outputs(decoder, tokens) -> list[torch.Tensor]:
    """The residual stream before each block and after the last, by hooks on a plain forward pass."""
    seen = []
    hooks = [block.register_forward_hook(lambda _, args, out: seen.extend((args[0], out))) for block in decoder.layers]
    decoder(tokens)
    for hook in hooks:
        hook.remove()
    return [*seen[::2], seen[-1]]


def without(decoder, index):
    """The decoder with one layer taken out, built as a model of its own."""
    from lnlit.models.build import build_decoder
    from lnlit.models.weights import canonical_weights, fill

    lineage = tuple((i,) for i in range(len(decoder.spec.layers)) if i != index)
    child = build_decoder(child_spec(decoder.spec, lineage), "cpu")
    fill(child, child_weights(decoder.spec, lineage, canonical_weights(decoder)), "child")
    return child


@torch.no_grad()
def test_the_matrix_is_its_definition():
    decoder = tiny_decoder(mixed_spec())
    tokens = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(1))
    found = block_dependency(LayerwiseDecoder(decoder), tokens, rows_at_once=2)
    assert found.layers == (0, 1, 2, 3, 5) and found.tokens == 36  # layer 4 holds nothing
    states = outputs(decoder, tokens)
    for i, removed in enumerate(found.layers):
        others = outputs(without(decoder, removed), tokens)
        for j, layer in enumerate(found.layers):
            expected = 0.0
            if layer > removed:  # one layer fewer stands before it
                update, other = states[layer + 1] - states[layer], others[layer] - others[layer - 1]
                expected = 1 - cosine_similarity(update, other, dim=-1).mean().item()
            assert found.matrix[i][j] == pytest.approx(expected, abs=1e-5)
    for j, layer in enumerate(found.layers):
        x, h = states[layer], states[layer + 1] - states[layer]
        assert found.change[j] == pytest.approx(1 - cosine_similarity(x, x + h, dim=-1).mean().item(), abs=1e-5)
        assert found.size[j] == pytest.approx((h.norm(dim=-1) / x.norm(dim=-1)).mean().item(), rel=1e-4)
        assert found.novelty[j] == pytest.approx(1 - cosine_similarity(x, h, dim=-1).mean().item(), abs=1e-5)


def test_some_layers_alone_give_the_same_entries_and_stop_early():
    decoder = tiny_decoder(tiny_spec().replace(layers=(BlockSpec(attention(), swiglu()),) * 5))
    tokens = torch.randint(0, 256, (2, 8))
    whole = block_dependency(LayerwiseDecoder(decoder), tokens)
    calls = []
    for index, block in enumerate(decoder.layers):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    part = block_dependency(LayerwiseDecoder(decoder), tokens, layers=[3, 1])
    assert part.layers == (1, 3)
    assert part.matrix[0][1] == pytest.approx(whole.matrix[1][3], abs=1e-6)
    assert part.matrix[0][0] == part.matrix[1][0] == part.matrix[1][1] == 0.0
    assert calls == [0, 1, 2, 2, 3, 3]


def test_a_layer_without_weights_is_refused():
    with pytest.raises(UserError, match="layer 4 is absent or has no weights"):
        block_dependency(
            LayerwiseDecoder(tiny_decoder(mixed_spec())), torch.zeros(1, 4, dtype=torch.long), layers=[1, 4]
        )
    with pytest.raises(UserError, match="no layers to compare"):
        block_dependency(LayerwiseDecoder(tiny_decoder(mixed_spec())), torch.zeros(1, 4, dtype=torch.long), layers=[])


def upper(size: int, entries: dict[tuple[int, int], float], rest: float = 0.5) -> Dependency:
    rows = [[entries.get((i, j), rest) if j > i else 0.0 for j in range(size)] for i in range(size)]
    empty = (0.0,) * size
    return Dependency(tuple(range(size)), tuple(map(tuple, rows)), empty, empty, empty, 1)


def test_windows_are_greedy_by_largest_then_sum_without_overlaps():
    spec = tiny_spec().replace(layers=(BlockSpec(attention(), swiglu()),) * 6)
    # (2, 3) is least dependent; (1, 2) and (3, 4) overlap it; (0, 1) ties with (4, 5), which has no other entries.
    found = parallel_windows(upper(6, {(2, 3): 0.1, (1, 2): 0.2, (3, 4): 0.2}), spec, size=2)
    assert [window.layers for window in found] == [(2, 3), (0, 1), (4, 5)]
    assert (found[0].largest, found[0].total) == (0.1, 0.1)
    three = parallel_windows(upper(6, {(3, 4): 0.1, (0, 1): 0.2}), spec, size=3)
    assert [window.layers for window in three] == [(2, 3, 4)]  # equal largest 0.5; the smaller sum wins


def test_windows_hold_attention_only_and_step_over_empty_layers():
    full = BlockSpec(attention(), swiglu())
    layers = (full, BlockSpec(NOOP, NOOP), full, BlockSpec(NOOP, swiglu()), full, full)
    spec = tiny_spec().replace(layers=layers)
    found = parallel_windows(
        block_dependency(LayerwiseDecoder(tiny_decoder(spec)), torch.zeros(1, 4, dtype=torch.long)), spec, size=2
    )
    assert {window.layers for window in found} == {(0, 2), (4, 5)}

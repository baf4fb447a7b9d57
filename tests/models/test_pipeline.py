"""Padding for pipeline stages: equal depth, even weights, dummies first, the same logits."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from lnlit.checkpoint.decilm import DeciLMCheckpoint
from lnlit.checkpoint.readers import obstacles
from lnlit.errors import UserError
from lnlit.models.build import build_decoder, parameter_count
from lnlit.models.lineage import EMPTY, child_spec, child_weights
from lnlit.models.pipeline import pad_for_pipeline, split_evenly
from lnlit.models.weights import canonical_weights, fill
from lnlit.specs import NOOP, BlockSpec
from lnlit.testing.tiny import attention, mixed_spec, swiglu, tiny_decoder, tiny_spec

ULTRA = Path(__file__).parents[3] / "shared" / "data" / "nemotron_configs" / "ultra-253b.config.json"


def groups_of(layers, stages: int) -> list:
    depth, rest = divmod(len(layers), stages)
    assert rest == 0
    return [layers[at : at + depth] for at in range(0, len(layers), depth)]


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@torch.no_grad()
def test_a_padded_model_gives_the_same_logits_in_equal_groups_with_dummies_first(stages):
    decoder = tiny_decoder(mixed_spec())
    lineage = pad_for_pipeline(decoder.spec, stages)
    for group in groups_of(lineage, stages):
        assert group[-1] != () and list(group) == sorted(group, key=lambda made_of: made_of != ())
    padded = build_decoder(child_spec(decoder.spec, lineage), "cpu")
    fill(padded, child_weights(decoder.spec, lineage, canonical_weights(decoder)), "padded")
    tokens = torch.randint(0, 256, (2, 16))
    assert torch.equal(padded(tokens), decoder(tokens))


def test_the_first_filled_layer_stays_first_so_stock_vllm_serves_what_it_served():
    wide = BlockSpec(attention(), swiglu(512))
    small = BlockSpec(attention(), swiglu(16))
    spec = tiny_spec().replace(layers=(wide, small, small, BlockSpec(NOOP, swiglu(48)), small))
    padded = child_spec(spec, pad_for_pipeline(spec, 2))
    assert padded.layers[0] == EMPTY and next(b for b in padded.layers if b != EMPTY) == wide
    assert obstacles(spec)["vLLM"] == obstacles(padded)["vLLM"] == []
    bad = spec.replace(layers=spec.layers[3:])
    assert obstacles(bad)["vLLM"] and obstacles(child_spec(bad, pad_for_pipeline(bad, 1)))["vLLM"]


def test_padding_again_replaces_the_padding():
    spec = mixed_spec()
    once = child_spec(spec, pad_for_pipeline(spec, 3))
    again = child_spec(once, pad_for_pipeline(once, 1))
    assert again.layers == tuple(block for block in spec.layers if block != EMPTY)


@pytest.mark.parametrize("stages", [0, 6])
def test_more_stages_than_layers_with_weights_are_refused(stages):
    with pytest.raises(UserError, match=r"pipeline_stages: expected 1 to 5.*got " + str(stages)):
        pad_for_pipeline(mixed_spec(), stages)


def test_split_evenly_is_the_best_of_all_splits():
    generator = torch.Generator().manual_seed(0)
    for count, parts in itertools.product((1, 4, 7), (1, 2, 3)):
        if parts > count:
            continue
        sizes = torch.randint(1, 20, (count,), generator=generator).tolist()
        splits = (
            [range(a, b) for a, b in itertools.pairwise((0, *cuts, count))]
            for cuts in itertools.combinations(range(1, count), parts - 1)
        )
        best = min(max(sum(sizes[i] for i in part) for part in split) for split in splits)
        found = split_evenly(sizes, parts)
        assert max(sum(sizes[i] for i in part) for part in found) == best
        assert [i for part in found for i in part] == list(range(count)) and all(found)


@pytest.mark.data
def test_the_released_ultra_is_no_better_balanced(tmp_path):
    """NVIDIA's own 18 groups of 9 layers: without its dummies and padded by us, no stage is heavier."""
    if not ULTRA.is_file():
        pytest.skip(f"{ULTRA} is absent")
    (tmp_path / "config.json").write_text(json.dumps(json.loads(ULTRA.read_text())))
    spec = DeciLMCheckpoint().read_spec(tmp_path)

    def heaviest(spec):
        sizes = [parameter_count(block) for block in build_decoder(spec).layers]
        for end in (0, -1):
            sizes[end] += spec.vocab_size * spec.hidden_size
        return max(sum(group) for group in groups_of(sizes, 18))

    ours = child_spec(spec, pad_for_pipeline(spec, 18))
    assert sum(block != EMPTY for block in spec.layers) == 81 == sum(block != EMPTY for block in ours.layers)
    assert heaviest(ours) <= heaviest(spec)

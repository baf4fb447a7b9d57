"""The one walk through the parent is a plain forward pass, wherever it stops and whatever the batches are."""

from __future__ import annotations

import pytest
import torch

from lnlit.checkpoint.load import StoredLayers, layerwise_decoder
from lnlit.interfaces import TokenBatch
from lnlit.models import layerwise
from lnlit.models.build import block_weights
from lnlit.models.decoder import Decoder
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.search.walk import Walk, parent_steps
from lnlit.testing.tiny import VOCAB_SIZE, mixed_spec, tiny_decoder, tiny_folder

TOKENS = torch.randint(VOCAB_SIZE, (4, 12), generator=torch.Generator().manual_seed(3))


def outputs(decoder: Decoder, *batch: object) -> list[torch.Tensor]:
    """What each block of a plain forward pass gives."""
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        decoder(*batch, on_block=lambda _, x_BTD: seen.append(x_BTD))
    return seen


def test_the_streams_behind_each_layer_are_a_forward_passs():
    decoder = tiny_decoder(mixed_spec()).eval()
    wanted, walk = outputs(decoder, TOKENS), Walk.of_rows(LayerwiseDecoder(decoder), TOKENS.split(3))
    for layer, after in enumerate(wanted):
        if layer % 2:
            walk.seek(2 * layer + 1)  # to stop between a layer's halves changes nothing
        walk.seek(2 * layer + 2)
        torch.testing.assert_close(torch.cat(walk.streams), after, rtol=0, atol=1e-6)
    assert not any(x_BTD.requires_grad for x_BTD in walk.streams)


def test_packed_documents_are_walked_as_the_parent_reads_them():
    decoder, lengths = tiny_decoder(mixed_spec()).eval(), [5, 7, 12, 3, 9, 12]
    positions = torch.cat([torch.arange(length) for length in lengths]).view_as(TOKENS)
    wanted = outputs(decoder, TOKENS, positions, lengths)
    for layer, (step,) in parent_steps(decoder, [TokenBatch(TOKENS, TOKENS, positions, lengths)], [1, 3]):
        torch.testing.assert_close(step.x_BTD, wanted[layer - 1], rtol=0, atol=1e-6)
        torch.testing.assert_close(step.out_BTD, wanted[layer], rtol=0, atol=1e-6)
        for slot in ("attention", "ffn", "block"):
            with torch.no_grad():
                assert torch.equal(step.output(step.block, slot), step.out_BTD)


@pytest.mark.parametrize("fits", [True, False])
def test_a_parent_that_is_read_from_disk_is_walked_alike(tmp_path, monkeypatch, fits):
    """With all layers in memory once they were read, or with one at a time."""
    monkeypatch.setattr(layerwise, "free_bytes", lambda device: 2**30 if fits else 1)
    whole = tiny_decoder(mixed_spec()).eval()
    parent = layerwise_decoder(tiny_folder(tmp_path / "model", mixed_spec()), "cpu")
    walk = Walk.of_rows(parent, [TOKENS])
    for layer, after in enumerate(outputs(whole, TOKENS)):
        walk.seek(2 * layer + 1)
        walk.seek(2 * layer + 2)
        assert torch.equal(walk.streams[0], after)
        there = [any(not weight.is_meta for weight in block.parameters()) for block in parent.decoder.layers]
        assert there == [fits and layer >= index != 4 for index in range(6)]  # layer 4 holds nothing


def test_a_layer_is_read_once_while_it_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(layerwise, "free_bytes", lambda device: 1)
    parent = layerwise_decoder(tiny_folder(tmp_path / "model", mixed_spec()), "cpu")
    with parent.layer(1) as block:
        weight = next(block.parameters())
        with parent.layer(1) as again:
            assert again is block and next(again.parameters()) is weight
        assert not weight.is_meta
    assert next(parent.decoder.layers[1].parameters()).is_meta


def test_layers_are_read_in_any_order(tmp_path):
    stored, whole = StoredLayers(tiny_folder(tmp_path / "model", mixed_spec())), tiny_decoder(mixed_spec())
    for layer in (2, 3, 0, 5, 5):
        expected = block_weights(whole.layers[layer])  # type: ignore[arg-type]
        found = stored(layer)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert stored.outer().keys() == {"model.embed_tokens.weight", "model.norm.weight"}

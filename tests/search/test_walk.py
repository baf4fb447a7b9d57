"""The one walk through the parent is a plain forward pass, wherever it stops and whatever the batches are."""

from __future__ import annotations

import torch

from lnlit.interfaces import TokenBatch
from lnlit.models.build import block_weights, build_decoder
from lnlit.models.decoder import Decoder
from lnlit.search.walk import Walk, in_memory, parent_steps
from lnlit.testing.tiny import VOCAB_SIZE, mixed_spec, tiny_decoder

TOKENS = torch.randint(VOCAB_SIZE, (4, 12), generator=torch.Generator().manual_seed(3))


def outputs(decoder: Decoder, *batch: object) -> list[torch.Tensor]:
    """What each block of a plain forward pass gives."""
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        decoder(*batch, on_block=lambda _, x_BTD: seen.append(x_BTD))
    return seen


def test_the_streams_behind_each_layer_are_a_forward_passs():
    decoder = tiny_decoder(mixed_spec()).eval()
    wanted, walk = outputs(decoder, TOKENS), Walk.of_rows(decoder, TOKENS.split(3))
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


def test_a_parent_of_which_one_layer_is_in_memory_is_walked_alike():
    whole = tiny_decoder(mixed_spec()).eval()
    guide = build_decoder(whole.spec)
    guide.embed_tokens.load_state_dict({"weight": whole.embed_tokens.weight.detach()}, assign=True)
    walk = Walk.of_rows(guide, [TOKENS])
    guide.embed_tokens.to("meta")
    for layer, after in enumerate(outputs(whole, TOKENS)):
        weights = block_weights(whole.layers[layer])  # type: ignore[arg-type]
        with in_memory(guide, layer, weights, like=walk.streams[0]):
            walk.seek(2 * layer + 2)
        assert torch.equal(walk.streams[0], after)
        assert all(parameter.is_meta for parameter in guide.layers.parameters())

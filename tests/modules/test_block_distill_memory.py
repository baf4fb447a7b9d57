"""Blockwise local distillation on several ranks and on rows at a time: less memory each, the same library."""

from __future__ import annotations

import shutil

import lightning as L
import pytest
import torch
from distillery import MIXED, STEPS, same, weights
from safetensors.torch import load_file
from torch import Tensor

from lnlit.interfaces import IGNORE, TokenBatch
from lnlit.modules import block_distill
from lnlit.modules.block_distill import BlockDistill
from lnlit.modules.micro_batches import real_tokens, split_rows
from lnlit.search.choice import At
from lnlit.search.library import Library


@pytest.mark.parametrize("run", ["whole", "grouped"])
def test_two_ranks_train_the_same_library_as_one(two_ranks, alone, run):
    assert same(weights(Library.open(two_ranks / run)), weights(alone))


def test_two_ranks_train_pairs_in_bf16_as_one_does(two_ranks, distillery):
    one = distillery.fit("out", trainer={"max_steps": STEPS, "precision": "bf16-mixed"}, **MIXED)
    two = Library.open(two_ranks / "mixed")
    assert same(weights(two), weights(one))
    for name in ("kv2+i16", "kv1+i48"):
        assert same(two.weights(At(1, "block", name)), one.weights(At(1, "block", name)))
        assert two.layers[1].pairs[name] == one.layers[1].pairs[name]


def test_each_of_two_ranks_holds_half_of_the_parent(two_ranks, tiny_parent):
    everything = sum(t.numel() for t in load_file(tiny_parent / "model.safetensors").values())
    held = [int((two_ranks / f"held-{rank}.txt").read_text()) for rank in (0, 1)]
    assert sum(held) == everything and max(held) < 0.6 * everything


def test_each_of_two_ranks_runs_the_parent_on_its_own_rows_only(two_ranks):
    """A row of 64 tokens in each step."""
    assert [int((two_ranks / f"ran-{rank}.txt").read_text()) for rank in (0, 1)] == [STEPS * 64] * 2


def test_a_run_of_two_ranks_goes_on_with_one(two_ranks, distillery, alone):
    shutil.copytree(two_ranks / "stopped-run", distillery.folder / "out-run")
    assert same(weights(distillery.fit("out")), weights(alone))


def test_rows_at_a_time_change_losses_and_gradients_by_rounding_only(distillery):
    found: list[dict[str, Tensor]] = []

    class Watch(L.Callback):
        def on_train_start(self, trainer, pl_module):
            seen: dict[str, Tensor] = {}
            found.append(seen)

            def note(trainee):
                seen.update({f"{trainee.at}/{n}": p.grad.clone() for n, p in trainee.block.named_parameters()})

            pl_module._clip = note
            pl_module._log = seen.update

    for tokens in (64, 128):
        distillery.fit(f"out{tokens}", (Watch(),), {"max_steps": 1}, batch_tokens=tokens)
    one, two = found
    assert one.keys() == two.keys() and not same(one, two)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=1e-6 * float(two[name].abs().max()))


def test_bf16_copies_of_a_candidate_go_before_the_next_one_comes(distillery, monkeypatch):
    events: list[str] = []
    clear, clip = torch.clear_autocast_cache, BlockDistill._clip
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (events.append("cleared"), clear()))
    monkeypatch.setattr(BlockDistill, "_clip", lambda self, t: (events.append(str(t.at)), clip(self, t)))
    distillery.fit("out", trainer={"max_steps": 1, "precision": "bf16-mixed"})
    trained = [index for index, event in enumerate(events) if event != "cleared"]
    assert len(trained) == 10 and all(events[index + 1] == "cleared" for index in trained)


def test_trained_candidates_are_written_layer_by_layer(distillery, monkeypatch):
    held, compose = [], block_distill.trained_layer
    monkeypatch.setattr(
        block_distill, "trained_layer", lambda *of: (held.append({at.layer for at in of[2]}), compose(*of))[1]
    )
    distillery.fit("out", trainer={"max_steps": 1})
    assert held == [{0}, {1}]


def test_a_batch_is_split_with_its_documents():
    tokens = torch.arange(12).view(3, 4)
    pieces = split_rows(TokenBatch(tokens, tokens + 1, tokens + 2, [4, 1, 3, 2, 2]), 8)
    assert [piece.lengths for piece in pieces] == [[4, 1, 3], [2, 2]]
    for field, shift in (("tokens", 0), ("labels", 1), ("positions", 2)):
        assert torch.equal(torch.cat([getattr(piece, field) for piece in pieces]), tokens + shift)
    assert len(split_rows(pieces[0], 3)) == 2


def test_padding_is_no_data():
    batch = TokenBatch(
        torch.zeros(1, 6), torch.tensor([[5, 5, IGNORE, IGNORE, IGNORE, IGNORE]]), torch.zeros(1, 6), [3, 3]
    )
    assert real_tokens(batch).tolist() == [[True] * 3 + [False] * 3]

import random

import pytest
import torch

from lnlit.data.chat import Document
from lnlit.data.packing import collate, pack_best_fit
from lnlit.interfaces import IGNORE


def document(start: int, length: int, learned_from: int) -> Document:
    return Document(list(range(start, start + length)), [index >= learned_from for index in range(length)])


@pytest.mark.parametrize("seed", range(5))
def test_every_document_is_packed_once_and_whole(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(1, 60) for _ in range(500)]
    packs = pack_best_fit(lengths, 100)
    assert sorted(index for pack in packs for index in pack) == list(range(500))
    assert all(sum(lengths[index] for index in pack) <= 100 for pack in packs)
    assert sum(lengths) / (100 * len(packs)) > 0.97


def test_best_fit_prefers_the_fullest_pack_with_room():
    assert pack_best_fit([6, 7, 3, 4], 10) == [[0, 3], [1, 2]]
    assert pack_best_fit([5, 5, 5], 5) == [[0], [1], [2]]
    assert pack_best_fit([], 5) == []


def test_number_of_packs_depends_on_the_lengths_only():
    lengths = [random.Random(1).randint(1, 60) for _ in range(200)]
    counts = {len(pack_best_fit(random.Random(seed).sample(lengths, len(lengths)), 64)) for seed in range(10)}
    assert len(counts) == 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_are_the_next_token_within_the_document(side):
    first, second = document(10, 4, 2), document(20, 3, 1)
    batch = collate([[first, second], []], 10, pad_id=0, padding_side=side)
    pad = [0, 0, 0]
    tokens, labels, positions = (
        [*range(10, 14), *range(20, 23)],
        [-100, 12, 13, -100, 21, 22, -100],
        [0, 1, 2, 3, 0, 1, 2],
    )
    left = side == "left"
    assert batch.tokens[0].tolist() == (pad + tokens if left else tokens + pad)
    assert batch.labels[0].tolist() == ([-100] * 3 + labels if left else labels + [-100] * 3)
    assert batch.positions[0].tolist() == ([0, 1, 2, *positions] if left else [*positions, 0, 1, 2])
    assert batch.lengths == ([3, 4, 3, 10] if left else [4, 3, 3, 10])
    assert (batch.labels[1] == IGNORE).all() and batch.positions[1].tolist() == list(range(10))
    assert all(field.dtype == torch.int64 for field in (batch.tokens, batch.labels, batch.positions))


def test_labels_never_cross_documents():
    rng = random.Random(0)
    documents = [document(1000 * i, rng.randint(1, 20), rng.randint(0, 3)) for i in range(1, 40)]
    packs = pack_best_fit([len(d) for d in documents], 32)
    batch = collate([[documents[i] for i in pack] for pack in packs], 32, pad_id=0)
    assert sum(batch.lengths) == batch.tokens.numel()
    start = 0
    for length in batch.lengths:
        labels = batch.labels.flatten()[start : start + length]
        tokens = batch.tokens.flatten()[start : start + length]
        assert labels[-1] == IGNORE
        learned = labels[:-1] != IGNORE
        assert torch.equal(labels[:-1][learned], tokens[1:][learned])
        start += length

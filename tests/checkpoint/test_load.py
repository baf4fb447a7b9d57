"""Weights into decoders and back: every tensor once, packed parameters, dtypes, sharded over two processes."""

from __future__ import annotations

import os

import pytest
import torch
import torch.multiprocessing as mp
from checkpoint_models import mixed_spec, random_decoder
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lnlit.checkpoint.folder import save_folder
from lnlit.checkpoint.load import load_weights
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.weights import canonical_weights, fill


def saved(out, decoder):
    return save_folder(out, decoder.spec, canonical_weights(decoder), tokenizer_from=None, provenance={})


def test_canonical_weights_are_unpacked_and_load_back_bitwise():
    decoder = random_decoder(mixed_spec())
    weights = dict(canonical_weights(decoder))
    assert weights["model.layers.1.mlp.gate_proj.weight"].shape == (72, 32)
    assert not [name for name in weights if "gate_up_proj" in name]
    other = random_decoder(mixed_spec(), seed=1)
    fill(other, reversed(weights.items()), "memory")
    state = decoder.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_weights_take_the_parameters_dtype(tmp_path):
    decoder = random_decoder(mixed_spec())
    half = build_decoder(mixed_spec(), "cpu", torch.bfloat16)
    load_weights(half, saved(tmp_path / "child", decoder))
    expected = decoder.to(torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in half.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w + w[:1], r"memory: tensor model.embed_tokens.weight comes twice"),
        (lambda w: w[1:], r"1 tensors that the model needs are missing, the first is model.embed_tokens.weight"),
        (lambda w: [*w, ("model.extra", torch.ones(1))], r"tensor model.extra has no place"),
        (lambda w: [(w[0][0], torch.ones(3, 2)), *w[1:]], r"shape \[3, 2\], the model being built expects \[97, 32\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    decoder = random_decoder(mixed_spec())
    with pytest.raises(UserError, match=message):
        fill(decoder, change(list(canonical_weights(decoder))), "memory")


def check_one_rank(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    init_process_group("gloo")
    decoder = build_decoder(mixed_spec())
    for block in decoder.layers:
        fully_shard(block)
    fully_shard(decoder)
    decoder.to_empty(device="cpu")
    load_weights(decoder, folder)
    assert all(isinstance(parameter, DTensor) for parameter in decoder.parameters())
    expected = dict(canonical_weights(random_decoder(mixed_spec())))
    seen = dict(canonical_weights(decoder))
    assert seen.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in seen.items())
    destroy_process_group()


def test_two_fsdp_ranks_hold_the_same_model(tmp_path, meeting_port):
    mp.spawn(check_one_rank, (meeting_port, saved(tmp_path / "child", random_decoder(mixed_spec()))), nprocs=2)

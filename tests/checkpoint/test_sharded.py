"""A sharded checkpoint's folder, read tensor by tensor."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from lnlit.checkpoint.lightning import LightningCheckpoint
from lnlit.checkpoint.sharded import INDEX, REST, ShardedFolder
from lnlit.errors import UserError
from lnlit.models.layout import packed_runs
from lnlit.models.lora import LoRA, add_lora, init_lora
from lnlit.models.weights import canonical_weights
from lnlit.testing.tiny import mixed_spec, tiny_decoder

LORA = LoRA(rank=2, targets=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def decoder():
    decoder = tiny_decoder(mixed_spec())
    add_lora(decoder, LORA)
    for name, value in tiny_decoder(mixed_spec()).state_dict().items():
        decoder.get_parameter(name).data = value
    init_lora(decoder)
    for name, parameter in decoder.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return decoder


@pytest.fixture
def folder(tmp_path, decoder) -> Path:
    """As Lightning writes it: moments beside the weights, and the rest in a file of its own."""
    path = tmp_path / "step-1.ckpt"
    state = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    moments = {"state": {name: {"exp_avg": value} for name, value in state.items()}, "param_groups": [{"lr": 0.1}]}
    dcp.save({"state_dict": state, "optimizer_0": moments}, checkpoint_id=path, no_dist=True)
    said = {"spec": decoder.spec.to_json(), "model": "m", "lora": LORA.to_json(), "packed_runs": packed_runs(decoder)}
    torch.save({"lnlit": said}, path / REST)
    return path


def test_weights_are_the_decoders_with_adapters_merged(folder, decoder):
    found = dict(LightningCheckpoint().weights(folder))
    expected = dict(canonical_weights(decoder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_one_tensor_is_read_at_a_time_and_no_moments(folder, monkeypatch):
    read = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: read.append(args) or load(*args, **kwargs))
    opened = ShardedFolder(folder)
    assert not read
    assert all(name.startswith("decoder.") for name in opened.shapes)
    opened.tensor("decoder.embed_tokens.weight")
    assert len(read) == 1


class Evil:
    def __reduce__(self):
        return print, ("owned",)


def test_an_index_runs_no_code(folder, capsys):
    """torch's reader unpickles whatever is there."""
    (folder / INDEX).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"\.metadata: cannot be read as a checkpoint's index: it names builtins.print"):
        list(LightningCheckpoint().weights(folder))
    assert "owned" not in capsys.readouterr().out


def test_damage_is_told(folder):
    (shard,) = folder.glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=r"step-1\.ckpt: tensor .* cannot be read"):
        list(LightningCheckpoint().weights(folder))
    shard.unlink()
    with pytest.raises(UserError, match=r"cannot be read: .*No such file"):
        list(LightningCheckpoint().weights(folder))
    (folder / INDEX).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as a checkpoint's index"):
        ShardedFolder(folder)

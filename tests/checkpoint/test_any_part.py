"""Any registered part can be saved, exported and read back, whoever else has words for it."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from checkpoint_models import mixed_spec, random_decoder

from lnlit import registry
from lnlit.checkpoint.convert import export_model
from lnlit.checkpoint.folder import save_folder, tell_readers
from lnlit.checkpoint.formats import open_checkpoint, read_spec
from lnlit.interfaces import FeedForwardLayer, LayerContext
from lnlit.models.weights import canonical_weights
from lnlit.specs import ModelSpec, PartSpec


class Squared(torch.nn.Module, FeedForwardLayer):
    """A part that nobody else knows."""

    def __init__(self, context: LayerContext, *, width: int, gain: float = 1.0) -> None:
        super().__init__()
        self.up_proj = torch.nn.Linear(context.hidden_size, width, bias=False)
        self.down_proj = torch.nn.Linear(width, context.hidden_size)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.up_proj(x_BTD).relu() ** 2)


def head_of_another_size() -> ModelSpec:
    first = mixed_spec().layers[5]
    return mixed_spec(layers=(first, first.replace(attention=first.attention.replace(head_dim=12))))


def part_of_a_plugin() -> ModelSpec:
    first = mixed_spec().layers[5]
    return mixed_spec(layers=(first, first.replace(ffn=PartSpec("squared", {"width": 20, "gain": 1.0}))))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (head_of_another_size, r"layers\[1\].attention: .* there is gqa\(.*head_dim=12"),
        (part_of_a_plugin, r"layers\[1\].ffn: 'squared' cannot be written to a transformers folder"),
    ],
)
def test_what_only_lnlit_has_words_for_is_saved_and_says_so(tmp_path, monkeypatch, capsys, make, reason):
    monkeypatch.setattr(registry, "_added", {("ffn", "squared"): Squared})
    decoder = random_decoder(make())
    own = save_folder(tmp_path / "own", decoder.spec, canonical_weights(decoder), tokenizer_from=None, provenance={})
    folder = export_model(own, tmp_path / "again")
    assert read_spec(folder) == decoder.spec
    saved = dict(open_checkpoint(folder).weights(folder))
    assert all(torch.equal(saved.pop(name), tensor) for name, tensor in canonical_weights(decoder))
    assert not saved
    capsys.readouterr()
    tell_readers(folder)
    able, *unable = capsys.readouterr().err.splitlines()
    assert able == "vLLM with lnlit-vllm can run this architecture"
    assert len(unable) == 4 and all(re.search(f"nemotron-nas cannot hold it: {reason}", line) for line in unable)
    with pytest.raises(ValueError, match="model type `lnlit`"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)

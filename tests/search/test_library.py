"""A library folder gives back what was written, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import FeedForwardLayer
from lnlit.models.build import block_weights, build_block, load_block
from lnlit.models.decoder import Decoder
from lnlit.models.parts import short_name
from lnlit.schema import read
from lnlit.search.choice import SLOTS, At, BlockChoice, LayerVariants, Variant
from lnlit.search.library import Library, LibraryWriter, layer_file, layer_to_json
from lnlit.search.space import Candidates
from lnlit.specs import NOOP, PartSpec
from lnlit.testing.tiny import attention, mixed_spec, swiglu, tiny_decoder, tiny_spec
from lnlit.testing.tiny_library import tiny_library


class Nameless(nn.Module, FeedForwardLayer):
    """A plugin's part that says nothing about itself."""

    def __init__(self, context, *, width: int):
        super().__init__()
        self.linear = nn.Linear(context.hidden_size, context.hidden_size)

    def forward(self, x_BTD):
        return self.linear(x_BTD)


@pytest.fixture(autouse=True)
def nameless(monkeypatch) -> None:
    monkeypatch.setitem(registry._added, ("ffn", "nameless"), Nameless)


@pytest.fixture(scope="module")
def parent() -> Decoder:
    return tiny_decoder(mixed_spec()).eval()


@pytest.fixture(scope="module")
def library(parent, tmp_path_factory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("library") / "library", "parent", parent.spec)


@pytest.fixture
def copied(library, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(library.folder, tmp_path / "library"))


def test_names_of_variants():
    ffns = [NOOP, PartSpec("single_linear"), swiglu(48), swiglu(48, fused=True)]
    assert [short_name("ffn", part) for part in ffns] == ["noop", "linear", "i48", "i48"]
    attentions = [NOOP, PartSpec("single_linear"), attention(2)]
    assert [short_name("attention", part) for part in attentions] == ["noop", "linear", "kv2"]
    nameless = PartSpec("nameless", {"width": 8})
    assert short_name("ffn", nameless) == "nameless(width=8)"


def test_the_index_round_trips(library):
    for layer in library.layers:
        assert read(LayerVariants, json.loads(json.dumps(layer_to_json(layer))), "layer") == layer
    assert Library.open(library.folder).layers == library.layers


def test_every_composed_block_loads_and_runs(library, parent):
    x, tokens = torch.randn(1, 4, 32), torch.zeros(1, 4, dtype=torch.long)
    around, rope = parent.block_inputs(tokens, x.dtype)
    for index, layer in enumerate(library.layers):
        own = block_weights(parent.layers[index])
        for a in layer.attention:
            for f in layer.ffn:
                block = build_block(library.spec, index, library.block_spec(index, BlockChoice(a, f)))
                out = load_block(block, library.block_weights(index, BlockChoice(a, f), own))(
                    x, around.layer(index), rope
                )
                assert out.isfinite().all()


def test_the_parents_own_choice_is_the_parents_block_bitwise(library, parent):
    x, tokens = torch.randn(2, 9, 32), torch.zeros(2, 9, dtype=torch.long)
    around, rope = parent.block_inputs(tokens, x.dtype)
    for index, layer in enumerate(parent.layers):
        names = library.layers[index].parent
        assert library.block_spec(index, BlockChoice(*names)) == parent.spec.layers[index]
        block = build_block(library.spec, index, library.block_spec(index, BlockChoice(*names)))
        load_block(block, library.block_weights(index, BlockChoice(*names), block_weights(layer)))
        attend = around.layer(index)
        assert torch.equal(block(x, attend, rope), layer(x, attend, rope))


def test_a_trained_pair_wins_over_its_halves(library, parent):
    own = block_weights(parent.layers[1])
    pair, halves = library.block_weights(1, BlockChoice("kv1", "i24"), own), library.weights(At(1, "attention", "kv1"))
    assert pair.keys() == library.weights(At(1, "block", "kv1+i24")).keys()
    assert not torch.equal(pair["self_attn.q_proj.weight"], halves["self_attn.q_proj.weight"])


def test_a_library_is_not_a_checkpoint_per_variant(built_library):
    """Its size is that of the candidates, and nothing of embedding, head or the parent's own blocks is in it."""
    library = Library.open(built_library)
    candidates = [v for layer in library.layers for s in SLOTS for v in getattr(layer, s).values() if not v.parent]
    stored = sum(layer_file(library.folder, layer).stat().st_size for layer in range(2))
    assert stored < 4 * sum(variant.parameters for variant in candidates) + 2 * 8192  # headers


def test_a_half_built_library_is_refused(copied):
    (copied / "library.json").unlink()
    with pytest.raises(UserError, match=r"half-built library \(6 layers, no library.json\)"):
        Library.open(copied)


def test_a_library_without_a_fingerprint_knows_its_parent_by_the_path(library):
    library.check_parent("parent", library.spec, "any")
    with pytest.raises(UserError, match=r"model: elsewhere is not .* made from parent\. .*name that one"):
        library.check_parent("elsewhere", library.spec, "any")


def test_a_missing_layer_is_named(copied):
    layer_file(copied, 3).unlink()
    with pytest.raises(UserError, match=r"layer-003.safetensors is missing"):
        Library.open(copied)


def test_a_library_without_calibration_says_so(library):
    with pytest.raises(UserError, match=r"calibration.safetensors: cannot be read"):
        library.calibration()


def test_a_truncated_layer_is_named(copied):
    file = layer_file(copied, 1)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"layer-001.safetensors: cannot be read"):
        Library.open(copied).weights(At(1, "ffn", "i24"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2; this lnlit reads format 1"),
        ({"layers": [{"attention": {}}]}, r"library.json: layers\[0\]: the key 'ffn' is missing"),
        ({"layers": []}, "lists 0 layers, its parent has 6"),
        ({"parent_spec": {"hidden": 3}}, "parent_spec: unknown key 'hidden'"),
    ],
)
def test_a_wrong_index_is_refused(copied, change, message):
    data = json.loads((copied / "library.json").read_text())
    (copied / "library.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(UserError, match=message):
        Library.open(copied)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        Library.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a block library, it has no library.json"):
        Library.open(tmp_path)


def test_unknown_names_get_a_hint(library):
    with pytest.raises(UserError, match=r"layer 0: no ffn variant 'i41'. Did you mean 'i40'"):
        library.block_spec(0, BlockChoice("noop", "i41"))
    with pytest.raises(UserError, match=r"no pair 'kv1'. There are: none"):
        library.weights(At(0, "block", "kv1"))
    with pytest.raises(UserError, match="ffn 'i32' is the parent's own"):
        library.weights(At(0, "ffn", "i32"))


def test_a_writer_goes_on_with_its_own_work_only(tmp_path):
    layer = LayerVariants({"kv2": Variant(attention(), 9, parent=True)}, {"i48": Variant(swiglu(), 9, parent=True)})
    spec = tiny_spec()
    LibraryWriter(tmp_path, {"seed": 1}).write(1, layer, {})
    again = LibraryWriter(tmp_path, {"seed": 1})
    assert again.has(1) and not again.has(0)
    with pytest.raises(UserError, match=r"holds layer-001.safetensors, which is no part of the library"):
        LibraryWriter(tmp_path, {"seed": 2})
    with pytest.raises(UserError, match="layer 0 is not there yet"):
        again.finish("parent", spec, {})
    again.write(0, layer, {})
    assert again.finish("parent", spec, {}).layers == (layer, layer)
    with pytest.raises(UserError, match="is a block library already"):
        LibraryWriter(tmp_path, {"seed": 1})


def test_the_default_candidates_are_the_papers():
    """Five of the six widths are left for SmolLM2's 1536, as DeciLM holds multiples of 256 only."""
    of = Candidates().of
    big = PartSpec("gqa", {"num_heads": 32, "num_kv_heads": 8, "head_dim": 64})
    assert list(of("attention", big)) == ["kv4", "kv2", "kv1", "linear", "noop"]
    assert list(of("ffn", swiglu(1536))) == ["i1280", "i1024", "i768", "i512", "i256", "linear", "noop"]
    wide = [f"i{width}" for width in (24832, 21504, 14336, 7168, 5632, 2816)]
    assert list(of("ffn", swiglu(28672, fused=True))) == [*wide, "linear", "noop"]


def test_candidates_fit_the_parents_part():
    of = Candidates().of
    assert list(of("attention", PartSpec("gqa", {"num_heads": 9, "num_kv_heads": 3, "head_dim": 8}))) == [
        "kv1",
        "linear",
        "noop",
    ]
    assert list(of("ffn", swiglu(48))) == ["linear", "noop"]
    assert of("ffn", NOOP) == {}
    assert list(of("attention", PartSpec("single_linear"))) == ["noop"]
    assert list(of("ffn", PartSpec("nameless", {"width": 512}))) == ["linear", "noop"]


def test_candidates_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=r"8 KV heads cannot be averaged to 3. Allowed: 4, 2, 1"):
        Candidates(kv_heads=[3]).of("attention", PartSpec("gqa", {"num_heads": 8, "num_kv_heads": 8, "head_dim": 8}))
    with pytest.raises(UserError, match=r"candidates.widths: .* got 1.5"):
        Candidates(widths=(1.5,))

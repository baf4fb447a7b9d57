"""A solution's child has the chosen blocks: its architecture, its weights, its outputs."""

from __future__ import annotations

import pytest
import torch

from lnlit.errors import UserError
from lnlit.models.build import block_weights, build_decoder
from lnlit.models.weights import canonical_weights, fill
from lnlit.search.library import Library
from lnlit.testing.tiny import mixed_spec, tiny_decoder
from lnlit.testing.tiny_library import tiny_library

CHOICE = ["noop+i24", "kv1+i40", "linear+noop", "linear+linear", "noop+noop", "kv4+i16"]


@pytest.fixture(scope="module")
def parent():
    return tiny_decoder(mixed_spec()).eval()


@pytest.fixture(scope="module")
def library(parent, tmp_path_factory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("realize") / "library", "parent", parent.spec)


def layers_of(parent):
    return (block_weights(block) for block in parent.layers)


def test_the_parents_own_choice_is_the_parent(library, parent):
    own = [str(layer.parent) for layer in library.layers]
    choices = library.choices(own)
    assert library.composed_spec(choices) == parent.spec
    for made, wanted in zip(library.composed_layers(choices, layers_of(parent)), layers_of(parent), strict=True):
        assert made.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.items())


def test_a_mixed_choice_makes_a_model_that_loads_and_runs(library, parent):
    choices = library.choices(CHOICE)
    spec = library.composed_spec(choices)
    assert [str(block.attention)[:4] + str(block.ffn)[:4] for block in spec.layers][:2] == ["noopswig", "gqa(swig"]
    child = build_decoder(spec, "cpu")
    others = {name: tensor for name, tensor in canonical_weights(parent) if not name.startswith("model.layers.")}
    layers = {
        f"model.layers.{index}.{name}": tensor
        for index, weights in enumerate(library.composed_layers(choices, layers_of(parent)))
        for name, tensor in weights.items()
    }
    fill(child, [*others.items(), *layers.items()], "child")
    assert child(torch.arange(6)[None]).isfinite().all()
    own_half = child.layers[5].mlp.up_proj.weight  # type: ignore[union-attr]
    assert torch.equal(own_half, parent.layers[5].mlp.up_proj.weight)  # type: ignore[union-attr]


def test_only_one_layer_of_the_parent_is_asked_for_at_a_time(library, parent):
    given = []

    def watched():
        for weights in layers_of(parent):
            given.append(weights)
            yield weights

    for count, _ in enumerate(library.composed_layers(library.choices(CHOICE), watched()), 1):
        assert len(given) == count


def test_a_foreign_choice_is_refused(library):
    with pytest.raises(UserError, match=r"chooses 2 blocks, .* has 6 layers"):
        library.choices(CHOICE[:2])
    with pytest.raises(UserError, match=r"layer 1: there is no choice 'kv3\+i40'.*Attention: kv4, kv1"):
        library.choices(["noop+i24", "kv3+i40", *CHOICE[2:]])

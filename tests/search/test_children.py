"""Children as a whole and changes of them, beside the models that they are."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from lnlit.models.build import block_weights, build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.models.weights import canonical_weights, fill
from lnlit.search.children import Children, added, changes
from lnlit.search.choice import BlockChoice
from lnlit.search.library import Library
from lnlit.search.metrics import Likelihood
from lnlit.testing.tiny import VOCAB_SIZE, mixed_spec, tiny_decoder
from lnlit.testing.tiny_library import tiny_library

#: Of the six layers, the second's kv1 and i24 were trained together. The last child has that pair.
CHILDREN = [
    ("noop+i32", "kv4+i64", "kv1+noop", "linear+linear", "noop+noop", "kv2+i16"),
    ("noop+i24", "noop+i24", "kv4+linear", "linear+noop", "noop+noop", "kv1+i16"),
    ("noop+i32", "kv1+i24", "noop+i24", "linear+linear", "kv1+noop", "kv2+noop"),
]


@pytest.fixture(scope="module")
def parent() -> Decoder:
    return tiny_decoder(mixed_spec()).eval()


@pytest.fixture(scope="module")
def library(tmp_path_factory, parent) -> Library:
    return tiny_library(tmp_path_factory.mktemp("children") / "library", "parent", parent.spec)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (3, 20), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def children(parent, library, tokens) -> Children:
    batches = list(tokens.split(2))
    return Children(LayerwiseDecoder(parent), library, batches, Likelihood(parent.head_weight, batches), "kl")


@torch.no_grad()
def plain_kl(parent: Decoder, library: Library, names, tokens) -> float:
    """KL(parent || child) as a textbook writes it, of a model that is made whole."""
    choices = library.choices(names)
    child = build_decoder(library.composed_spec(choices), "cpu")
    below = library.composed_layers(choices, (block_weights(block) for block in parent.layers))  # type: ignore[arg-type]
    outer = [(name, weight) for name, weight in canonical_weights(parent) if ".layers." not in name]
    inner = [(f"model.layers.{i}.{name}", weight) for i, made in enumerate(below) for name, weight in made.items()]
    fill(child, [*outer, *inner], "test")
    p, q = (model(tokens).double().log_softmax(-1) for model in (parent, child.eval()))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("names", CHILDREN)
def test_a_child_realises_what_its_model_does(names, parent, library, tokens, children):
    found = children.scorer(library.choices(names)).own_values["kl"]
    assert found == pytest.approx(plain_kl(parent, library, names, tokens), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("names", CHILDREN[1:])
def test_a_change_adds_what_the_changed_model_does(names, parent, library, tokens, children):
    own, before = library.choices(names), plain_kl(parent, library, names, tokens)
    scorer = children.scorer(own)
    for layer, variants in enumerate(library.layers):
        wanted = variants.choices()
        scores = {score.candidate: score.score for score in scorer.scores(changes(variants, layer, own[layer], wanted))}
        found = added(layer, own[layer], wanted, scores)
        assert found.keys() == {str(choice) for choice in wanted} and found[names[layer]] == 0
        for choice in wanted:
            is_single = sum(a != b for a, b in zip(choice, own[layer], strict=True)) == 1
            if is_single or any(str(one) in variants.pairs for one in (choice, own[layer])):
                changed = (*names[:layer], str(choice), *names[layer + 1 :])
                realised = plain_kl(parent, library, changed, tokens) - before
                assert found[str(choice)] == pytest.approx(realised, rel=1e-3, abs=1e-5), (layer, choice)


def test_two_halves_of_a_layer_add_up_where_they_were_not_trained_together(library):
    variants = library.layers[0]
    own, wanted = BlockChoice("noop", "i32"), variants.choices()
    ats = changes(variants, 0, own, wanted)
    assert {(at.slot, at.name) for at in ats} == {
        *(("attention", name) for name in variants.attention if name != "noop"),
        *(("ffn", name) for name in variants.ffn if name != "i32"),
    }
    scores = {at: float(index) for index, at in enumerate(ats, 1)}
    alone = {(at.slot, at.name): score for at, score in scores.items()} | {("attention", "noop"): 0, ("ffn", "i32"): 0}
    found = added(0, own, wanted, scores)
    for attention, ffn in product(variants.attention, variants.ffn):
        assert found[f"{attention}+{ffn}"] == alone["attention", attention] + alone["ffn", ffn]

"""Suffix scores are what scoring the whole model gives; the parent's own block scores zero."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from lnlit.errors import UserError
from lnlit.models.build import block_weights, build_block, build_decoder, load_block
from lnlit.models.decoder import Decoder
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.models.weights import canonical_weights, fill
from lnlit.search.choice import At, BlockChoice, chosen
from lnlit.search.library import Library, layer_file
from lnlit.search.metrics import Accuracy, HiddenCosine, Likelihood, TopK
from lnlit.search.score import Score, Scorer, candidates, observed
from lnlit.search.walk import Walk
from lnlit.specs import NOOP
from lnlit.testing.tiny import VOCAB_SIZE, mixed_spec, tiny_decoder
from lnlit.testing.tiny_library import tiny_library, undigested


@pytest.fixture(scope="module")
def parent() -> Decoder:
    return tiny_decoder(mixed_spec()).eval()


@pytest.fixture(scope="module")
def library(tmp_path_factory, parent) -> Library:
    return tiny_library(tmp_path_factory.mktemp("score") / "library", "parent", parent.spec)


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    """Five rows: the last micro-batch is smaller."""
    tokens = torch.randint(VOCAB_SIZE, (5, 24), generator=torch.Generator().manual_seed(2))
    return list(tokens.split(2))


def scorer(parent: Decoder, library: Library, batches: list[torch.Tensor], name: str = "kl") -> Scorer:
    metrics = {
        "kl": Likelihood(parent.head_weight, batches),
        "lm_loss": Likelihood(parent.head_weight, batches),
        "hidden_cosine": HiddenCosine(),
        "top_k": TopK(parent.head_weight, 3),
    }
    layerwise, metric = LayerwiseDecoder(parent), metrics[name]
    return Scorer(layerwise, library, observed(layerwise, batches, metric), metric, name)  # type: ignore[arg-type]


def one(scorer: Scorer, candidate: At) -> Score:
    return scorer.scores([candidate])[0]


@torch.no_grad()
def whole_model(parent: Decoder, library: Library, candidate: At) -> Decoder:
    """The child as a model of its own."""
    layer, own = candidate.layer, library.layers[candidate.layer].parent
    choice = {
        "attention": (candidate.name, own[1]),
        "ffn": (own[0], candidate.name),
        "block": tuple(candidate.name.split("+")),
    }[candidate.slot]
    mine = block_weights(parent.layers[layer])  # type: ignore[arg-type]
    block = library.block_spec(layer, BlockChoice(*choice))
    layers = (*parent.spec.layers[:layer], block, *parent.spec.layers[layer + 1 :])
    child = build_decoder(parent.spec.replace(layers=layers), "cpu")
    prefix = f"model.layers.{layer}."
    rest = [(name, weight) for name, weight in canonical_weights(parent) if not name.startswith(prefix)]
    changed = [
        (prefix + name, weight) for name, weight in library.block_weights(layer, BlockChoice(*choice), mine).items()
    ]
    fill(child, [*rest, *changed], "test")
    return child.eval()


@torch.no_grad()
def plain_values(parent: Decoder, child: Decoder, tokens: torch.Tensor) -> dict[str, float]:
    """Every metric as a textbook writes it, on the logits of whole models, in fp64."""
    p, q = (model.double()(tokens).log_softmax(-1) for model in (parent, child))
    hidden = [model(tokens, read_out=lambda hidden, _: hidden) for model in (parent, child)]
    parent.float()
    loss = -q[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    top = [set_.topk(3).indices for set_ in (p, q)]
    shared = [len(set(a.tolist()) & set(b.tolist())) / 3 for a, b in zip(*(t.flatten(0, 1) for t in top), strict=True)]
    return {
        "kl": (p.exp() * (p - q)).sum(-1).mean().item(),
        "lm_loss": loss.item(),
        "hidden_cosine": 1 - torch.cosine_similarity(*hidden, dim=-1).mean().item(),
        "top_k": sum(shared) / len(shared),
    }


@pytest.mark.parametrize("granularity", ["subblock", "block"])
def test_suffix_scores_equal_whole_model_scores(parent, library, batches, granularity):
    ours = scorer(parent, library, batches)
    compared = candidates(library, granularity)
    assert len(compared) == (41 if granularity == "subblock" else 107)
    if granularity == "block":
        compared = [c for c in compared if c.layer in (1, 3)]  # a fused FFN and a trained pair; single linears
        assert At(1, "block", "kv1+i24") in compared
    for candidate in compared:
        found = one(ours, candidate)
        expected = plain_values(parent, whole_model(parent, library, candidate), torch.cat(batches))
        for name, value in found.values.items():
            assert abs(value - expected[name]) <= 1e-5, (str(candidate), name, value, expected[name])
        assert found.score == found.values["kl"] > 1e-4, str(candidate)


def test_a_trained_pair_is_scored_with_its_own_weights(parent, library, batches, tmp_path):
    composed = tiny_library(tmp_path / "library", "parent", parent.spec, pair=False)
    candidate = At(1, "block", "kv1+i24")
    scores = [one(scorer(parent, each, batches), candidate).score for each in (library, composed)]
    assert abs(scores[0] - scores[1]) > 1e-3


@pytest.mark.parametrize("metric", ["lm_loss", "hidden_cosine", "top_k"])
def test_other_metrics_equal_their_definition(parent, library, batches, metric):
    ours = scorer(parent, library, batches, metric)
    start = plain_values(parent, tiny_decoder(mixed_spec()), torch.cat(batches))[metric]
    sign = -1 if metric == "top_k" else 1
    for candidate in candidates(library, "subblock")[::5]:
        value = plain_values(parent, whole_model(parent, library, candidate), torch.cat(batches))[metric]
        assert one(ours, candidate).score == pytest.approx(sign * (value - start), abs=1e-5)


@pytest.mark.parametrize("granularity", ["subblock", "block"])
def test_candidates_that_share_a_pass_score_as_each_alone(parent, library, batches, granularity):
    found = candidates(library, granularity)
    alone = scorer(parent, library, batches)
    expected = [one(alone, candidate) for candidate in found]
    for size in (2, 7, len(found)):
        together = scorer(parent, library, batches)
        groups = [found[first : first + size] for first in range(0, len(found), size)]
        assert [score for group in groups for score in together.scores(group)] == expected
    some = found[3::4]
    assert scorer(parent, library, batches).scores(some) == [expected[found.index(at)] for at in some]


@torch.inference_mode()
def test_the_parents_own_blocks_score_exactly_zero(parent, library, batches):
    for name in ("kl", "lm_loss", "hidden_cosine", "top_k"):
        ours = scorer(parent, library, batches, name)
        for layer, block in enumerate(parent.spec.layers):
            own = block_weights(parent.layers[layer])  # type: ignore[arg-type]
            for position, width, spec in (
                (2 * layer, 2, block),
                (2 * layer, 1, block.replace(ffn=NOOP)),
                (2 * layer + 1, 1, block.replace(attention=NOOP)),
            ):
                built = build_block(parent.spec, layer, spec)
                names = {part for packed in built.packed_weights().values() for part in packed.parts}
                names |= {key for key, _ in built.named_parameters()} - built.packed_weights().keys()
                load_block(built, {key: own[key] for key in names})
                ours.walk.seek(position)
                child = ours.walk.beside(width, built)
                assert ours.metric.measure(child.hidden()) == ours.own_values, (name, layer, spec)


def test_half_precision_scores_are_near_the_exact_ones(parent, library, batches):
    exact, half = scorer(parent, library, batches), tiny_decoder(mixed_spec()).bfloat16().eval()
    rough = scorer(half, library, batches)
    for candidate in candidates(library, "subblock")[::4]:
        assert one(rough, candidate).score == pytest.approx(one(exact, candidate).score, rel=0.05, abs=2e-3)


def test_the_walk_keeps_one_activation_per_token_and_does_not_turn_back(parent, batches):
    walk = Walk.of_rows(LayerwiseDecoder(parent), batches)
    walk.seek(5)
    assert [tuple(state.shape) for state in walk.streams] == [(2, 24, 32), (2, 24, 32), (1, 24, 32)]
    with pytest.raises(ValueError, match="behind 4"):
        walk.seek(4)


def test_early_candidates_are_more_work(parent, library, batches):
    ours = scorer(parent, library, batches)
    work = [ours.work(candidate) for candidate in candidates(library, "subblock")]
    assert work == sorted(work, reverse=True)
    assert work[-1] > parent.head_weight.numel()


def test_candidates_are_chosen_by_name_and_in_the_order_of_the_walk(library):
    found = chosen(candidates(library, "block"), ["noop+*", "kv1+i24"])
    assert {candidate.name for candidate in found} >= {"noop+linear", "kv1+i24"}
    assert [candidate.position for candidate in found] == sorted(candidate.position for candidate in found)
    assert [str(at) for at in chosen(candidates(library, "subblock"), ["layer_01/block/*", "layer_03/ffn/i24"])] == [
        "layer_01/block/kv1+i24",
        "layer_03/ffn/i24",
    ]
    with pytest.raises(UserError, match=r"only: 'kv3' fits no candidate\. There are, by name: .*kv1"):
        chosen(candidates(library, "subblock"), ["*", "kv3"])


def test_nan_weights_are_one_line_that_names_the_candidate(parent, batches, tmp_path):
    library = tiny_library(tmp_path / "library", "parent", parent.spec)
    file = layer_file(library.folder, 2)
    tensors = load_file(file)
    tensors["ffn/i24/mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, file)
    ours = scorer(parent, undigested(library.folder), batches)
    one(ours, At(2, "attention", "noop"))
    with pytest.raises(UserError, match=r"^layer_02/ffn/i24: its kl is nan, [^\n]*$"):
        one(ours, At(2, "ffn", "i24"))
    one(ours, At(2, "ffn", "linear"))


def test_accuracy_counts_the_likeliest_continuation_per_byte(parent, library):
    tokens = torch.randint(VOCAB_SIZE, (6, 9), generator=torch.Generator().manual_seed(3))
    labels = torch.full_like(tokens, -100)
    labels[:, 4:7] = tokens[:, 5:8]
    size, question = torch.tensor([3.0, 4, 5, 6, 3, 2]).double(), (0, 0, 0, 1, 1, 1)
    with torch.no_grad():
        log_probs = parent(tokens).double().log_softmax(-1)
    taken = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    best = (taken.sum(-1) / size).view(2, 3).argmax(-1)
    right = (int(best[0]), 3 + (int(best[1]) + 1) % 3)  # one right, one wrong
    batches = list(tokens.split(4))
    metric = Accuracy(parent.head_weight, labels.split(4), question, right, size)
    layerwise = LayerwiseDecoder(parent)
    ours = Scorer(layerwise, library, observed(layerwise, batches, metric), metric, "accuracy")
    assert ours.own_values == {"accuracy": 0.5}
    assert {one(ours, candidate).score for candidate in candidates(library, "subblock")} <= {-0.5, 0.0, 0.5}

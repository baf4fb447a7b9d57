"""Blockwise local distillation on a tiny model: what is trained, what is not, and that it only depends on the data."""

from __future__ import annotations

import json

import lightning as L
import pytest
import torch
from distillery import GROUPS, STEPS, StopAt, same, trainable, weights
from torch import Tensor

from lnlit.callbacks.checkpoints import checkpoint_folder, list_checkpoints
from lnlit.checkpoint.safetensors_folder import SafetensorsFolder
from lnlit.data.sources import TextFileSource
from lnlit.data.text import TextSample
from lnlit.models.build import block_weights, build_block, load_block
from lnlit.modules.optim import AdamW
from lnlit.search.choice import SLOTS, At, BlockChoice
from lnlit.search.library import Library
from lnlit.search.space import Candidates
from lnlit.search.train import trainable as to_train
from lnlit.stages.library import build_library


def test_training_lowers_the_error_of_every_candidate(distillery, tiny_parent, documents, tmp_path, monkeypatch):
    """That of candidates which were not fitted to the text that errors are measured on, and as far as fitted ones have
    it already, not further."""
    settings = {"trainer": {"max_steps": 60}, "optimizer": AdamW(3e-3, warmup_ratio=0.1)}
    fitted = distillery.fit("fitted", **settings)
    monkeypatch.setattr("lnlit.search.starts.fitted", lambda start, equations: start)
    sample = TextSample(TextFileSource(documents), rows=4, length=64)
    space = Candidates(widths=(0.67, 0.33), width_multiple=16)
    distillery.library = build_library(str(tiny_parent), sample, str(tmp_path / "library"), space)
    library = distillery.fit("out", **settings)
    for layer in range(2):
        for slot, name in trainable(library, layer):
            variant, other = (getattr(each.layers[layer], slot)[name] for each in (library, fitted))
            assert variant.trained_error < variant.init_error, (layer, slot, name, variant)
            assert other.trained_error < variant.trained_error, (layer, slot, name, other)


@pytest.mark.parametrize("slot", SLOTS)
def test_by_default_whatever_a_library_has_is_trained(tiny_parent, documents, tmp_path, slot):
    """Of a library whose other slot has no candidate with weights, too."""
    sample = TextSample(TextFileSource(documents), rows=2, length=32)
    none = {"attention": {"widths": ()}, "ffn": {"kv_heads": []}}[slot]
    stubs = {"attention_stubs": ("noop",), "ffn_stubs": ("noop",)}
    space = Candidates(**{"kv_heads": [1], "widths": (0.5,), "width_multiple": 16, **stubs, **none})
    library = build_library(str(tiny_parent), sample, str(tmp_path / "library"), space)
    found = to_train(Library.open(library), None)
    assert found == [
        At(layer, slot, name) for layer in range(2) for own, name in trainable(Library.open(library), layer)
    ]
    assert found and {at.slot for at in found} == {slot}


def test_trained_errors_are_measured_like_initial_ones(distillery, built_library):
    """A library whose training changed nothing has equal errors."""
    still = AdamW(1e-30, warmup_ratio=0.0, schedule="constant")
    library = distillery.fit("out", trainer={"max_steps": 1}, optimizer=still)
    assert torch.equal(library.calibration(), Library.open(built_library).calibration())
    for layer in range(2):
        for slot, name in trainable(library, layer):
            variant = getattr(library.layers[layer], slot)[name]
            assert variant.trained_error == pytest.approx(variant.init_error, rel=1e-4)


def test_validation_reports_every_candidate(distillery):
    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            self.metrics = dict(trainer.callback_metrics)

    watch = Watch()
    distillery.fit("out", (watch,), {"max_steps": 2, "val_check_interval": 2, "limit_val_batches": 2}, val=True)
    named = {name for name in watch.metrics if name.startswith("bld_val/")}
    assert len(named) == 10 and "bld_val/layer_01/ffn/i16" in named
    assert float(watch.metrics["val/loss"]) == pytest.approx(sum(float(watch.metrics[n]) for n in named) / 10, rel=1e-5)


def test_the_new_library_keeps_what_was_not_trained(alone, built_library):
    before = Library.open(built_library)
    assert before.header["calibration"] == alone.header["calibration"]
    for old, new in zip(before.layers, alone.layers, strict=True):
        for slot in SLOTS:
            choices = getattr(new, slot)
            assert list(choices) == list(getattr(old, slot))
            assert all(choices[name].init_error == v.init_error for name, v in getattr(old, slot).items())
            assert choices["noop"].trained_error is None
    assert not same(weights(before), weights(alone))


def test_the_loss_is_the_normalised_error_beside_the_parents_other_half(distillery, built_library):
    """Against whole blocks built by hand, in float64."""
    library = Library.open(built_library)
    seen: dict[str, float] = {}

    class Watch(L.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module._log = lambda losses: seen.update({name: float(loss) for name, loss in losses.items()})
            self.parent = pl_module._run.parent

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.batch = batch

    watch = Watch()
    distillery.fit("out", (watch,), {"max_steps": 1})
    parent = watch.parent.double()
    for layer in range(2):
        for slot, name in trainable(library, layer):
            expected = reference_error(library, parent, watch.batch.tokens, watch.batch.lengths, layer, slot, name)
            assert seen[f"layer_{layer:02d}/{slot}/{name}"] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def reference_error(library, parent, tokens, lengths, layer: int, slot: str, name: str) -> float:
    outputs: dict[str, list[Tensor]] = {"parent": [], "child": []}
    choice = [name if slot == s else own for s, own in zip(SLOTS, library.layers[layer].parent, strict=True)]
    own = {key: tensor.double() for key, tensor in block_weights(parent.layers[layer]).items()}
    block = build_block(library.spec, layer, library.block_spec(layer, BlockChoice(*choice)))
    made = library.block_weights(layer, BlockChoice(*choice), own)
    child = load_block(block, {key: tensor.double() for key, tensor in made.items()})
    position = torch.cat([torch.arange(length) for length in lengths]).view(tokens.shape)
    x = parent.embed(tokens)
    attention, rope = parent.block_inputs(tokens, x.dtype, position, lengths)
    for index in range(layer):
        x = parent.layers[index](x, attention.layer(index), rope)
    outputs["parent"].append(parent.layers[layer](x, attention.layer(layer), rope))
    outputs["child"].append(child(x, attention.layer(layer), rope))
    wanted, got = outputs["parent"][0], outputs["child"][0]
    return float((got - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("only", ["layer_01/ffn/i16", "layer_00/attention/kv1"])
def test_a_candidate_trained_by_itself_ends_as_among_all_others(distillery, alone, only):
    """No gradient, clipping or optimizer state couples two candidates."""
    single = distillery.fit("single", only=(only,), gradient_clip_val=1.0)
    _, slot, name = only.split("/")
    layer = int(only[6:8])
    assert same(single.weights(At(layer, slot, name)), alone.weights(At(layer, slot, name)))
    before = Library.open(distillery.library)
    changed = {key for key, tensor in weights(single).items() if not torch.equal(tensor, weights(before)[key])}
    assert changed and all(key.startswith(f"{layer}/{slot}/{name}/") for key in changed)


def test_the_parent_does_not_move(distillery):
    class Watch(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.decoder = pl_module._run.parent
            self.before = {name: tensor.clone() for name, tensor in self.decoder.state_dict().items()}

        def on_train_end(self, trainer, pl_module):
            assert all(tensor.grad is None for tensor in self.decoder.parameters())
            assert same(dict(self.decoder.state_dict()), self.before)

    watch = Watch()
    distillery.fit("out", (watch,), {"max_steps": 2})
    assert watch.before


def test_a_stopped_and_resumed_run_ends_bitwise_like_one_left_alone(distillery, alone):
    assert distillery.fit("out", (StopAt(3),)) is None
    resumed = distillery.fit("out")
    assert same(weights(resumed), weights(alone))
    assert [layer.ffn["i16"].trained_error for layer in resumed.layers] == [
        layer.ffn["i16"].trained_error for layer in alone.layers
    ]


def test_the_checkpoint_does_not_hold_the_parent(distillery):
    distillery.fit("out", (StopAt(1),))
    (file,) = list_checkpoints(checkpoint_folder(distillery.folder / "out-run"))
    checkpoint = torch.load(file, weights_only=True)
    assert list(checkpoint["state_dict"]) == ["_anchor"]
    trained = weights(Library.open(distillery.library))
    held = sum(
        t.numel() for state in checkpoint["block_distill"]["trainees"].values() for t in state["weights"].values()
    )
    assert held == sum(tensor.numel() for tensor in trained.values())


@pytest.mark.parametrize("stop", [None, 3, STEPS, STEPS + 2], ids=["whole", "in 1", "between", "in 2"])
def test_layers_one_after_another_end_like_all_at_once(distillery, alone, stop):
    if stop is not None:
        assert distillery.fit("out", (StopAt(stop),), GROUPS, layers_at_once=1) is None
    library = distillery.fit("out", (), GROUPS, layers_at_once=1)
    assert same(weights(library), weights(alone))


def test_only_layers_with_something_to_train_form_groups(distillery, alone, built_library):
    library = distillery.fit("out", only=("layer_01/ffn/*",), layers_at_once=1)
    before = Library.open(built_library)
    assert same(weights(library, (0,)), weights(before, (0,)))
    at = At(1, "ffn", "i16")
    assert all(torch.equal(library.weights(at)[key], tensor) for key, tensor in alone.weights(at).items())
    assert library.layers[0] == before.layers[0]


def test_a_longer_run_goes_on_from_a_finished_checkpoint(distillery):
    distillery.fit("out", (StopAt(4),))
    library = distillery.fit("out", trainer={"max_steps": STEPS + 2})
    assert json.loads((library.folder / "library.json").read_text())["provenance"]["steps"] == STEPS + 2


def test_a_run_that_stops_early_says_how_to_get_a_library(distillery, caplog):
    with caplog.at_level("INFO"):
        assert distillery.fit("out", (StopAt(3),)) is None
    assert "stopped early at step 3, no library written: go on by --ckpt_path last, with trainer.max_steps: 3" in (
        caplog.text
    )
    library = distillery.fit("out", trainer={"max_steps": 3})
    assert library.header["provenance"]["steps"] == 3


def test_the_library_says_what_it_was_trained_with(alone):
    record = alone.header["provenance"]
    assert record["steps"] == STEPS and record["precision"] == "32-true" and len(record["data"]) >= 16


def test_pairs_train_both_halves(distillery, built_library):
    library = distillery.fit("out", only=("layer_00/block/kv1+i16",), trainer={"max_steps": 30})
    before = Library.open(built_library)
    (name,) = library.layers[0].pairs
    assert not library.layers[1].pairs
    pair, choices = library.layers[0].pairs[name], library.layers[0]
    assert pair.parameters == choices.attention["kv1"].parameters + choices.ffn["i16"].parameters
    start = before.block_weights(0, BlockChoice("kv1", "i16"), {})
    end = library.block_weights(0, BlockChoice("kv1", "i16"), {})
    assert start.keys() == end.keys()
    assert not any(torch.equal(tensor, end[name]) for name, tensor in start.items())
    assert 0 < pair.trained_error < 1
    assert same(weights(before), weights(library))


def test_a_pair_starts_from_the_parents_unrounded_weights(distillery, built_library):
    still = AdamW(1e-30, warmup_ratio=0.0, schedule="constant")
    mixed = {"max_steps": 1, "precision": "bf16-mixed"}
    library = distillery.fit("out", only=("layer_01/block/kv2+i16",), trainer=mixed, optimizer=still)
    parent = SafetensorsFolder(distillery.parent)
    for name, tensor in library.weights(At(1, "block", "kv2+i16")).items():
        if name.startswith("self_attn."):
            assert torch.equal(tensor, parent.read(f"model.layers.1.{name}")), name


def test_a_gradient_that_is_not_finite_stops_one_candidate_only(distillery, alone):
    class Poison(L.Callback):
        def on_train_start(self, trainer, pl_module):
            victim = next(t for t in pl_module.trainees if t.at.name == "kv1")
            next(victim.block.parameters()).register_hook(lambda gradient: gradient * float("nan"))
            self.at, self.module = victim.at, pl_module

    poison = Poison()
    library = distillery.fit("out", (poison,))
    assert poison.module.skipped == STEPS
    untouched = f"{poison.at.layer}/{poison.at.slot}/{poison.at.name}/"
    for key, tensor in weights(library).items():
        source = Library.open(distillery.library) if key.startswith(untouched) else alone
        assert torch.equal(tensor, weights(source)[key]), key

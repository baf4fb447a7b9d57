"""The nemotron-nas format: NVIDIA's released models, both spellings of a width, and what cannot be expressed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkpoint_models import LINEAR, mixed_spec

from lnlit.checkpoint.decilm import DeciLMCheckpoint
from lnlit.checkpoint.formats import read_spec, spec_as_stored
from lnlit.checkpoint.readers import obstacles
from lnlit.errors import UserError
from lnlit.models.build import build_decoder, parameter_count
from lnlit.models.layout import expected_shapes
from lnlit.specs import NOOP, BlockSpec, PartSpec

RELEASED = Path(__file__).parents[3] / "shared/data/nemotron_configs"
ATTENTION = {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False, "sparsify": None}
FFN = {"ffn_mult": 1.3125, "no_op": False, "replace_with_linear": False, "sparsify": None}


def write_config(folder, *blocks, **changes):
    config = {"model_type": "nemotron-nas", "vocab_size": 97, "hidden_size": 512, "num_attention_heads": 8}
    config |= {"num_key_value_heads": None, "intermediate_size": None, "num_hidden_layers": len(blocks)}
    config |= {"block_configs": [{"attention": attention, "ffn": ffn} for attention, ffn in blocks]}
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.data
@pytest.mark.parametrize(("name", "billions", "layers"), [("super-49b", 49.867, 80), ("ultra-253b", 253.4, 162)])
def test_released_models_have_their_published_size(tmp_path, name, billions, layers):
    file = RELEASED / f"{name}.config.json"
    if not file.exists():
        pytest.skip("../shared/data is absent")
    shutil.copyfile(file, tmp_path / "config.json")
    spec = read_spec(tmp_path)
    assert len(spec.layers) == layers
    count = parameter_count(build_decoder(spec)) / 1e9
    assert round(count, len(str(billions).partition(".")[2])) == billions
    assert not any(obstacles(spec).values())


@pytest.mark.data
def test_ultra_keeps_its_fused_and_weightless_layers(tmp_path):
    file = RELEASED / "ultra-253b.config.json"
    if not file.exists():
        pytest.skip("../shared/data is absent")
    shutil.copyfile(file, tmp_path / "config.json")
    spec = read_spec(tmp_path)
    assert spec.layers[125].ffn.args["intermediate_size"] == 399_360
    assert sum(block == BlockSpec(NOOP, NOOP) for block in spec.layers) == 81
    assert not [name for name in expected_shapes(spec) if name.startswith("model.layers.9.")]


def test_both_spellings_of_widths_and_heads(tmp_path):
    old = write_config(tmp_path, (ATTENTION, FFN))
    spec = read_spec(old)
    assert spec.layers[0].ffn == PartSpec("swiglu", {"intermediate_size": 512})  # 448 rounded up to 256s
    assert spec.layers[0].attention == PartSpec("gqa", {"num_heads": 8, "num_kv_heads": 4, "head_dim": 64})
    new = write_config(tmp_path, ({"num_key_value_heads": 4}, {"intermediate_size": 512}))
    assert read_spec(new) == spec


def test_stubs(tmp_path):
    removed, linear = {"no_op": True}, {"replace_with_linear": True}
    spec = read_spec(write_config(tmp_path, (removed, linear), (linear, removed)))
    assert spec.layers == (BlockSpec(NOOP, LINEAR), BlockSpec(LINEAR, NOOP))


@pytest.mark.parametrize(
    ("blocks", "changes", "message"),
    [
        ([(ATTENTION, {**FFN, "ffn_mult": None})], {}, r"block_configs\[0\].ffn: expected one of ffn_mult"),
        ([(ATTENTION, {**FFN, "no_op": True, "replace_with_linear": True})], {}, "exclude each other"),
        ([({**ATTENTION, "window_length": 512}, FFN)], {}, r"block_configs\[0\].attention: window_length=512"),
        ([({**ATTENTION, "n_heads_in_group": 3}, FFN)], {}, "3 does not divide num_attention_heads"),
        ([(ATTENTION, {"intermediate_size": 300.5})], {}, r"block_configs\[0\].ffn.intermediate_size: 300.5 is no FFN"),
        ([(ATTENTION, {"ffn_mult": 1e-4})], {}, r"block_configs\[0\].ffn.ffn_mult: 0.0001 is no FFN width"),
        (
            [(ATTENTION, {"ffn_mult": 3.0, "intermediate_size": 1024})],
            {},
            "expected one of ffn_mult, intermed",
        ),
        ([(ATTENTION, {**FFN, "weights_precision": "fp8"})], {}, "ffn: weights_precision='fp8' is not supported"),
        ([({**ATTENTION, "n_heads_in_group": "all"}, FFN)], {}, "expected a positive number, got 'all'"),
        ([(ATTENTION, FFN)], {"num_hidden_layers": 2}, r"must list 2 blocks \(num_hidden_layers\), got 1 entries"),
        ([(ATTENTION, FFN)], {"block_configs": ["x"]}, r"block_configs\[0\]: expected a mapping"),
        ([(ATTENTION, None)], {}, r"block_configs\[0\].ffn: expected a mapping"),
    ],
)
def test_wrong_blocks_are_named(tmp_path, blocks, changes, message):
    with pytest.raises(UserError, match=message):
        read_spec(write_config(tmp_path, *blocks, **changes))


def change_last(spec, slot, **args):
    block = spec.layers[-1]
    part = getattr(block, slot).replace(**args)
    return spec.replace(layers=(*spec.layers[:-1], block.replace(**{slot: part})))


@pytest.mark.parametrize(
    ("slot", "args", "message"),
    [
        ("attention", {"num_heads": 8}, r"layers\[5\].attention: .* would say gqa.* and there is gqa\(.*num_heads=8"),
        ("attention", {"head_dim": 12}, r"layers\[5\].attention: .* would say gqa.* and there is gqa\(.*head_dim=12"),
        ("attention", {"bias": True}, r"layers\[5\].attention: .* would say gqa.* and there is gqa\(.*bias=True"),
        ("ffn", {"bias": True}, r"layers\[5\].ffn: .* would say swiglu.* and there is swiglu\(.*bias=True"),
    ],
)
def test_what_the_format_cannot_hold_is_named(slot, args, message):
    with pytest.raises(UserError, match=message):
        DeciLMCheckpoint().export(spec_as_stored(change_last(mixed_spec(), slot, **args)))


def test_the_written_config_is_read_back(tmp_path):
    spec = mixed_spec()
    (tmp_path / "config.json").write_text(json.dumps(DeciLMCheckpoint().export(spec_as_stored(spec)).config))
    expected = spec.map_parts(lambda part: PartSpec("swiglu", part.args) if part.type == "swiglu_fused" else part)
    assert read_spec(tmp_path) == expected


def test_what_stock_vllm_cannot_serve_is_listed():
    assert obstacles(mixed_spec())["vLLM"] == [
        "it knows no single linear (layers[2].attention, layers[4].ffn)",
        "it needs attention in the first layer that has any weights (layers[0])",
    ]

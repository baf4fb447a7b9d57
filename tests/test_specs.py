from __future__ import annotations

import json
import pickle

import pytest

from lnlit.errors import UserError
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec, RopeSpec

GQA = PartSpec("gqa", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8})
SWIGLU = PartSpec("swiglu", {"intermediate_size": 48})
ROPE = RopeSpec(5e5, PartSpec("llama3", {"factor": 8.0, "low_freq_factor": 1.0}))


def make_spec(**changes) -> ModelSpec:
    layers = (BlockSpec(GQA, SWIGLU), BlockSpec(NOOP, SWIGLU.replace(intermediate_size=16)), BlockSpec(GQA, NOOP))
    return ModelSpec(vocab_size=64, hidden_size=32, layers=layers, context_length=128, rope=ROPE).replace(**changes)


def test_json_round_trip_is_exact():
    spec = make_spec(tie_embeddings=True)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_defaults_may_be_left_out():
    data = make_spec(rope=RopeSpec()).to_json()
    for key in ("rope", "norm_eps", "tie_embeddings"):
        del data[key]
    assert ModelSpec.from_json(data) == make_spec(rope=RopeSpec())


def test_equal_specs_hash_alike_and_order_of_arguments_does_not_matter():
    other = PartSpec("gqa", {"head_dim": 8, "num_kv_heads": 2, "num_heads": 4})
    assert hash(other) == hash(GQA) and other == GQA
    assert len({make_spec(), make_spec(), make_spec(vocab_size=65)}) == 2


def test_pickle_round_trip():
    assert pickle.loads(pickle.dumps(make_spec())) == make_spec()  # noqa: S301 - our own bytes


def test_a_spec_cannot_be_changed_in_place():
    spec = make_spec()
    with pytest.raises(AttributeError):
        spec.vocab_size = 1  # type: ignore[misc]
    for change in (
        lambda: spec.layers[0].ffn.args.update(intermediate_size=1),  # type: ignore[attr-defined]
        lambda: spec.layers[0].ffn.args.__setitem__("intermediate_size", 1),  # type: ignore[attr-defined]
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()


def test_a_part_does_not_keep_the_callers_dict():
    args = {"intermediate_size": 48}
    part = PartSpec("swiglu", args)
    args["intermediate_size"] = 1
    assert part.args["intermediate_size"] == 48


def test_replace_leaves_the_original():
    narrow = SWIGLU.replace(intermediate_size=8)
    assert (narrow.args["intermediate_size"], SWIGLU.args["intermediate_size"]) == (8, 48)
    block = BlockSpec(GQA, SWIGLU)
    assert block.replace(ffn=NOOP) == BlockSpec(GQA, NOOP) and block.ffn == SWIGLU


def test_diff_names_every_place_that_differs():
    spec = make_spec()
    layers = [*spec.layers]
    layers[1] = layers[1].replace(attention=GQA)
    other = spec.replace(layers=tuple(layers), norm_eps=1e-6)
    diff = spec.diff(other)
    assert "spec.norm_eps: 1e-05 -> 1e-06" in diff
    assert "spec.layers[1].attention.type: noop -> gqa" in diff
    assert "spec.layers[1].attention.args.num_heads: absent -> 4" in diff
    assert all(line.startswith(("spec.norm_eps", "spec.layers[1].attention")) for line in diff)
    assert spec.diff(make_spec()) == []


def test_parts_walk_every_slot_in_order():
    assert [(path, kind, part.type) for path, kind, part in make_spec().parts()] == [
        ("layers[0].attention", "attention", "gqa"),
        ("layers[0].ffn", "ffn", "swiglu"),
        ("layers[1].attention", "attention", "noop"),
        ("layers[1].ffn", "ffn", "swiglu"),
        ("layers[2].attention", "attention", "gqa"),
        ("layers[2].ffn", "ffn", "noop"),
    ]


def test_map_parts_changes_every_slot():
    assert {part for _, _, part in make_spec().map_parts(lambda part: NOOP).parts()} == {NOOP}


def broken(path: list, key: str, value: object) -> dict:
    data = make_spec().to_json()
    node = data
    for step in path:
        node = node[step]
    node[key] = value
    return data


@pytest.mark.parametrize(
    ("path", "key", "where", "meant"),
    [
        ([], "hidden_sze", "spec:", "hidden_size"),
        (["rope"], "thta", "spec.rope:", "theta"),
        (["rope", "scaling"], "arg", "spec.rope.scaling:", "args"),
        (["layers", 1], "fnn", "spec.layers[1]:", "ffn"),
        (["layers", 2, "attention"], "typ", "spec.layers[2].attention:", "type"),
    ],
)
def test_a_misspelt_key_is_named_at_every_depth(path, key, where, meant):
    with pytest.raises(UserError) as error:
        ModelSpec.from_json(broken(path, key, 1))
    message = str(error.value)
    assert message.startswith(where) and repr(key) in message and f"Did you mean {meant!r}?" in message


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        ([], "vocab_size", "many", "spec.vocab_size: expected a whole number, 1 or more, got 'many'."),
        ([], "hidden_size", -1, "spec.hidden_size: expected a whole number, 1 or more, got -1."),
        ([], "layers", 3, "spec.layers: expected a list, got 3."),
        ([], "rope", 3, "spec.rope: expected a mapping, got 3."),
        (["layers", 0], "ffn", "swiglu", "spec.layers[0].ffn: expected a mapping, got 'swiglu'."),
        (["layers", 0, "ffn"], "type", 3, "spec.layers[0].ffn.type: expected a text, got 3."),
        (["layers", 0, "ffn"], "args", [3], "spec.layers[0].ffn.args: expected a mapping, got [3]."),
    ],
)
def test_a_wrong_type_is_named(path, key, value, message):
    with pytest.raises(UserError) as error:
        ModelSpec.from_json(broken(path, key, value))
    assert str(error.value) == message


def test_a_missing_key_is_named():
    data = make_spec().to_json()
    del data["layers"][1]["ffn"]
    with pytest.raises(UserError, match=r"spec\.layers\[1\]: the key 'ffn' is missing"):
        ModelSpec.from_json(data)

"""`block_configs` as others read them: which widths a multiplier can say, and what is written where none can."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoint_models import LINEAR

from lnlit.checkpoint.blocks import multiplier_of_width, width_of_multiplier
from lnlit.checkpoint.decilm import DeciLMCheckpoint
from lnlit.checkpoint.formats import spec_as_stored
from lnlit.checkpoint.readers import obstacles, sentences
from lnlit.models.layout import expected_shapes
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec, RopeSpec

RELEASED = Path(__file__).parents[3] / "shared/data/nemotron_configs"


def attention(kv_heads: int = 2, head_dim: int = 32) -> PartSpec:
    return PartSpec("gqa", {"num_heads": 4, "num_kv_heads": kv_heads, "head_dim": head_dim})


def ffn(width: int = 256, kind: str = "swiglu") -> PartSpec:
    return PartSpec(kind, {"intermediate_size": width})


def child(*layers: BlockSpec, **changes) -> ModelSpec:
    return ModelSpec(vocab_size=97, hidden_size=128, layers=layers, context_length=128).replace(**changes)


def find_multiple(n: int, k: int) -> int:
    return n if n % k == 0 else n + k - n % k


#: How the readers turn a multiplier into a width, as their code says it.
RULES = {
    "NVIDIA's code, mlx-lm": lambda mult, hidden: find_multiple(int(2 * round(mult, 6) * hidden / 3), 256),
    "vLLM, SGLang, TensorRT-LLM, llama.cpp": lambda mult, hidden: find_multiple(int(2 * mult * hidden / 3), 256),
}


@pytest.mark.parametrize("hidden", [30, 32, 34, 130, 576, 960, 1000, 2048, 3072, 4096, 5120, 8192, 12345, 16384])
def test_every_width_has_a_multiplier_that_all_readers_agree_on_or_none(hidden):
    """All widths up to 8192, and multiples of 256 up to Ultra's widest. No rule can give another width: each ends in
    rounding up to a multiple of 256."""
    for width in [*range(1, 8193), *range(8448, 430_000, 256)]:
        multiplier = multiplier_of_width(width, hidden)
        assert (multiplier is None) == bool(width % 256)
        if multiplier is not None:
            written = json.loads(json.dumps(multiplier))
            assert isinstance(written, float)  # llama.cpp's converter asserts it
            assert {rule(written, hidden) for rule in RULES.values()} == {width}
            assert width_of_multiplier(written, hidden) == width


@pytest.mark.data
@pytest.mark.parametrize("name", ["super-49b", "ultra-253b"])
def test_released_models_keep_their_widths_in_our_multipliers(name):
    """NVIDIA's own multipliers are often below the rounded width: 0.4875 is 5324.8 of 16384, and so 5376."""
    if not RELEASED.exists():
        pytest.skip("../shared/data is absent")
    config = json.loads((RELEASED / f"{name}.config.json").read_text())
    hidden, blocks = config["hidden_size"], config["block_configs"]
    widths = {width_of_multiplier(block["ffn"]["ffn_mult"], hidden) for block in blocks if block["ffn"]["ffn_mult"]}
    written = {multiplier_of_width(width, hidden) for width in widths}
    for rule in RULES.values():
        assert {rule(multiplier, hidden) for multiplier in written} == widths


@dataclass
class DocumentedSlot:
    """One slot as a reader knows it that has NVIDIA's keys and no others."""

    no_op: bool
    replace_with_linear: bool
    n_heads_in_group: int | None = None
    ffn_mult: float | None = None


def documented_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """What a reader written from NVIDIA's documented keys (as mlx-lm's and llama.cpp's are) expects of each layer."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    shapes: dict[str, tuple[int, ...]] = {}
    for index, block in enumerate(config["block_configs"]):
        layer = f"model.layers.{index}"
        slot = DocumentedSlot(**{"n_heads_in_group": block["attention"]["n_heads_in_group"]} | block["attention"])
        if not slot.no_op:
            shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        if slot.replace_with_linear:
            shapes[f"{layer}.self_attn.linear_attn.weight"] = (hidden, hidden)
        elif not slot.no_op:
            kv = heads // slot.n_heads_in_group * size
            for name, rows in {"q": heads * size, "k": kv, "v": kv}.items():
                shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, heads * size)
        slot = DocumentedSlot(**{"ffn_mult": block["ffn"]["ffn_mult"]} | block["ffn"])
        if not slot.no_op:
            shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        if slot.replace_with_linear:
            shapes[f"{layer}.mlp.linear_mlp.weight"] = (hidden, hidden)
        elif not slot.no_op:
            width = RULES["NVIDIA's code, mlx-lm"](slot.ffn_mult, hidden)
            for name in ("gate", "up"):
                shapes[f"{layer}.mlp.{name}_proj.weight"] = (width, hidden)
            shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, width)
    return shapes


def decilm_config(spec: ModelSpec) -> dict:
    return DeciLMCheckpoint().export(spec_as_stored(spec)).config


EVERY_VARIANT = child(
    BlockSpec(attention(4), ffn(512)),
    BlockSpec(NOOP, ffn(1024, "swiglu_fused")),
    BlockSpec(LINEAR, NOOP),
    BlockSpec(NOOP, NOOP),
    BlockSpec(attention(1), LINEAR),
)


def test_a_reader_of_the_documented_keys_finds_the_shapes_of_every_variant():
    config = json.loads(json.dumps(decilm_config(EVERY_VARIANT)))
    expected = {name: shape for name, shape in expected_shapes(EVERY_VARIANT).items() if ".layers." in name}
    assert documented_shapes(config) == expected


def test_keys_are_nvidias_and_null_where_there_is_nothing():
    blocks = decilm_config(EVERY_VARIANT)["block_configs"]
    assert {tuple(block["attention"]) for block in blocks} == {("n_heads_in_group", "no_op", "replace_with_linear")}
    assert {tuple(block["ffn"]) for block in blocks} == {("ffn_mult", "no_op", "replace_with_linear")}
    assert [block["attention"]["n_heads_in_group"] for block in blocks] == [1, None, None, None, 4]
    assert [block["ffn"]["ffn_mult"] for block in blocks] == [6.0, 12.0, None, None, None]


def test_a_width_without_multiplier_stops_a_reader_of_the_documented_keys():
    config = decilm_config(child(BlockSpec(attention(), ffn(256)), BlockSpec(attention(), ffn(300))))
    assert [block["ffn"].get("ffn_mult") for block in config["block_configs"]] == [3.0, None]
    assert config["block_configs"][1]["ffn"]["intermediate_size"] == 300
    with pytest.raises(KeyError, match="ffn_mult"):
        documented_shapes(config)


FULL = BlockSpec(attention(), ffn())
NARROW = BlockSpec(attention(1), ffn(512))
LINEAR_ROPE = RopeSpec(scaling=PartSpec("linear", {"factor": 4.0}))


@pytest.mark.parametrize(
    ("spec", "unable"),
    [
        (child(FULL, FULL), set()),
        (child(FULL, FULL, rope=LINEAR_ROPE), set()),  # a stock Llama
        (child(FULL, NARROW), set()),
        (child(FULL, BlockSpec(NOOP, ffn()), NARROW), set()),
        (child(FULL, BlockSpec(NOOP, NOOP), NARROW), set()),
        (child(FULL, BlockSpec(attention(), ffn(300))), {"mlx-lm", "llama.cpp"}),
        (child(FULL, BlockSpec(attention(), NOOP), FULL), {"llama.cpp"}),
        (child(FULL, NARROW, BlockSpec(NOOP, NOOP)), {"llama.cpp"}),
        (child(FULL, NARROW, rope=LINEAR_ROPE), {"llama.cpp"}),
        (child(BlockSpec(NOOP, ffn()), FULL), {"vLLM", "llama.cpp"}),
        (child(BlockSpec(NOOP, NOOP), FULL), {"llama.cpp"}),
        (child(FULL, BlockSpec(LINEAR, ffn()), FULL), {"vLLM", "mlx-lm"}),
        (child(FULL, BlockSpec(attention(), LINEAR), FULL), {"vLLM", "mlx-lm", "llama.cpp"}),
        (
            child(BlockSpec(attention(head_dim=16), ffn()), FULL.replace(attention=attention(1, 16))),
            {"mlx-lm", "llama.cpp"},
        ),
        (child(FULL, NARROW, hidden_size=130), {"mlx-lm"}),
        (child(BlockSpec(NOOP, ffn()), BlockSpec(NOOP, NOOP)), {"vLLM", "vLLM with lnlit-vllm", "mlx-lm", "llama.cpp"}),
    ],
)
def test_who_cannot_load_a_model_is_known(spec, unable):
    """What is listed here as known is held against the readers' own code by tests/integration/test_readers.py."""
    assert {reader for reader, reasons in obstacles(spec).items() if reasons} == unable


def test_a_reason_is_given_once_with_its_places():
    wide = BlockSpec(attention(), ffn(300))
    able, *lines = sentences(obstacles(child(FULL, *[wide] * 5)))
    assert able == "transformers, vLLM, vLLM with lnlit-vllm can run this architecture"
    assert lines == [
        f"{reader} cannot: it knows FFN widths as ffn_mult only, and that says multiples of 256 "
        "(layers[1].ffn, layers[2].ffn, layers[3].ffn and 2 more)"
        for reader in ("mlx-lm", "llama.cpp")
    ]


@pytest.mark.parametrize(
    ("vocabulary", "size", "able"),
    [
        ({"type": "BPE"}, 97, False),
        ({"type": "BPE"}, 128_256, True),
        ({"type": "BPE", "byte_fallback": True}, 97, True),
    ],
)
def test_llama_cpp_converts_few_vocabularies_in_this_architecture(tmp_path, vocabulary, size, able):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": vocabulary}))
    spec = child(FULL, NARROW, vocab_size=size)
    assert (obstacles(spec, tmp_path)["llama.cpp"] == []) == able
    assert obstacles(spec.replace(layers=(FULL, FULL)), tmp_path)["llama.cpp"] == []

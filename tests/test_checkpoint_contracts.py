"""The contract of every built-in checkpoint format, on a small model written in it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch

from lnlit import registry
from lnlit.checkpoint.folder import save_folder
from lnlit.models.build import build_decoder, init_weights
from lnlit.models.decoder import Decoder
from lnlit.models.layout import packed_runs
from lnlit.models.weights import canonical_weights
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.testing import contracts

GQA = PartSpec("gqa", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8})
SWIGLU = PartSpec("swiglu", {"intermediate_size": 48})
PLAIN = (BlockSpec(GQA, SWIGLU), BlockSpec(GQA, SWIGLU))
MIXED = (BlockSpec(GQA, SWIGLU), BlockSpec(NOOP, PartSpec("swiglu_fused", {"intermediate_size": 24})))


def decoder_of(layers: tuple[BlockSpec, ...], tied: bool) -> Decoder:
    return init_weights(build_decoder(ModelSpec(64, 32, layers, 128, tie_embeddings=tied), "cpu"))


def in_folder(folder: Path, layers: tuple[BlockSpec, ...], tied: bool, keep_spec: bool, like: str = "") -> Path:
    decoder = decoder_of(layers, tied)
    (model := folder.with_name("before")).mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": like}))
    save_folder(folder, decoder.spec, canonical_weights(decoder), tokenizer_from=model, provenance={})
    assert json.loads((folder / "config.json").read_text())["model_type"].startswith(like)
    if not keep_spec:
        (folder / "lnlit.json").unlink()
    return folder


def in_ckpt(file: Path, tied: bool) -> Path:
    decoder = decoder_of(MIXED, tied)
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    torch.save(
        {
            "state_dict": state,
            "lnlit": {"spec": json.dumps(decoder.spec.to_json()), "packed_runs": packed_runs(decoder), "model": None},
        },
        file,
    )
    return file


def in_gguf(file: Path, tied: bool) -> Path:
    decoder, args = decoder_of(PLAIN, tied), GQA.args
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(decoder.spec.context_length)
    writer.add_embedding_length(decoder.spec.hidden_size)
    writer.add_block_count(len(PLAIN))
    writer.add_feed_forward_length(SWIGLU.args["intermediate_size"])
    writer.add_head_count(args["num_heads"])
    writer.add_head_count_kv(args["num_kv_heads"])
    writer.add_layer_norm_rms_eps(decoder.spec.norm_eps)
    writer.add_rope_freq_base(decoder.spec.rope.theta)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, len(PLAIN))
    for name, tensor in canonical_weights(decoder):
        stem, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def in_family(name: str, first: dict, second: dict):
    """A writer of layers whose attention has further arguments."""
    layers = tuple(BlockSpec(GQA.replace(**args), SWIGLU) for args in (first, second))
    return lambda folder, tied: in_folder(folder / "model", layers, tied, keep_spec=False, like=name)


QKV_BIAS = {"bias": True, "output_bias": False}
WRITERS = {
    "mistral": in_family("mistral", {"window": 5}, {"window": 5}),
    "qwen2": in_family("qwen2", QKV_BIAS, {**QKV_BIAS, "window": 5}),
    "qwen3": in_family("qwen3", {"qk_norm": True, "window": 5}, {"qk_norm": True}),
    "phi3": in_family("phi3", {"rotary_dim": 4}, {"rotary_dim": 4}),
    "smollm3": in_family("smollm3", {"rotary_dim": 0}, {}),
    "lnlit": lambda folder, tied: in_folder(folder / "model", MIXED, tied, keep_spec=True),
    "llama": lambda folder, tied: in_folder(folder / "model", PLAIN, tied, keep_spec=False),
    "decilm": lambda folder, tied: in_folder(folder / "model", MIXED, tied, keep_spec=False),
    "gguf": lambda folder, tied: in_gguf(folder / "model.gguf", tied),
    "lightning": lambda folder, tied: in_ckpt(folder / "model.ckpt", tied),
}


def test_every_format_is_covered():
    assert {e.name for e in registry.entries("checkpoint") if e.distribution == "lnlit"} == WRITERS.keys()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", WRITERS)
def test_checkpoint_format(name: str, tied: bool, tmp_path: Path):
    contracts.check_checkpoint(name, WRITERS[name](tmp_path, tied))


class Renames:
    """Mixed into a format, breaks its promise about names."""

    def weights(self, path: Path):
        for name, tensor in super().weights(path):  # type: ignore[misc]
            yield name.replace("up_proj", "upper_proj"), tensor


class Transposes:
    def weights(self, path: Path):
        for name, tensor in super().weights(path):  # type: ignore[misc]
            yield name, tensor.movedim(0, -1)


class TakesAnything:
    def recognises(self, path: Path) -> bool:
        return True


@pytest.mark.parametrize(
    ("fault", "promise"),
    [(Renames, "weights differ from the spec's"), (Transposes, "shapes differ"), (TakesAnything, "an empty folder")],
)
def test_a_broken_format_is_caught(fault, promise, tmp_path, monkeypatch):
    broken = type("Broken", (fault, registry.get("checkpoint", "llama")), {})
    monkeypatch.setattr(registry, "_added", {("checkpoint", "broken"): broken})
    with pytest.raises(AssertionError, match=promise):
        contracts.check_checkpoint("broken", WRITERS["llama"](tmp_path, True))

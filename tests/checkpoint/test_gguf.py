"""GGUF: the same weights as transformers' own reader, Llama 3's rope recovered, damage and other models refused."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from checkpoint_models import save_tiny

from lnlit.checkpoint.formats import open_checkpoint, read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.errors import UserError
from lnlit.models.build import build_decoder


def interleaved(tensor, heads):
    """llama.cpp's row order of a query or key projection."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)


def write_gguf(file, model, tensors=None, architecture="llama", **fields):
    """A GGUF file as llama.cpp's converter lays it out."""
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key, value in fields.items():
        getattr(writer, key)(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        if ".q_proj" in name:
            tensor = interleaved(tensor, config.num_attention_heads)
        elif ".k_proj" in name:
            tensor = interleaved(tensor, config.num_key_value_heads)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.contiguous().numpy())
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_biases_untied_heads_and_own_head_size(tmp_path):
    model = save_tiny(tmp_path, attention_bias=True, mlp_bias=True, head_dim=22, rms_norm_eps=1e-5)
    file = write_gguf(tmp_path / "tiny.gguf", model)
    spec = read_spec(file)
    assert spec == read_spec(tmp_path)
    decoder = build_decoder(spec, "cpu")
    load_weights(decoder, file)
    tokens = torch.arange(90)[None]
    with torch.no_grad():
        assert (decoder(tokens) - model(tokens).logits).abs().max() <= 1e-5


def rope_divisors(model):
    default, _ = model.model.rotary_emb.compute_default_rope_parameters(model.config)
    return (default / model.model.rotary_emb.inv_freq).numpy()


def test_llama3_rope_is_recovered_from_its_divisors(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = save_tiny(tmp_path, rope_parameters=rope, max_position_embeddings=131072, head_dim=64)
    file = write_gguf(tmp_path / "tiny.gguf", model, {"rope_freqs.weight": rope_divisors(model)})
    assert read_spec(file).rope == read_spec(tmp_path).rope


def test_other_frequency_tables_are_refused(tmp_path):
    model = save_tiny(tmp_path)
    file = write_gguf(tmp_path / "tiny.gguf", model, {"rope_freqs.weight": np.array([1, 3, 2, 4], dtype=np.float32)})
    with pytest.raises(UserError, match=r"rope_freqs.weight is not Llama 3's rule"):
        read_spec(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "general.architecture 'qwen2' is not supported. Supported: llama"),
        ({"add_expert_count": 8}, "mixture-of-experts"),
        ({"add_rope_scaling_type": gguf.RopeScalingType.YARN}, "llama.rope.scaling.type 'yarn' is not supported"),
        ({"tensors": {"blk.0.extra.weight": np.ones(4, dtype=np.float32)}}, "blk.0.extra.weight is unexpected"),
    ],
)
def test_models_that_are_not_llamas_are_refused_by_name(tmp_path, changes, message):
    file = write_gguf(tmp_path / "tiny.gguf", save_tiny(tmp_path), **changes)
    with pytest.raises(UserError, match=message):
        list(open_checkpoint(file).weights(file))


def test_a_truncated_file_is_named(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", save_tiny(tmp_path))
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"tiny.gguf: not a complete GGUF file"):
        read_spec(file)

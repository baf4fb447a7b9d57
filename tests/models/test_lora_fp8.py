"""LoRA adapters and float8 linears."""

import pytest
import torch

from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.fp8 import to_float8
from lnlit.models.lora import LoRA, add_lora, base_parameters, init_lora
from lnlit.models.weights import canonical_weights, fill
from lnlit.testing.tiny import VOCAB_SIZE, mixed_spec, swiglu, tiny_decoder, tiny_spec

ROW = torch.arange(1, 11)[None]


def with_adapters(lora: LoRA = LoRA(rank=4, targets=("q_proj", "down_proj"))):  # noqa: B008 - frozen
    decoder = tiny_decoder(mixed_spec())
    before = decoder(ROW)
    add_lora(decoder, lora)
    base = tiny_decoder(mixed_spec()).state_dict()
    decoder.load_state_dict(base, strict=False)
    init_lora(decoder)
    return decoder, before


def test_fresh_adapters_change_nothing_and_only_they_train():
    decoder, before = with_adapters()
    assert torch.equal(decoder(ROW), before)
    trained = {name for name, p in decoder.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(not p.requires_grad for _, p in base_parameters(decoder))


def test_exported_weights_have_the_adapters_merged():
    decoder, before = with_adapters()
    for name, parameter in decoder.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = decoder(ROW)
    assert (adapted - before).abs().max() > 1e-2
    plain = build_decoder(mixed_spec(), "cpu")
    fill(plain, canonical_weights(decoder), "test")
    torch.testing.assert_close(plain(ROW), adapted, atol=1e-4, rtol=0)


def test_unknown_lora_target_names_the_present_ones():
    with pytest.raises(UserError, match=r"no linear is called query. Present: .*q_proj"):
        add_lora(tiny_decoder(), LoRA(targets=("query",)))


def test_float8_converts_what_fits_and_keeps_names_and_dtypes():
    spec = tiny_spec().replace(layers=(*tiny_spec().layers, tiny_spec().layers[0].replace(ffn=swiglu(40))))
    decoder = tiny_decoder(spec)
    state, before = decoder.state_dict(), decoder(ROW)
    converted = to_float8(decoder, "tensorwise", "cpu")
    assert converted == 3 * 7 - 3  # the 40-wide FFN's three linears are no multiples of 16
    assert {k: v.dtype for k, v in decoder.state_dict().items()} == {k: v.dtype for k, v in state.items()}
    after = decoder(ROW)
    relative = ((after - before).norm() / before.norm()).item()
    assert 1e-4 < relative < 0.25, relative  # float8 rounding is there, and small
    after.logsumexp(-1).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)
    assert after.shape[-1] == VOCAB_SIZE


def test_float8_is_refused_without_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match=r"8.9 or later.*this GPU has 8.0"):
        to_float8(tiny_decoder(), "tensorwise", "cuda")

"""LoRA adapters and float8 linears."""

import lightning as L
import pytest
import torch

from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.fp8 import FLOAT8_MULTIPLE, float8_summary, to_float8
from lnlit.models.lora import LoRA, add_lora, base_parameters, init_lora
from lnlit.models.weights import canonical_weights, fill
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.testing.tiny import VOCAB_SIZE, mixed_spec, swiglu, tiny_decoder, tiny_folder, tiny_spec

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
    assert float8_summary(decoder) == (
        "float8: 18 linears of the blocks, emulated, which is slow; not the embedding, the head, "
        "1 gate_proj + 1 up_proj + 1 down_proj, of which a side on a rank is no multiple of 16"
    )
    assert {k: v.dtype for k, v in decoder.state_dict().items()} == {k: v.dtype for k, v in state.items()}
    after = decoder(ROW)
    relative = ((after - before).norm() / before.norm()).item()
    assert 1e-4 < relative < 0.25, relative  # float8 rounding is there, and small
    after.logsumexp(-1).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)
    assert after.shape[-1] == VOCAB_SIZE


def test_the_summary_counts_linears_that_adapters_keep_from_float8():
    decoder = with_adapters(LoRA(rank=4, targets=("q_proj",)))[0]
    converted = to_float8(decoder, "tensorwise", "cpu")
    adapted = sum(name.endswith("q_proj") for name, _ in decoder.named_modules())
    assert float8_summary(decoder) == (
        f"float8: {converted} linears of the blocks, emulated, which is slow; not the embedding, the head, "
        f"{adapted} linears with LoRA adapters, 1 k_proj + 1 v_proj, of which a side on a rank is no multiple of 16"
    )


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of all float8 products. Emulation takes any; as hardware does, this refuses others than
    multiples of 16 in the second and the third."""
    from torchao.float8 import float8_ops

    seen, original = [], float8_ops.preprocess_addmm

    def strict(a, b):
        rows, inner, columns = *a._data.shape, b._data.shape[1]
        seen.append((rows, inner, columns))
        if inner % 16 or columns % 16:
            raise RuntimeError(f"no float8 product of {rows} x {inner} and {inner} x {columns}")
        return original(a, b)

    monkeypatch.setattr(float8_ops, "preprocess_addmm", strict)
    return seen


@pytest.mark.parametrize("tokens", [32, 40])
def test_float8_needs_a_micro_batch_of_a_multiple_of_16_tokens(products, tokens):
    """In one of a linear's three products only, the gradient of its weight."""
    decoder = tiny_decoder(mixed_spec())
    converted = to_float8(decoder, "tensorwise", "cpu")
    out = decoder(torch.randint(0, 250, (1, tokens)))
    assert len(products) == converted
    if tokens % FLOAT8_MULTIPLE:
        with pytest.raises(RuntimeError, match=f"no float8 product of .* x {tokens} and {tokens} x"):
            out.sum().backward()
    else:
        out.sum().backward()
        assert len(products) == 3 * converted


@pytest.mark.parametrize(("length", "rows", "fits"), [(1000, 1, False), (1008, 1, True), (1000, 2, True)])
def test_rows_that_float8_cannot_take_are_refused_before_weights_are_read(tmp_path, length, rows, fits):
    model = str(tiny_folder(tmp_path / "model", tiny_spec().replace(context_length=2048)))
    file = tmp_path / "rows.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **quiet)
    module = SFT(model, AdamW(1e-3, schedule="constant", warmup_ratio=0.0), Runtime(precision="fp8"))
    data = ChatData(model, JsonlSource(str(file)), length, rows)
    if fits:
        return trainer.fit(module, data)
    with pytest.raises(
        UserError, match=r"a micro-batch has 1000 tokens, and with runtime.precision: fp8 it needs a mul"
    ):
        trainer.fit(module, data)
    assert not hasattr(module, "decoder")


def test_float8_is_refused_without_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match=r"8.9 or later.*this GPU has 8.0"):
        to_float8(tiny_decoder(), "tensorwise", "cuda")

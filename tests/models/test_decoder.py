"""The heterogeneous decoder: packing, gradients, memory options."""

import pytest
import torch

from lnlit.models.build import build_decoder, parameter_count
from lnlit.models.decoder import Decoder
from lnlit.specs import NOOP, BlockSpec
from lnlit.testing.tiny import VOCAB_SIZE, attention, mixed_spec, swiglu, tiny_decoder, tiny_spec


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_packed_documents_give_what_they_give_alone():
    decoder, row = tiny_decoder(mixed_spec()), tokens(1, 20)
    positions = torch.tensor([[*range(7), *range(13)]])
    packed = decoder(row, positions, [7, 13])
    alone = torch.cat([decoder(row[:, :7]), decoder(row[:, 7:])], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


def test_one_document_instead_of_two_differs():
    decoder, row = tiny_decoder(mixed_spec()), tokens(1, 20)
    positions = torch.tensor([[*range(7), *range(13)]])
    assert (decoder(row, positions, [20]) - decoder(row, positions, [7, 13])).abs().max() > 1e-2


def test_a_later_token_never_changes_an_earlier_logit():
    decoder, row = tiny_decoder(mixed_spec()), tokens(1, 12)
    changed = row.clone()
    changed[0, 8] = (row[0, 8] + 1) % VOCAB_SIZE
    before, after = decoder(row), decoder(changed)
    assert torch.equal(before[:, :8], after[:, :8]) and not torch.equal(before[:, 8:], after[:, 8:])


def test_every_parameter_of_every_mixture_gets_a_gradient():
    decoder = tiny_decoder(mixed_spec())
    decoder(tokens(2, 9)).square().sum().backward()
    without = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_noop_slot_has_neither_weights_nor_norm():
    spec = tiny_spec().replace(layers=(BlockSpec(NOOP, NOOP), BlockSpec(attention(), swiglu())))
    assert parameter_count(build_decoder(spec).layers[0]) == 0
    decoder, row = tiny_decoder(spec), tokens(1, 5)
    x = decoder.embed_tokens(row)
    assert torch.equal(decoder.layers[0](x, None, None), x)  # type: ignore[arg-type]


def test_fused_gate_and_up_projection_is_the_same_function():
    plain = tiny_decoder(tiny_spec())
    fused_spec = tiny_spec().map_parts(lambda p: type(p)("swiglu_fused", p.args) if p.type == "swiglu" else p)
    fused = build_decoder(fused_spec, "cpu")
    state = plain.state_dict()
    for own, packed in fused.packed_weights().items():
        gate, up = (state.pop(part).unflatten(0, (16, -1)) for part in packed.parts)
        state[own] = torch.cat([rows for pair in zip(gate, up, strict=True) for rows in pair])
    fused.load_state_dict(state)
    torch.testing.assert_close(plain(tokens(2, 9)), fused(tokens(2, 9)), atol=1e-5, rtol=0)


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for option in (False, True):
        decoder = tiny_decoder(mixed_spec())
        decoder.activation_checkpointing = option
        decoder(tokens(2, 9)).square().sum().backward()
        gradients.append([p.grad for p in decoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_head_count_need_not_divide_the_width():
    spec = tiny_spec().replace(
        layers=(BlockSpec(attention().replace(num_heads=5, num_kv_heads=5, head_dim=6), swiglu()),)
    )
    assert tiny_decoder(spec)(tokens(1, 4)).shape == (1, 4, VOCAB_SIZE)


def test_building_on_meta_allocates_nothing():
    huge = tiny_spec().replace(vocab_size=128_256, hidden_size=8192)
    assert {p.device.type for p in build_decoder(huge).parameters()} == {"meta"}


def test_read_out_runs_on_hidden_states_and_head():
    decoder, row = tiny_decoder(), tokens(1, 6)
    logits = decoder(row, read_out=lambda hidden, weight: hidden @ weight.T)
    torch.testing.assert_close(logits, decoder(row))


@pytest.mark.parametrize("kernel", ["flex", "varlen"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the refusal without CUDA")
def test_a_cuda_kernel_says_why_it_cannot_run(kernel):
    with pytest.raises(ValueError, match=rf"kernel '{kernel}' cannot run here: .*CUDA.*Available: auto, sdpa"):
        Decoder(tiny_spec(), attention_kernel=kernel)(tokens(1, 4))

"""What only a GPU can show. Run with: python -m pytest tests/gpu"""

import pytest
import torch

from lnlit import registry
from lnlit.models.fp8 import to_float8
from lnlit.models.kernels import make_segments
from lnlit.testing.tiny import mixed_spec, tiny_decoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LENGTHS = (100, 156, 33, 223)


@pytest.mark.parametrize("name", ["flex", "varlen", "flash_attn"])
def test_a_kernel_equals_sdpa_in_bf16(name):
    if name not in registry.names("attention_kernel"):
        pytest.skip("plugin not installed")
    kernel = registry.get("attention_kernel", name)
    if reason := kernel.unavailable():  # type: ignore[attr-defined]
        pytest.skip(reason)
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, 256, heads, 64) for heads in (8, 2, 2)]
    inputs = [torch.randn(s, device="cuda", dtype=torch.bfloat16, generator=generator) for s in shapes]
    segments = make_segments(LENGTHS, torch.device("cuda"))
    results = []
    for which in ("sdpa", name):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = registry.build("attention_kernel", which).attend(*leaves, segments)
        out.float().square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2)


def test_the_mixed_model_gives_on_the_gpu_what_it_gives_on_the_cpu():
    decoder = tiny_decoder(mixed_spec())
    tokens = torch.arange(1, 60)[None]
    expected = decoder(tokens)
    found = decoder.to("cuda")(tokens.cuda()).cpu()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs float8 hardware"
)
def test_float8_products_train():
    decoder = tiny_decoder().to("cuda")
    assert to_float8(decoder, "tensorwise", "cuda") > 0
    tokens = torch.randint(0, 256, (2, 64), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        decoder(tokens).logsumexp(-1).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)

"""The flash-attn plugin without flash-attn, and with a stand-in that has flash-attn's signature."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lnlit import registry
from lnlit.errors import UserError
from lnlit.models.kernels import SDPAKernel, make_segments, select_kernel
from lnlit.testing import contracts

FILE = Path(__file__).parents[2] / "plugins" / "lnlit-flash-attn" / "lnlit_flash_attn.py"


@pytest.fixture
def kernel(monkeypatch):
    spec = importlib.util.spec_from_file_location("lnlit_flash_attn", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(registry, "_added", {("attention_kernel", "flash_attn"): module.FlashAttnKernel})
    return module.FlashAttnKernel


@pytest.fixture
def stand_in(kernel, monkeypatch):
    """A `flash_attn` module whose function takes what the real one takes and computes it on CPU."""

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, causal=False, window_size=(-1, -1)
    ):
        assert causal and q.dim() == 3 and cu_seqlens_q.dtype == torch.int32
        assert torch.equal(cu_seqlens_q, cu_seqlens_k) and max_seqlen_q == max_seqlen_k
        lengths = cu_seqlens_q.diff().tolist()
        assert max_seqlen_q >= max(lengths)  # an upper bound will do
        window = None if window_size[0] < 0 else window_size[0] + 1  # it counts those to the left
        return SDPAKernel().attend(q[None], k[None], v[None], make_segments(lengths, q.device), window)[0]

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(kernel, "unavailable", classmethod(lambda cls: None))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_why(kernel):
    with pytest.raises(UserError, match="'flash_attn' cannot run here: flash-attn needs a CUDA GPU"):
        select_kernel("flash_attn", "cpu")


def test_without_the_package_it_says_how_to_install_it(kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert "pip install" in (kernel.unavailable() or "")


def test_contract_with_the_stand_in(stand_in):
    halves = (torch.bfloat16, torch.float16)
    assert contracts.check_attention_kernel("flash_attn", device="cpu", dtypes=halves) is None


def test_full_precision_is_refused_in_words(kernel, stand_in):
    x_BTHd = torch.zeros(1, 4, 2, 8)
    with pytest.raises(UserError, match="takes bfloat16 or float16"):
        kernel().attend(x_BTHd, x_BTHd, x_BTHd, make_segments([4], x_BTHd.device))

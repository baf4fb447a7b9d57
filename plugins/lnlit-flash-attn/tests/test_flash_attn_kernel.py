from __future__ import annotations

import pytest
import torch

from lnlit.testing import contracts


def test_contract():
    if reason := contracts.check_attention_kernel("flash_attn", dtypes=(torch.bfloat16, torch.float16)):
        pytest.skip(reason)

from __future__ import annotations

import pytest

from lnlit.testing import contracts


def test_contract():
    if reason := contracts.check_attention_kernel("example"):
        pytest.skip(reason)

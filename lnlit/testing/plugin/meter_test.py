from __future__ import annotations

from lnlit import registry
from lnlit.testing.meter_contract import check_meter


def test_contract():
    check_meter(lambda: registry.build("meter", "example"), dtypes=("float32", "bfloat16"))

from __future__ import annotations

from lnlit import registry
from lnlit.testing import contracts


def test_contract():
    contracts.check_source(lambda: registry.build("source", "example", largest=3))


def test_the_answer_is_the_sum():
    assert next(registry.build("source", "example").rows(57))["answer"] == "12"

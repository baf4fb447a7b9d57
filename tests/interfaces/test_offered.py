"""What part authors need is offered beside the sockets, and imported when it is asked for."""

from __future__ import annotations

import pytest

from lnlit import interfaces


def test_every_offered_name_is_there_and_told():
    assert interfaces.__doc__ is not None
    for name in interfaces._OFFERED:
        assert callable(getattr(interfaces, name)) and f"`{name}`" in interfaces.__doc__


def test_a_name_that_nobody_offers_is_an_import_error():
    with pytest.raises(ImportError, match="cannot import name 'apply_ropes'"):
        from lnlit.interfaces import apply_ropes  # noqa: F401

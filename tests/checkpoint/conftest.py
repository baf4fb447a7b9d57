"""What transformers copies of folders' own code stays in the tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def without_users_cache(remote_code_cache):
    pass

"""What several tests of modules start from, and runs of `BlockDistill` that they look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from distillery import Distillery
from experience_run import write
from warm import torchrun

from lnlit.search.library import Library


@pytest.fixture(scope="session")
def model(tiny_parent) -> Path:
    return tiny_parent


@pytest.fixture(scope="session")
def prompts(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", [f"say {n}" for n in range(10)])


@pytest.fixture
def distillery(tiny_parent, built_library, text_file, tmp_path) -> Distillery:
    return Distillery(tiny_parent, built_library, text_file, tmp_path)


@pytest.fixture(scope="session")
def alone(built_library, tiny_parent, text_file, tmp_path_factory) -> Library:
    """One run left alone, which others are compared with."""
    distillery = Distillery(tiny_parent, built_library, text_file, tmp_path_factory.mktemp("alone"))
    library = distillery.fit("out")
    assert library is not None
    return library


@pytest.fixture(scope="session")
def two_ranks(tiny_parent, built_library, text_file, tmp_path_factory) -> Path:
    """Runs of two ranks with a row each per step, where the others have one rank with two rows."""
    folder = tmp_path_factory.mktemp("two_ranks")
    script = Path(__file__).with_name("two_rank_distill.py")
    torchrun(2, script, tiny_parent, built_library, text_file, folder, cwd=folder, timeout=120)
    return folder

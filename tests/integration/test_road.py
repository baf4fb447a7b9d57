"""The road of `make road` in one process, without vLLM: plugins known as if installed, every stage by command line."""

from __future__ import annotations

import pytest
from lnlit_greedy import greedy
from published import publish
from road import NEW_TOKENS, PROMPTS, STRANGER, WALKS, Walk, walked
from tokenizers import Tokenizer
from transformers_greedy import greedy as greedy_in_transformers

from lnlit.cli.main import main
from lnlit.cli.new_plugin import write_plugin
from lnlit.testing.tiny import save_tokenizer


@pytest.fixture(params=WALKS, ids=lambda walk: walk.name)
def walk(request, installed, tmp_path, monkeypatch, remote_code_cache) -> Walk:
    """A walk whose model is published, in the working directory."""
    for package in (STRANGER, write_plugin("ffn", "geglu", tmp_path / "lnlit-geglu")):
        installed(package)
    save_tokenizer(tmp_path / "words")
    publish(request.param.family, str(tmp_path / "words"), str(tmp_path / "published"), request.param.model_type)
    monkeypatch.chdir(tmp_path)
    return request.param


def lnlit(words: list[str]) -> None:
    assert main(words) == 0, words


@pytest.mark.timeout(900)  # all stages of the pipeline
def test_from_a_published_model_to_the_same_tokens(walk, tmp_path):
    # A child that transformers cannot run is compared by `make road`, with vLLM: here its way ends with its weights.
    whole = "transformers" in walk.readers
    for stage, told in walked(walk, tmp_path, lnlit):
        print(f"{stage}: {told}")
        if stage == "3b_realize" and not whole:
            return
    words = Tokenizer.from_file("served/tokenizer.json")
    request = {"prompts": [words.encode(prompt).ids for prompt in PROMPTS], "new_tokens": NEW_TOKENS}
    ours = greedy("served", request)["tokens"]
    assert [len(tokens) for tokens in ours] == [NEW_TOKENS] * len(PROMPTS)
    assert greedy_in_transformers("served", request)["tokens"] == ours

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


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.name)
def test_from_a_published_model_to_the_same_tokens(walk: Walk, installed, tmp_path, monkeypatch, remote_code_cache):
    for package in (STRANGER, write_plugin("ffn", "geglu", tmp_path / "lnlit-geglu")):
        installed(package)
    save_tokenizer(tmp_path / "words")
    publish(walk.family, str(tmp_path / "words"), str(tmp_path / "published"), walk.model_type)
    monkeypatch.chdir(tmp_path)

    def lnlit(words: list[str]) -> None:
        assert main(words) == 0, words

    for stage, told in walked(walk, tmp_path, lnlit):
        print(f"{stage}: {told}")
    words = Tokenizer.from_file("served/tokenizer.json")
    request = {"prompts": [words.encode(prompt).ids for prompt in PROMPTS], "new_tokens": NEW_TOKENS}
    ours = greedy("served", request)["tokens"]
    assert [len(tokens) for tokens in ours] == [NEW_TOKENS] * len(PROMPTS)
    if "transformers" in walk.readers:
        assert greedy_in_transformers("served", request)["tokens"] == ours

"""A reward that a language model says with one of its logits, as NVIDIA's Llama-3.1-Nemotron-70B-Reward does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from warm import torchrun

from lnlit.errors import UserError
from lnlit.interfaces import RewardRequest
from lnlit.models.reward_head import FILE
from lnlit.modules.model_reward import ModelReward
from lnlit.testing.tiny import tiny_folder

ASKED = [
    RewardRequest([{"role": "user", "content": question}], answer, False)
    for question, answer in (("1+1?", "2"), ("1+1?", "It may be three."), ("Why?", "Because."))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("reward") / "model")


@pytest.mark.parametrize("logit", [0, 7])
def test_it_is_transformers_logit_behind_the_conversation(folder, logit):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = []
    for request in ASKED:
        chat = [*request.messages, {"role": "assistant", "content": request.completion}]
        text = tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits
        expected.append(logits[0, -1, logit].item())
    reward = ModelReward(str(folder), logit_index=logit, dtype="float32")
    assert [result.value for result in reward.score_batch(ASKED)] == pytest.approx(expected, abs=1e-5)


def test_a_logit_that_is_not_there_is_refused(folder):
    with pytest.raises(UserError, match="logit_index: expected the number of a token"):
        ModelReward(str(folder), logit_index=-1)
    with pytest.raises(UserError, match="so none is 999999"):
        ModelReward(str(folder), logit_index=999_999).score_batch(ASKED)


def test_ranks_that_share_a_judge_get_the_rewards_of_a_whole_one(tmp_path):
    """Also where one has nothing to judge. Each rank holds half of it."""
    model = tiny_folder(tmp_path / "model")
    save_file({"weight": torch.randn(1, 32, generator=torch.Generator().manual_seed(3))}, model / FILE)
    torchrun(2, Path(__file__).with_name("judge_on_ranks.py"), model, cwd=tmp_path, timeout=180)

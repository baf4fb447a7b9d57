"""A small chat tokenizer on disk."""

import json
from pathlib import Path

import pytest
from chat_samples import CHATML


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """Byte-level BPE of a few hundred merges with a ChatML template, as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["detailed thinking on", "detailed thinking off", "The answer is \\boxed{42}.", "<think>\n\n\n1 + 2 = 3"]
    tokenizer.train_from_iterator(text * 10, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(str(folder))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder):
    from lnlit.data.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def encoder(tokenizer):
    from lnlit.data.chat import ChatEncoder

    return ChatEncoder(tokenizer)

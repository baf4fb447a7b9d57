"""A GGUF file's tokenizer: its own vocabulary and no token more, and the ids of the tokenizer that it was made from."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_models import SMOLLM2
from gguf import TokenType
from tokenizer_texts import texts, write_vocabulary
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

import lnlit.specs
from lnlit.checkpoint.formats import resolve
from lnlit.checkpoint.gguf import open_gguf
from lnlit.checkpoint.gguf_tokenizer import gguf_tokenizer
from lnlit.checkpoint.tokenizer import save_tokenizer
from lnlit.errors import UserError

# as the tokenizer.json of Llama 3 and of SmolLM2 cut a text into words
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WORDS = {
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False, use_regex=True)],
}
SPECIAL = [("<|begin|>", TokenType.CONTROL), ("<|eot_id|>", TokenType.NORMAL), ("<think>", TokenType.USER_DEFINED)]
ODD = [
    ("    ", TokenType.USER_DEFINED),
    ("名前é", TokenType.CONTROL),
    ("", TokenType.UNUSED),
    ("<0xF>", TokenType.NORMAL),
]


def byte_level(pre: str) -> Tokenizer:
    """Trained without word rules, so that its merges cross every border and a wrong rule shows."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    code = Path(lnlit.specs.__file__).read_text().splitlines()
    tokenizer.train_from_iterator([*code, *texts(), *(f"{n * 7919 % 10000} {n}" for n in range(300))], trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(WORDS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="module")
def byte_level_file(tmp_path_factory):
    made = {}

    def make(pre: str) -> tuple[Tokenizer, Path]:
        if pre not in made:
            tokenizer = byte_level(pre)
            model = json.loads(tokenizer.to_str())["model"]
            tokens = [*model["vocab"], *(token for token, _ in SPECIAL + ODD)]
            types = [TokenType.NORMAL] * len(model["vocab"]) + [kind for _, kind in SPECIAL + ODD]
            merges = [" ".join(merge) for merge in model["merges"]]
            first = len(model["vocab"])
            file = write_vocabulary(
                tmp_path_factory.mktemp("gguf") / f"{pre}.gguf",
                *("gpt2", tokens, types),
                **{"merges": merges, "pre": pre, "bos_token_id": first, "eos_token_id": first + 1},
            )
            made[pre] = tokenizer, file
        return made[pre]

    return make


@pytest.fixture(scope="module")
def sentence_piece_model(tmp_path_factory):
    """A small Llama 2: SentencePiece's BPE with byte fallback, one digit a token."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    lines = [line for line in Path(lnlit.specs.__file__).read_text().splitlines() if line.strip()]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *(text for text in texts() if not {"\n", "\r", "\0"} & set(text))]),
        model_prefix=str(folder / "tokenizer"),
        **{"model_type": "bpe", "vocab_size": 1400, "byte_fallback": True, "split_digits": True, "minloglevel": 2},
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "hard_vocab_limit": False},
        **{"allow_whitespace_only_pieces": True, "user_defined_symbols": ["<think>"]},
    )
    return spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")), folder / "tokenizer.model"


def sentence_piece_file(model, file: Path, **more) -> Path:
    def kind(index: int) -> TokenType:
        if model.is_unknown(index) or model.is_control(index):
            return TokenType.UNKNOWN if model.is_unknown(index) else TokenType.CONTROL
        special = model.id_to_piece(index) == "<think>"
        return TokenType.BYTE if model.is_byte(index) else TokenType.USER_DEFINED if special else TokenType.NORMAL

    ids = range(model.vocab_size())
    extra = [("<|im_start|>", TokenType.CONTROL), ("    ", TokenType.USER_DEFINED)]
    return write_vocabulary(
        file,
        "llama",
        [*map(model.id_to_piece, ids), *(token for token, _ in extra)],
        [*map(kind, ids), *(kind for _, kind in extra)],
        scores=[*map(model.get_score, ids), -1000.0, -1000.0],
        **more,
    )


def built(file: Path):
    return gguf_tokenizer(open_gguf(file))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("pre", WORDS)
def test_byte_level_files_have_the_ids_of_the_tokenizer_they_were_made_from(byte_level_file, pre):
    theirs, file = byte_level_file(pre)
    ours, _ = built(file)
    compared = [text for text in texts() if "    " not in text]  # four spaces are a token of the file's own
    assert len(compared) > 200
    for text in compared:
        assert ids(ours, text) == ids(theirs, text), text
        assert ours.decode(ids(ours, text)) == text


@pytest.mark.parametrize("pre", WORDS)
def test_the_vocabulary_is_the_files(byte_level_file, tmp_path, pre):
    _, file = byte_level_file(pre)
    tokens = open_gguf(file).list("tokenizer.ggml.tokens")
    save_tokenizer(file, tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    empty = tokens.index("")
    assert saved.get_vocab() == {token or f"[EMPTY_{empty}]": index for index, token in enumerate(tokens)}
    assert saved.unk_token is None and saved.pad_token is None  # the file names none
    assert (saved.bos_token, saved.eos_token) == ("<|begin|>", "<|eot_id|>")


def test_control_tokens_are_special_and_user_defined_ones_are_whole(byte_level_file):
    tokenizer, _ = built(byte_level_file("llama-bpe")[1])
    first = tokenizer.token_to_id("<|begin|>")
    assert tokenizer.encode("a<think><|eot_id|>").ids == [first, *ids(tokenizer, "a"), first + 2, first + 1]
    assert tokenizer.decode([first, first + 2, first + 1]) == "<think>"
    assert tokenizer.token_to_id("<0xF>") not in ids(tokenizer, "<0xF>")  # an ordinary token that no merge makes
    tokenizer.encode_special_tokens = True  # as ChatEncoder does with what a user types
    assert first + 1 not in ids(tokenizer, "<|eot_id|>") and first + 2 in ids(tokenizer, "<think>")


def test_sentencepiece_files_have_sentencepieces_own_ids(sentence_piece_model, tmp_path):
    model, _ = sentence_piece_model
    tokenizer, named = built(sentence_piece_file(model, tmp_path / "spm.gguf"))
    assert named == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    compared = [
        text for text in texts() if not {"    ", "▁"} & {text[i : i + n] for n in (1, 4) for i in range(len(text))}
    ]
    assert len(compared) > 180
    for text in compared:
        assert ids(tokenizer, text) == model.encode(text), text
        assert tokenizer.decode(ids(tokenizer, text)) == text
    assert tokenizer.encode("a").ids[0] == 1  # BOS, as llama.cpp puts it where a file says nothing
    start = tokenizer.token_to_id("<|im_start|>")
    assert ids(tokenizer, "a<|im_start|>a") == [*model.encode("a"), start, *model.encode("a")]


def test_a_sentencepiece_file_may_ask_for_no_space_and_no_bos(sentence_piece_model, tmp_path):
    model, _ = sentence_piece_model
    more = {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": True}
    tokenizer, _ = built(sentence_piece_file(model, tmp_path / "spm.gguf", **more))
    assert tokenizer.encode("a").tokens == ["a", "</s>"]


@pytest.mark.parametrize("legacy", [True, False])
def test_a_tokenizer_model_alone_becomes_a_tokenizer_json(sentence_piece_model, tmp_path, legacy):
    model, file = sentence_piece_model
    (tmp_path / "tokenizer.model").write_bytes(file.read_bytes())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": legacy}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    save_tokenizer(tmp_path, tmp_path / "out")
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in texts():
        if not text.startswith((" ", "\u2581")) and "▁" not in text:
            assert saved(text).input_ids == [1, *model.encode(text)], text
    assert saved.tokenize("a</s>a") == ["▁a", "</s>", "▁a" if legacy else "a"]
    thought = saved.decode(saved("<think>a</s>").input_ids, skip_special_tokens=True)
    assert thought == ("<think> a" if legacy else "<think>a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "llama-bp"}, r"tokenizer.ggml.pre: .*got 'llama-bp'. Did you mean 'llama-bpe'"),
        ({"pre": None}, r"got None. Known: .*smollm.* current llama.cpp"),
        ({"model": "t5"}, r"of the kind 't5' .*Supported: gpt2, llama"),
        ({"tokens": ["a", "b", "a"]}, r"tokens 0 and 2 are both 'a'"),
        ({"bos_token_id": 3}, r"bos_token_id is 3, and there are 3 tokens"),
        ({"merges": ["a b", "b a"]}, r"merge 1, 'b a', needs 'ba', which is no token"),
        ({"add_bos_token": True}, r"bos_token_id: expected one"),
        ({"model": "llama", "scores": [0.0, -1.0, -2.0, -3.0], "add_bos_token": False}, r"3 tokens have 4 scores"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, changes, message):
    arguments = {"model": "gpt2", "tokens": ["a", "b", "ab"], "pre": "gpt-2", "merges": ["a b"]} | changes
    model, tokens = arguments.pop("model"), arguments.pop("tokens")
    file = write_vocabulary(tmp_path / "odd.gguf", model, tokens, [TokenType.NORMAL] * len(tokens), **arguments)
    with pytest.raises(UserError, match=rf"odd.gguf: .*{message}"):
        built(file)


LLAMA_CPP = """
import ctypes, json, sys
from llama_cpp import llama_cpp as cpp
silent = cpp.llama_log_callback(lambda *_: None)
cpp.llama_log_set(silent, ctypes.c_void_p(0))
parameters = cpp.llama_model_default_params()
parameters.vocab_only = True
vocabulary = cpp.llama_model_get_vocab(cpp.llama_model_load_from_file(sys.argv[1].encode(), parameters))
def ids(text, special):
    raw = text.encode()
    buffer = (cpp.llama_token * (4 * len(raw) + 16))()
    return list(buffer[: cpp.llama_tokenize(vocabulary, raw, len(raw), buffer, len(buffer), True, special)])
print(json.dumps([[ids(text, True), ids(text, False)] for text in json.load(sys.stdin)]))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama.cpp is not here; pip install llama-cpp-python builds it",
)
@pytest.mark.parametrize("which", ["llama-bpe", "smollm", "spm", SMOLLM2])
def test_ids_equal_llama_cpps_own(byte_level_file, sentence_piece_model, tmp_path, which, record_property):
    if which == "spm":
        file = sentence_piece_file(sentence_piece_model[0], tmp_path / "spm.gguf")
    else:
        file = resolve(which) if which == SMOLLM2 else byte_level_file(which)[1]
    tokenizer, _ = built(file)
    whole = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    compared = texts(whole[:12])
    answer = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP, str(file)],
        input=json.dumps(compared),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for text, (with_special, as_text) in zip(compared, json.loads(answer), strict=True):
        tokenizer.encode_special_tokens = False
        assert tokenizer.encode(text).ids == with_special, text
        tokenizer.encode_special_tokens = True
        assert tokenizer.encode(text).ids == as_text, text
    record_property("texts_with_equal_ids", len(compared))

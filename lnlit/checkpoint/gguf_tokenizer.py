"""Builds the tokenizer of a GGUF file, which splits text as llama.cpp does (`src/llama-vocab.cpp`).

`tokenizer.ggml.model` names one of two kinds. `gpt2` is byte-level BPE (Llama 3, SmolLM), where `tokenizer.ggml.pre`
names the rules that split a text into words. `llama` is SentencePiece BPE (Llama 2, Mistral), where merges follow from
scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import TokenType
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from lnlit.checkpoint.gguf import GGUFFile
from lnlit.checkpoint.sentence_piece import Vocabulary, add_whole_tokens, sentence_piece, template
from lnlit.errors import UserError, did_you_mean

_KEY = "tokenizer.ggml."
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CASELESS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CASELESS}|{_LETTERS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Words:
    """How a text is split into words: each rule splits what the one before has left. With `whole`, a word that is a
    token needs no merges. With `bos`, texts begin with BOS unless the file says otherwise."""

    rules: tuple[str, ...]
    whole: bool = False
    bos: bool = False


_WORDS = {
    ("default",): _Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"): _Words((_LLAMA3,), whole=True, bos=True),
    ("smaug-bpe", "dbrx", "chatglm-bpe"): _Words((_LLAMA3,)),
    ("glm4",): _Words((_LLAMA3,), whole=True),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): _Words((r"\p{N}", _GPT2)),
    ("gpt-2", "phi-2", "gigachat", "mellum", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"): _Words(
        (_GPT2,)
    ),
    ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo"): _Words((_QWEN2,)),
    ("tekken",): _Words((rf"{'|'.join(_CASED)}|\p{{N}}|{_CASED_REST}",), whole=True, bos=True),
    ("gpt-4o", "llama4", "kanana2"): _Words(
        ("|".join([*(f"{word}{_CASELESS}?" for word in _CASED), rf"\p{{N}}{{1,3}}|{_CASED_REST}"]),)
    ),
    ("falcon",): _Words((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    ("deepseek-v3",): _Words((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3)),
    ("seed-coder",): _Words(
        (rf"{_CASELESS}|{_LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",)
    ),
}

_CONTROL_TEXTS_LISTED = """
<|eot_id|> <|eom_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> </s> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <eos>
<end_of_utterance> <\uff5cend▁of▁sentence\uff5c> <|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim▁begin\uff5c> <PRE>
▁<PRE> <|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim▁hole\uff5c> <SUF> ▁<SUF> <|fim_middle|> <fim-middle>
<fim_middle> <\uff5cfim▁end\uff5c> <MID> ▁<MID> <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|>
<fim-repo> <REPO> <reponame> <|file_sep|>
"""
#: Tokens that llama.cpp treats as control tokens even if a file calls them ordinary: they end a turn or mark code.
_CONTROL_TEXTS = frozenset(_CONTROL_TEXTS_LISTED.split())


def gguf_tokenizer(file: GGUFFile) -> tuple[Tokenizer, dict[str, str]]:
    """(the file's tokenizer, the texts of its special tokens by transformers' names such as `bos_token`).

    Raises `UserError` for an unknown kind or rule, and for a vocabulary that contradicts itself.
    """
    kind = file.get(_KEY + "model")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{file.path}: a tokenizer of the kind {kind!r} (tokenizer.ggml.model) is not supported. Supported: gpt2, "
            "llama. Import the Hugging Face checkpoint instead."
        )
    vocabulary = _vocabulary(file)
    named = _named_tokens(file, vocabulary)
    if kind == "gpt2":
        words = _words(file)
        tokenizer, adds_bos = _byte_level(file, vocabulary, words), words.bos
    else:
        tokenizer, adds_bos = _sentence_piece(file, vocabulary), True
    add_whole_tokens(tokenizer, vocabulary, named.values())
    around = [_around(file, named, "bos", adds_bos), _around(file, named, "eos", False)]
    tokenizer.post_processor = template(vocabulary, *around)
    return tokenizer, named


def _vocabulary(file: GGUFFile) -> Vocabulary:
    # llama.cpp gives an empty token a name too
    tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(file.list(_KEY + "tokens"))]
    if not tokens:
        raise UserError(f"{file.path}: holds no vocabulary (tokenizer.ggml.tokens), so it has no tokenizer.")
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if ids.setdefault(token, index) != index:
            raise UserError(f"{file.path}: tokens {ids[token]} and {index} are both {token!r}.")
    types = file.list(_KEY + "token_type") or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(f"{file.path}: {len(tokens)} tokens have {len(types)} types (tokenizer.ggml.token_type).")
    control = [TokenType.CONTROL if text in _CONTROL_TEXTS else kind for text, kind in zip(tokens, types, strict=True)]
    return Vocabulary(tokens, control)


def _named_tokens(file: GGUFFile, vocabulary: Vocabulary) -> dict[str, str]:
    """The special tokens that the file names, with llama.cpp's defaults for SentencePiece."""
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if file.get(_KEY + "model") == "llama" else {}
    named = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = file.get(f"{_KEY}{theirs}_token_id")
        if index is None and vocabulary.tokens[defaults.get(theirs, -1)] in vocabulary.special:
            index = defaults.get(theirs)
        if index is not None and index >= len(vocabulary.tokens):
            raise UserError(
                f"{file.path}: {_KEY}{theirs}_token_id is {index}, and there are {len(vocabulary.tokens)} tokens."
            )
        if index is not None:
            named[f"{ours}_token"] = vocabulary.tokens[index]
    return named


def _words(file: GGUFFile) -> _Words:
    known = {name: words for names, words in _WORDS.items() for name in names}
    name = file.get(_KEY + "pre")
    if name not in known:
        hint = did_you_mean(name, known) if isinstance(name, str) else ""
        raise UserError(
            f"{file.path}: tokenizer.ggml.pre: expected how text is cut into words, got {name!r}.{hint} Known: "
            f"{', '.join(sorted(known))}. Import the Hugging Face checkpoint, or a file of a current llama.cpp."
        )
    return known[name]


def _byte_level(file: GGUFFile, vocabulary: Vocabulary, words: _Words) -> Tokenizer:
    ids = vocabulary.ids
    merges = []
    for number, merge in enumerate(file.list(_KEY + "merges")):
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if absent := [text for text in (left, right, left + right) if text not in ids]:
            raise UserError(f"{file.path}: merge {number}, {merge!r}, needs {absent[0]!r}, which is no token.")
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=words.whole))
    cuts = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in words.rules]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: GGUFFile, vocabulary: Vocabulary) -> Tokenizer:
    scores = file.list(_KEY + "scores")
    if len(scores) != len(vocabulary.tokens):
        raise UserError(f"{file.path}: {len(vocabulary.tokens)} tokens have {len(scores)} scores.")
    return sentence_piece(vocabulary, scores, "always" if file.get(_KEY + "add_space_prefix", True) else "never")


def _around(file: GGUFFile, named: dict[str, str], name: str, default: bool) -> str | None:
    """The token that the file puts before (`bos`) or after (`eos`) a text."""
    if not file.get(f"{_KEY}add_{name}_token", default):
        return None
    if f"{name}_token" not in named:
        raise UserError(f"{file.path}: {_KEY}{name}_token_id: expected one, for the file asks for {name.upper()}.")
    return named[f"{name}_token"]

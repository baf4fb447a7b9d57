"""SentencePiece's BPE (Llama 2, Mistral) as a Hugging Face tokenizer, from a vocabulary with scores or a
tokenizer.model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lnlit.errors import UserError

#: Where a space is inserted: before a text and after special tokens, before a text only, or nowhere.
Prefix = Literal["always", "first", "never"]
_BPE = 2  # TrainerSpec.ModelType


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, without duplicates, and the type of each."""

    tokens: Sequence[str]
    types: Sequence[int]

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def of_type(self, *types: TokenType) -> set[str]:
        return {token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types}

    @property
    def special(self) -> set[str]:
        """The tokens that are not text: control tokens and the unknown token."""
        return self.of_type(TokenType.CONTROL, TokenType.UNKNOWN)


def sentence_piece(vocabulary: Vocabulary, scores: Sequence[float], prefix: Prefix) -> Tokenizer:
    """A tokenizer that merges the neighbours whose combined token has the best score first. Text without a token falls
    back to bytes."""
    unknown = next(iter(vocabulary.of_type(TokenType.UNKNOWN)), None)
    merges = _merges_by_score(vocabulary, scores)
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True))
    if prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        before = [normalizers.Prepend("▁")] if prefix == "always" else []
        tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix != "never" else []
    to_text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*to_text, *strip])
    return tokenizer


def _merges_by_score(vocabulary: Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, best score first. Control and byte tokens are never made from text."""
    texts = set(vocabulary.tokens) - vocabulary.special - vocabulary.of_type(TokenType.BYTE)
    best_first = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [
        (token[:cut], token[cut:])
        for token in map(vocabulary.tokens.__getitem__, best_first)
        if token in texts
        for cut in range(1, len(token))
        if token[:cut] in texts and token[cut:] in texts
    ]


def add_whole_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary, named: Iterable[str]) -> None:
    """Adds control, unknown and user-defined tokens, which are matched as a whole in a text. The `named` ones (BOS,
    ...) are special."""
    special = vocabulary.special | set(named)
    whole = special | vocabulary.of_type(TokenType.USER_DEFINED)
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=token in special) for token in vocabulary.tokens if token in whole]
    )


def template(vocabulary: Vocabulary, bos: str | None, eos: str | None) -> processors.TemplateProcessing:
    """A post-processor that puts BOS before and EOS after a text."""
    before, after = ([token] if token is not None else [] for token in (bos, eos))
    single = [*before, "$A", *after]
    pair = [*single, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
    ids = vocabulary.ids
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, ids[token]) for token in {*before, *after}]
    )


def read_model_file(file: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Reads a tokenizer.model together with its tokenizer_config.json, as transformers' Llama tokenizer does.

    Raises `UserError` for anything but SentencePiece's BPE without normalisation.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[import-untyped]

    model = ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's own; Llama 3's tokenizer.model is a list of tiktoken's
        raise UserError(f"{file}: is no SentencePiece model. The folder needs a tokenizer.json.") from error
    rules = model.normalizer_spec
    if model.trainer_spec.model_type != _BPE or rules.precompiled_charsmap or rules.remove_extra_whitespaces:
        raise UserError(
            f"{file}: only SentencePiece's BPE of unchanged text is read. Write a tokenizer.json beside it: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
        )
    vocabulary = Vocabulary([piece.piece for piece in model.pieces], [piece.type for piece in model.pieces])
    prefix: Prefix = "never"
    if rules.add_dummy_prefix and config.get("add_prefix_space") is not False:
        prefix = "first" if config.get("legacy") is False else "always"
    tokenizer = sentence_piece(vocabulary, [piece.score for piece in model.pieces], prefix)
    add_whole_tokens(tokenizer, vocabulary, ())
    bos, eos = model.trainer_spec.bos_piece, model.trainer_spec.eos_piece
    tokenizer.post_processor = template(
        vocabulary,
        bos if config.get("add_bos_token", True) else None,
        eos if config.get("add_eos_token", False) else None,
    )
    return tokenizer

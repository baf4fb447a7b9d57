"""Tokenises a text in pieces, as if it were one text.

A prompt is tokenised alone at generation, so what follows it must be tokenised separately in training too; otherwise
the tokens would differ (`\\n` and a reply that starts with `\\n` merge). Tokenizers of the SentencePiece kind put a
space in front of every text, which a piece in the middle of a text must not get.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lnlit.end_of_turn import control_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Piece:
    """A piece `text` at `start` in the whole text. If `literal`, control tokens in it are spelled out."""

    start: int
    text: str
    inside: bool
    literal: bool = False


class PieceTokenizer:
    """A tokenizer for pieces of a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._whole: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self._special = re.compile("|".join(_with_space(tokenizer)) or r"(?!)")
        self._prefixes = self._ids("\nx") != self._ids("\n") + self._ids("x")
        self._prefixes_after_special = self._prefixes and self._has_prefix_after(tokenizer)

    def pieces(self, text: str, cuts: Iterable[int], literals: Collection[tuple[int, int]] = ()) -> list[Piece]:
        """The text cut at `cuts` and around `literals`, which are ranges."""
        at = {0, len(text), *cuts, *(place for span in literals for place in span)}
        ends = set()
        if self._prefixes:
            specials = [match.span() for match in self._special.finditer(text)]
            ends = {end for _, end in specials}
            for place in sorted(at):  # what follows a control token is again as in a whole text
                following = next((start for start, _ in specials if start >= place), None)
                if place and following is not None:
                    at.add(following)
        starts = {start for start, _ in literals}
        found = []
        for start, end in pairwise(sorted(at)):
            inside = self._prefixes and start > 0 and not self._special.match(text, start)
            if inside and start in ends:
                inside = not self._prefixes_after_special
            found.append(Piece(start, text[start:end], inside, start in starts))
        return found

    def encode(self, pieces: Sequence[Piece]) -> list[tuple[list[int], list[int]]]:
        """(token ids, position in the whole text of each) of each piece."""
        found: list[tuple[list[int], list[int]]] = [([], [])] * len(pieces)
        for backend, inside in ((self._whole, False), (self._inside, True)):
            chosen = [at for at, piece in enumerate(pieces) if piece.inside == inside and not piece.literal]
            if chosen:
                encoded = backend.encode_batch([pieces[at].text for at in chosen], add_special_tokens=False)
                for at, one in zip(chosen, encoded, strict=True):
                    found[at] = (one.ids, [pieces[at].start + begin for begin, _ in one.offsets])
        for at, piece in enumerate(pieces):
            if piece.literal:
                ids = self._literal(piece)
                found[at] = (ids, [piece.start] * len(ids))
        return found

    def _literal(self, piece: Piece) -> list[int]:
        """The tokens of a control token's text as ordinary text. Even text that is not marked special may be matched as
        one token, so its first character is split off."""
        backend = self._inside if piece.inside else self._whole
        backend.encode_special_tokens = True
        try:
            ids = backend.encode(piece.text, add_special_tokens=False).ids
            if backend.token_to_id(piece.text) in ids:
                first, rest = piece.text[0], piece.text[1:]
                ids = backend.encode(first, add_special_tokens=False).ids
                ids += self._inside.encode(rest, add_special_tokens=False).ids
            return ids
        finally:
            backend.encode_special_tokens = False

    def _ids(self, text: str) -> list[int]:
        return self._whole.encode(text, add_special_tokens=False).ids

    @cached_property
    def _inside(self) -> Any:
        """The same tokenizer without anything in front of a text."""
        if not self._prefixes:
            return self._whole
        from tokenizers import Tokenizer

        return Tokenizer.from_str(json.dumps(_without_prefix(json.loads(self._whole.to_str()))))

    def _has_prefix_after(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """True if text after a control token gets a space as well."""
        special = next(iter(control_texts(tokenizer)), "")
        return self._ids(special + "x") != self._ids(special) + self._inside.encode("x", add_special_tokens=False).ids


def _with_space(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Patterns of the control tokens, with the space that some swallow."""
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}  # type: ignore[attr-defined]
    found = []
    for text in control_texts(tokenizer):
        token = added.get(text)
        before, after = (
            r"\s*" if token and swallows else "" for swallows in (token and token.lstrip, token and token.rstrip)
        )
        found.append(f"{before}{re.escape(text)}{after}")
    return found


def _without_prefix(part: Any) -> Any:
    """A tokenizer's configuration without anything that puts a space in front of a text."""
    if isinstance(part, list):
        return [
            _without_prefix(item) for item in part if not (isinstance(item, dict) and item.get("type") == "Prepend")
        ]
    if not isinstance(part, dict):
        return part
    changed = {key: _without_prefix(value) for key, value in part.items() if key not in ("vocab", "merges")}
    if part.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
        changed.pop("add_prefix_space", None)
    elif "add_prefix_space" in part:
        changed["add_prefix_space"] = False
    kept = {
        key: None if isinstance(value, dict) and value.get("type") == "Prepend" else value
        for key, value in changed.items()
    }
    return {**kept, **{key: part[key] for key in ("vocab", "merges") if key in part}}

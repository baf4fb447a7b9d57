"""Compares vocabularies: rows, a teacher or a judge must use the same ids for the same tokens as the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lnlit.checkpoint.formats import resolve
from lnlit.checkpoint.gguf import gguf_file, open_gguf
from lnlit.checkpoint.lightning import LightningCheckpoint
from lnlit.errors import UserError


def token_ids(source: str | Path) -> dict[str, int]:
    """Maps tokens to ids for a model folder, GGUF file or training checkpoint; empty if there is no tokenizer to
    read."""
    path = resolve(source)
    if (path / "tokenizer.json").is_file():
        return _read(path / "tokenizer.json")
    trained = LightningCheckpoint()
    if trained.recognises(path):
        model = trained.trained_from(path)
        return token_ids(model) if model else {}
    if (file := gguf_file(path)) is None or file.suffix != ".gguf":
        return {}
    return {token: index for index, token in enumerate(open_gguf(file).list("tokenizer.ggml.tokens")) if token}


def same_tokenizer_file(first: Path, second: str | Path) -> bool:
    """True if two folders hold identical tokenizer.json files, which is cheaper than comparing their contents."""
    files = (first / "tokenizer.json", resolve(second) / "tokenizer.json")
    return all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes()


def differing(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """How `theirs` differs from `ours`, the model's, as the middle of a sentence; empty if every token of the model has
    the same id in both. `theirs` may have more tokens, at ids that `ours` leaves free."""
    moved = [token for token, index in ours.items() if theirs.get(token) != index]
    taken = set(ours.values())
    moved += [token for token, index in theirs.items() if token not in ours and index in taken]
    if not moved:
        return ""
    token = moved[0]
    return (
        f"{len(moved):,} tokens differ, e.g. {token!r} is {ours.get(token, 'absent')} in the model and "
        f"{theirs.get(token, 'absent')} in it"
    )


def _read(file: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the Rust library raises bare exceptions
        raise UserError(f"{file}: cannot be read as a tokenizer: {error}") from error

"""Weights from any recognised checkpoint into a decoder."""

from __future__ import annotations

from pathlib import Path

from lnlit.checkpoint.formats import open_checkpoint, resolve
from lnlit.models.decoder import Decoder
from lnlit.models.weights import fill


def load_weights(decoder: Decoder, path: str | Path) -> None:
    """Fill a materialised decoder from a checkpoint, one tensor at a time: see `fill`.

    Under FSDP2 or tensor parallelism every rank reads the file and keeps its own part.
    """
    source = resolve(path)
    fill(decoder, open_checkpoint(source).weights(source), str(source))

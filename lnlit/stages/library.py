"""Stage `library`: every layer's candidates, initialised without training."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from lnlit.checkpoint.by_layer import EMBEDDING, by_layer
from lnlit.checkpoint.formats import PYPI, open_checkpoint, resolve
from lnlit.data.text import TextSample
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.search.candidates import Candidates
from lnlit.search.hardware import torch_device
from lnlit.search.initialise import SampleStream, initialise_layer
from lnlit.search.library import LibraryWriter


def build_library(
    model: str,
    data: TextSample,
    out: str,
    candidates: Candidates = Candidates(),
    dtype: Literal["bfloat16", "float32"] = "float32",
    rows_at_once: int = 4,
) -> Path:
    """Build the block library of a model: every layer's smaller variants, made from its weights and a text sample.

    One layer is in memory at a time. A build that was interrupted goes on at the next layer.

    Args:
        model: The parent: a model folder.
        data: The text that channel contributions and initial errors are measured on.
        out: Folder to write. An unfinished library of the same settings there is gone on with.
        candidates: What is tried in each layer.
        dtype: Of the forward passes. Candidates keep the parent's.
        rows_at_once: Rows of text per forward pass.
    """
    source = resolve(model)
    checkpoint = open_checkpoint(source)
    spec = checkpoint.read_spec(source)
    tokens_RT = data.tokens(str(source))
    if tokens_RT.shape[1] > spec.context_length:
        raise UserError(f"data.length {tokens_RT.shape[1]} is longer than the model's context of {spec.context_length}")
    calibration = {"tokens": tokens_RT.numel(), "sha256": hashlib.sha256(tokens_RT.numpy().tobytes()).hexdigest()}
    parent = model if model.startswith(PYPI) else str(source.resolve())
    made_by = {"candidates": asdict(candidates), "dtype": dtype}
    writer = LibraryWriter(out, {"model": parent, "spec": spec.to_json(), "calibration": calibration, **made_by})
    layers = by_layer(spec, checkpoint.weights(source))
    guide = build_decoder(spec)
    guide.embed_tokens.load_state_dict({"weight": next(layers)[EMBEDDING]}, assign=True)
    stream = SampleStream(
        guide, guide.embed(tokens_RT).detach().to(torch_device(), getattr(torch, dtype)), rows_at_once
    )
    guide.embed_tokens.to("meta")
    total = len(spec.layers)
    for layer, weights in enumerate(tqdm(islice(layers, total), "library", total, unit="layer", disable=None)):
        if writer.has(layer):
            stream.advance(layer, weights)
        else:
            writer.write(layer, *initialise_layer(stream, layer, weights, candidates))
    return writer.finish(parent, spec, {"calibration": calibration, "provenance": made_by}).folder

"""`lnlit search library`: builds every layer's candidates, with weights made of the parent's and fitted to it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch

from lnlit.checkpoint.fingerprint import fingerprint, model_source
from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.checkpoint.load import EMBEDDING, StoredLayers
from lnlit.data.text import TextSample
from lnlit.errors import UserError
from lnlit.files import check_output, expanded
from lnlit.models.build import build_decoder
from lnlit.models.device import torch_device
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.progress import say, track
from lnlit.search.library import LibraryWriter
from lnlit.search.space import Candidates
from lnlit.search.starts import initialise_layer
from lnlit.search.walk import Walk


def build_library(
    model: str,
    data: TextSample,
    out: str,
    candidates: Candidates = Candidates(),
    dtype: Literal["bfloat16", "float32"] = "float32",
    batch_tokens: int = 1024,
) -> Path:
    """Build the block library of a model: every layer's smaller variants, made from its weights and a text sample.

    Of a narrower FFN, the channels stay that the others cannot make up for. Heads are averaged, or one of neighbours
    stays, whichever is nearer to the parent. Then the last linear of each variant, or the only one, is fitted to the
    parent's outputs by least squares.

    One layer is in memory at a time. A build that was interrupted goes on at the next layer.

    Args:
        model: The parent: a model folder.
        data: The text that candidates are fitted to, and that initial errors are measured on. Less than a few thousand
            tokens fit badly.
        out: Folder to write. An unfinished library of the same settings there is gone on with.
        candidates: The candidates for each layer.
        dtype: The dtype of the forward passes. Candidates keep the parent's dtype.
        batch_tokens: Tokens that go through a block together.
    """
    check_output(expanded(out), folder=True)
    source = resolve(model)
    spec = read_spec(source)
    for line in candidates.check(spec):
        say(f"library: {line}")
    tokens_RT = data.tokens(str(source))
    if tokens_RT.shape[1] > spec.context_length:
        raise UserError(f"data.length {tokens_RT.shape[1]} is longer than the model's context of {spec.context_length}")
    calibration = {"tokens": tokens_RT.numel(), "sha256": hashlib.sha256(tokens_RT.numpy().tobytes()).hexdigest()}
    parent, sha256 = model_source(model), fingerprint(model)
    made_by = {"candidates": asdict(candidates), "dtype": dtype, "starts": "least squares"}  # not so in older ones
    recipe = {"model": parent, "parent_sha256": sha256, "spec": spec.to_json(), "calibration": calibration, **made_by}
    writer = LibraryWriter(out, recipe)
    writer.write_calibration(tokens_RT)
    stored, guide = StoredLayers(source), build_decoder(spec)
    rows = tokens_RT.to(torch_device()).split(max(batch_tokens // tokens_RT.shape[1], 1))
    embedding = stored.outer()[EMBEDDING].to(torch_device(), getattr(torch, dtype))
    guide.embed_tokens.load_state_dict({"weight": embedding}, assign=True)
    walk = Walk.of_rows(LayerwiseDecoder(guide, lambda _: weights), rows)
    for layer in track(range(len(spec.layers)), "library", "layer"):
        weights = stored(layer)
        if writer.has(layer):
            walk.seek(2 * layer + 2)
        else:
            writer.write(layer, *initialise_layer(walk, weights, candidates))
        guide.layers[layer].to("meta")  # nobody comes back to it
    header = {"parent_sha256": sha256, "calibration": calibration, "provenance": made_by}
    return writer.finish(parent, spec, header).folder

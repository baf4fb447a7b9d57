"""`lnlit rollout reference`: computes a reference model's log-probs of given completions once, for all runs that need
them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.formats import resolve
from lnlit.checkpoint.load import layerwise_decoder
from lnlit.data.chat import ChatEncoder, Document
from lnlit.data.packing import BestFit, collate
from lnlit.data.preference import REFERENCE, Group, digest, encode_groups
from lnlit.data.preference_rows import PreferenceRows
from lnlit.data.sources import where
from lnlit.data.tokenizer import load_tokenizer
from lnlit.errors import UserError, check_positive
from lnlit.files import expanded
from lnlit.interfaces import Source, TokenBatch
from lnlit.journal import Journal, why_no_line
from lnlit.models.device import torch_device
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.progress import say, track
from lnlit.rollout.log_probs import at_labels
from lnlit.search.walk import Walk
from lnlit.thinking import Thinking, on_or_off


def reference(
    model: str,
    data: Source,
    out: str,
    temperature: float = 1.0,
    thinking: Thinking | bool | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    batch_tokens: int = 4096,
    rows_per_round: int = 256,
) -> Path:
    """Write preference rows with a model's log-probs of their completions, for `RPO` with the reference
    `StoredLogProbs`.

    Each row gets `reference_log_probs`: `log_probs`, in nats and of the whole completion (null where it is longer than
    the model's context), their `temperature`, and `digests` of the tokens, by which a run notices another tokenizer,
    template or toggle. Interrupted, the same command goes on where it stopped.

    Args:
        model: Model folder with a tokenizer and a chat template.
        data: Rows as `PreferenceRows` takes them.
        out: The JSONL file to write.
        temperature: The temperature of the run that will use the log-probs.
        thinking: Toggle for rows that have none, as in that run.
        dtype: The dtype of weights and computations.
        batch_tokens: Tokens of a forward pass, or one completion.
        rows_per_round: The number of rows between two writes to disk. A model whose layers take more than half of the
            free memory is read from disk in each round: more rows are faster.
    """
    numbers = {"temperature": temperature, "batch_tokens": batch_tokens, "rows_per_round": rows_per_round}
    check_positive("reference", **numbers)
    path, file = resolve(model), expanded(out)
    encoder = ChatEncoder(load_tokenizer(path), None if thinking is None else on_or_off(thinking))
    rows = _read(data)
    settings = {"model": fingerprint(model), "rows": _digest(rows), "dtype": dtype, **numbers}
    settings["thinking"] = encoder.thinking
    with Journal.beside(file, settings, "rows with log-probs", REFERENCE.encode()) as work:
        if len(work) < len(rows):
            work.keep(len(work) // rows_per_round * rows_per_round)  # a round is batched as it was before
            decoder = layerwise_decoder(path, torch_device(), getattr(torch, dtype))
            rounds = [rows[first : first + rows_per_round] for first in range(len(work), len(rows), rows_per_round)]
            for part in track(rounds, "reference", "row", total=len(rows), done=len(work), size=len):
                groups = encode_groups(encoder, part)
                found = _log_probs(decoder, groups, temperature, batch_tokens)
                parts = zip(part, groups, found, strict=True)
                work.append(*({**row, REFERENCE: _written(group, nats, temperature)} for row, group, nats in parts))
        work.finish(file)
    say(f"reference: {sum(len(row['completions']) for row in rows)} completions of {len(rows)} prompts")
    return file


def _read(data: Source) -> list[dict[str, Any]]:
    rows = []
    for index, row in enumerate(PreferenceRows(data).rows()):
        rows.append({**row, REFERENCE: None})  # what an older one said is no part of the work
        if why := why_no_line(rows[-1]):
            raise UserError(f"{where(data, index)}: {why}")
    if not rows:
        raise UserError(f"data: {data} has no rows")
    return rows


def _digest(rows: Sequence[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


@torch.no_grad()
def _log_probs(
    model: LayerwiseDecoder, groups: Sequence[Group], temperature: float, batch_tokens: int
) -> list[list[float | None]]:
    """The log-prob of each completion, or None for one that is longer than the context."""
    found: list[list[float | None]] = [[None] * len(group.lengths) for group in groups]
    fits: list[tuple[int, int, Document]] = [
        (row, number, part)
        for row, group in enumerate(groups)
        for number, part in enumerate(group.completions())
        if len(part) <= model.decoder.spec.context_length
    ]
    lengths = np.array([len(part) for *_, part in fits], dtype=np.int64)
    if not len(lengths):
        return found
    packs = BestFit(max(batch_tokens, int(lengths.max()))).rows(lengths)
    embedding = model.decoder.embed_tokens.weight
    at_once = model.at_once(max(sum(length for *_, length in pack) for pack in packs) * embedding[0].nbytes)
    for first in range(0, len(packs), at_once):
        chosen = [[fits[index] for index, *_ in pack] for pack in packs[first : first + at_once]]
        batches = [_batch([part for *_, part in pack]) for pack in chosen]
        hidden = Walk.of_batches(model, batches).hidden()
        for pack, batch, hidden_BTD in zip(chosen, batches, hidden, strict=True):
            log_probs = at_labels(batch, temperature)(hidden_BTD, model.decoder.head_weight)
            log_probs_N = log_probs.log_probs_N.double().cpu()
            counts = [sum(part.loss_mask) for *_, part in pack]
            if not log_probs_N.isfinite().all():
                raise UserError("model: its log-probs are not all finite, so nothing can be compared with it")
            for (row, number, _), values in zip(pack, log_probs_N.split(counts), strict=True):
                found[row][number] = values.sum().item()
    return found


def _batch(parts: Sequence[Document]) -> TokenBatch:
    """Documents as one row on the device."""
    batch = collate([list(parts)], sum(map(len, parts)), pad_id=0)
    tokens, labels, positions = (x.to(torch_device()) for x in (batch.tokens, batch.labels, batch.positions))
    return TokenBatch(tokens, labels, positions, batch.lengths)


def _written(group: Group, log_probs: Sequence[float | None], temperature: float) -> dict[str, Any]:
    digests = [digest(completion) for completion in group.completions()]
    return {"log_probs": log_probs, "temperature": temperature, "digests": digests}

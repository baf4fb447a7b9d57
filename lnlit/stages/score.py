"""`lnlit search score`: how much quality each candidate of a block library costs, tried alone."""

from __future__ import annotations

import glob
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lnlit.checkpoint.fingerprint import fingerprint, model_source
from lnlit.checkpoint.formats import PYPI, read_spec, resolve
from lnlit.checkpoint.load import layerwise_decoder
from lnlit.data.text import TextSample
from lnlit.data.tokenizer import read_tokenizer
from lnlit.errors import UserError
from lnlit.eval.likelihood import encode_pairs
from lnlit.eval.tasks.multiple_choice import GOLD, MultipleChoiceTask
from lnlit.files import check_output, expanded
from lnlit.interfaces import IGNORE
from lnlit.journal import Journal
from lnlit.models.device import torch_device
from lnlit.models.ranks import all_gather, all_ranks, merged, my_place
from lnlit.progress import track
from lnlit.search.choice import At, chosen
from lnlit.search.library import Library
from lnlit.search.metrics import Accuracy, HiddenCosine, Likelihood, Metric, MetricName, TopK
from lnlit.search.score import Granularity, Scorer, candidates, make_header, merge, observed, open_scores, read_done
from lnlit.specs import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Questions:
    """Multiple-choice questions to score on.

    Args:
        task: The task that asks them, such as hellaswag.
    """

    task: MultipleChoiceTask


def score(
    model: str,
    library: str,
    data: TextSample | Questions,
    out: str,
    metric: MetricName = "kl",
    granularity: Granularity = "subblock",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    only: Sequence[str] = ("*",),
    k: int = 10,
    batch_tokens: int = 1024,
) -> Path:
    """Write how much worse the parent gets with each candidate of a library in place of its own block.

    One candidate at a time replaces the parent's sub-block or block; the rest of the model is the parent's. Every score
    is on the disk before the next one starts: interrupted, the same command goes on. Under torchrun the candidates and
    the parent's layers are divided among the processes, and a few candidates of each go through the layers together. Of
    a parent whose layers take more than half of the free memory (of several processes: their share of the layers), one
    layer at a time is read from disk, and as many candidates as the rest holds go through the layers together.

    Args:
        model: The parent: a model folder.
        library: Block library of the parent.
        data: The text to score on; for the metric accuracy, multiple-choice questions.
        out: The file to write, usually scores.jsonl.
        metric: Kl or lm_loss, which record hidden_cosine too; hidden_cosine alone, the fastest; top_k; accuracy.
        granularity: Score attention and FFN candidates by themselves, to be added up, and as blocks only the pairs that
            were trained together; or all composed blocks.
        dtype: The dtype of weights and activations. Logits and everything after them are float32. bfloat16 is several
            times faster, and was within 1.5 % of float32's KL on ten candidates of SmolLM2-135M.
        only: The candidates to score, by names (kv1) or places (layer_03/*), with * and ?. The file takes in more in a
            later run.
        k: How many of the parent's likeliest tokens top_k compares.
        batch_tokens: Tokens that go through the model together. More than a CPU's cache holds is slower there.
    """
    with all_ranks(_device()):
        target = check_output(expanded(out).resolve())
        opened, path = Library.open(library), resolve(model)
        opened.check_parent(model_source(model), read_spec(path), fingerprint(model))
        everything = candidates(opened, granularity)
        wanted = chosen(everything, only)
        text = _encoded(data, metric, path)
        _check_sizes(opened.spec, text.tokens_RT.shape[1], k)
        about = {"metric": metric, **({"k": k} if metric == "top_k" else {}), "granularity": granularity}
        size, parent_name = text.tokens_RT.numel(), model if model.startswith(PYPI) else str(path.resolve())
        header = make_header(opened, parent_name, **about, dtype=dtype, tokens=size, sha256=_digest(text))
        done = merged(read_done(_journals(target), header))
        parent = layerwise_decoder(path, _device(), getattr(torch, dtype))
        batches = text.tokens_RT.to(_device()).split(max(batch_tokens // text.tokens_RT.shape[1], 1))
        compare = _metric(metric, text, batches, parent.decoder.head_weight, k)
        scorer = Scorer(parent, opened, observed(parent, batches, compare), compare, metric)
        header["parent"] = scorer.own_values
        rank, ranks = my_place()
        with open_scores(target if ranks == 1 else _journal(target, rank), header) as journal:
            _score_all(scorer, [candidate for candidate in wanted if candidate not in done], journal)
        all_gather(None)  # all journals are complete
        if rank == 0 and (parts := _journals(target)) != [target]:
            merge(target, parts, header, {candidate: index for index, candidate in enumerate(everything)})
    return target


def _score_all(scorer: Scorer, candidates: Sequence[At], journal: Journal) -> None:
    work = {candidate: scorer.work(candidate) for candidate in candidates}  # early layers cost more
    passes = track(
        scorer.in_passes(candidates),
        "score",
        total=sum(work.values()),
        size=lambda group: sum(work[candidate] for candidate in group),
        label=lambda group: " to ".join(dict.fromkeys([str(group[0]), str(group[-1])])),
    )
    for group in passes:
        journal.append(*_timed(scorer, group))


def _timed(scorer: Scorer, candidates: Sequence[At]) -> list[dict[str, Any]]:
    """This rank's lines of candidates that are scored together, with each one's share of the time that it took."""
    begin = time.perf_counter()
    found = scorer.scores(candidates)
    seconds = time.perf_counter() - begin
    return [{**score.to_json(), "seconds": round(seconds / len(found), 4)} for score in found]


def _check_sizes(spec: ModelSpec, length: int, k: int) -> None:
    if not 2 <= length <= spec.context_length:
        raise UserError(f"data: rows have {length} tokens; scoring takes 2 to the model's {spec.context_length}.")
    if not 1 <= k <= spec.vocab_size:
        raise UserError(f"k: expected 1 to {spec.vocab_size}, the size of the vocabulary, got {k}.")


def _encoded(data: TextSample | Questions, metric: MetricName, model: Path) -> Choices | _Text:
    """The tokens to score on. Raises `UserError` if they are not of the kind that the metric needs."""
    if isinstance(data, Questions) != (metric == "accuracy"):
        needs = "questions (task)" if metric == "accuracy" else "a text (source, rows, ...)"
        raise UserError(f"data: the metric {metric} needs {needs}, got {type(data).__name__}.")
    if isinstance(data, Questions):
        return choices(data.task, read_tokenizer(model))
    return _Text(data.tokens(str(model)))


@dataclass(frozen=True)
class _Text:
    tokens_RT: Tensor


@dataclass(frozen=True)
class Choices:
    """Questions as rows, one for each choice. `labels_RT` holds a choice's tokens at the positions that predict them,
    `IGNORE` elsewhere. `question[r]` is the question of row r, `right[q]` the row of the right answer to question q,
    and `size_R` the choices' lengths in bytes."""

    tokens_RT: Tensor
    labels_RT: Tensor
    question: Sequence[int]
    right: Sequence[int]
    size_R: Tensor


def choices(task: MultipleChoiceTask, tokenizer: PreTrainedTokenizerBase) -> Choices:
    """The choices of all questions of a task, tokenised as for its likelihoods."""
    asked = list(task.questions())
    if not asked:
        raise UserError(f"data: {task.source} has no rows.")
    texts = [(str(each.context), choice) for each in asked for choice in each.continuations]
    pairs = encode_pairs(tokenizer, texts)
    length = max(len(pair.context) + len(pair.continuation) - 1 for pair in pairs)
    tokens_RT = torch.zeros(len(pairs), length, dtype=torch.int64)
    labels_RT = torch.full_like(tokens_RT, IGNORE)
    for row, pair in enumerate(pairs):
        whole = torch.tensor([*pair.context, *pair.continuation])
        tokens_RT[row, : len(whole) - 1] = whole[:-1]
        labels_RT[row, len(pair.context) - 1 : len(whole) - 1] = whole[len(pair.context) :]
    counts = [len(each.continuations) for each in asked]
    question = [number for number, count in enumerate(counts) for _ in range(count)]
    firsts = accumulate(counts, initial=0)
    right = [first + each.row[GOLD] for first, each in zip(firsts, asked, strict=False)]
    size_R = torch.tensor([len(choice.encode()) for _, choice in texts], dtype=torch.float64)
    return Choices(tokens_RT, labels_RT, question, right, size_R)


def _digest(text: Choices | _Text) -> str:
    """A digest of what the model reads, and of the answers."""
    about = tuple(text.tokens_RT.shape), text.right if isinstance(text, Choices) else ()
    return hashlib.sha256(repr(about).encode() + text.tokens_RT.numpy().tobytes()).hexdigest()


def _metric(name: MetricName, text: Choices | _Text, batches: Sequence[Tensor], weight_VD: Tensor, k: int) -> Metric:
    if isinstance(text, Choices):
        labels = text.labels_RT.to(weight_VD.device).split(len(batches[0]))
        return Accuracy(weight_VD, labels, text.question, text.right, text.size_R)
    if name == "hidden_cosine":
        return HiddenCosine()
    return TopK(weight_VD, k) if name == "top_k" else Likelihood(weight_VD, batches)


def _device() -> torch.device:
    """This process's device: under torchrun, each process has one GPU."""
    device = torch_device()
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device)


def _journal(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.stem}.rank-{rank}{out.suffix}")


def _journals(out: Path) -> list[Path]:
    """The files that may hold scores of this or an earlier run: the result, and the file of each process."""
    return [out, *sorted(out.parent.glob(f"{glob.escape(out.stem)}.rank-*{glob.escape(out.suffix)}"))]

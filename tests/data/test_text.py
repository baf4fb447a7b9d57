"""Text as training data: samples, rows, labels, borders, order, resuming, the token cache."""

import gzip
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from lnlit.data.blend import BlendEntry
from lnlit.data.sources import HuggingFaceSource, JsonlSource, ParquetSource, TextFileSource
from lnlit.data.text import TextEncoder, TextSample
from lnlit.data.text_data import TextData
from lnlit.errors import UserError
from lnlit.interfaces import IGNORE
from lnlit.testing.tiny import save_tokenizer

TEXTS = ["one", "", "two\u2028lines\r\n", " \n", "three: <|im_end|> stays text", "four é", *map(str, range(1000, 1030))]
WRITTEN = [text for text in TEXTS if text.strip()]
END = 257  # <|im_end|>


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A byte tokenizer, so that the expected tokens can be said without it, and TEXTS in every format."""
    folder = tmp_path_factory.mktemp("text")
    save_tokenizer(folder)
    lines = "".join(json.dumps({"text": text, "n": 1}, ensure_ascii=False) + "\n" for text in TEXTS)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "txt").mkdir()
    for index, text in enumerate(TEXTS):
        (folder / "txt" / f"{index:02}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture(scope="module")
def encoder(folder) -> TextEncoder:
    from lnlit.data.tokenizer import read_tokenizer

    return TextEncoder(read_tokenizer(folder))


def parquet(folder: Path) -> ParquetSource:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    pq.write_table(pa.Table.from_pylist([{"text": text} for text in TEXTS]), folder / "rows.parquet")
    return ParquetSource(str(folder / "rows.parquet"))


def hub(folder: Path) -> HuggingFaceSource:
    pytest.importorskip("datasets.config").HF_DATASETS_CACHE = folder / "hub cache"
    (folder / "hub").mkdir(exist_ok=True)
    (folder / "hub" / "train.jsonl").write_bytes((folder / "rows.jsonl").read_bytes())
    return HuggingFaceSource(str(folder / "hub"), "train")


FORMATS = {
    "jsonl": lambda folder: JsonlSource(str(folder / "rows.jsonl")),
    "jsonl.gz": lambda folder: JsonlSource(str(folder / "rows.jsonl.gz")),
    "txt": lambda folder: TextFileSource(str(folder / "txt" / "*.txt")),
    "parquet": parquet,
    "huggingface": hub,
}


def line(encoder: TextEncoder) -> list[list[int]]:
    """The documents' tokens, byte for byte."""
    from tokenizers import pre_tokenizers

    vocabulary = encoder.tokenizer.get_vocab()
    byte_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    return [[*(vocabulary[symbol] for word, _ in byte_symbols(text) for symbol in word), END] for text in WRITTEN]


def data(folder: Path, **changes) -> TextData:
    settings = {"train": FORMATS["jsonl"](folder), "sequence_length": 8, "micro_batch_size": 2, **changes}
    return TextData(str(folder), **settings)


def rows_of(batches) -> list[list[int]]:
    return [row.tolist() for batch in batches for row in batch.tokens]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tokens(folder, encoder, name):
    expected = [token for document in line(encoder) for token in document]
    sample = TextSample(FORMATS[name](folder), rows=5, length=9).tokens(str(folder))
    assert sample.dtype == torch.int64 and sample.tolist() == sample_rows(encoder, 5, 9)
    module = data(folder, train=FORMATS[name](folder), seed=None)
    tokens = [token for row in rows_of(module.train_dataloader()) for token in row]
    assert tokens[: len(expected) - 1] == expected[:-1]  # the last one is a label only


def sample_rows(encoder: TextEncoder, count: int, length: int, skip: int = 0) -> list[list[int]]:
    rows, row = [], []
    for document in line(encoder)[skip:]:
        row += document[: length - len(row)]
        if len(row) == length:
            rows, row = [*rows, row], []
    return rows[:count]


def test_a_sample_skips_documents_and_says_when_there_are_too_few(folder, encoder):
    source = FORMATS["jsonl"](folder)
    assert TextSample(source, 2, 9, skip=2).tokens(str(folder)).tolist() == sample_rows(encoder, 2, 9, skip=1)
    total = sum(map(len, line(encoder)))
    assert TextSample(source, 1, total).tokens(str(folder)).shape == (1, total)
    most = len(sample_rows(encoder, 500, 9))
    with pytest.raises(UserError, match=rf"gives {most} rows of 9 tokens, each document in one row only; 500 were"):
        TextSample(source, 500, 9).tokens(str(folder))
    with pytest.raises(UserError, match="0 rows of 9 tokens after the first 999 documents"):
        TextSample(source, 1, 9, skip=999).tokens(str(folder))
    with pytest.raises(UserError, match=r"sample\.rows: expected at least 1, got 0"):
        TextSample(source, 0)


def test_one_long_document_gives_one_row_of_a_sample(encoder, tmp_path):
    texts = ["a" * 1000, "bb", "cc", "dddddddddddd", "e" * 50]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    save_tokenizer(tmp_path)
    sample = TextSample(JsonlSource(str(tmp_path / "rows.jsonl")), rows=3, length=10)
    a, b, c, d, e = (document[0] for document in encoder.encode_many(["a", "b", "c", "d", "e"]))
    expected = [[a] * 10, [b, b, END, c, c, END, d, d, d, d], [e] * 10]
    assert sample.tokens(str(tmp_path)).tolist() == expected == sample.tokens(str(tmp_path)).tolist()


@pytest.mark.parametrize("streaming", [False, True])
def test_each_token_but_a_documents_first_is_a_label_once_and_borders_hold(folder, encoder, streaming):
    """Also where a row's end cuts a document: its next token is the label of the row's last place."""
    module = data(folder, streaming=streaming, seed=None, shuffle_buffer_size=1000)
    epoch = list(islice(module.train_dataloader(), -(-(sum(map(len, line(encoder))) - 1) // 16)))
    expected: list[int] = []
    for document in line(encoder):
        expected += [*document[1:], IGNORE]
    labels = [label for batch in epoch for row in batch.labels.tolist() for label in row]
    assert labels[: len(expected) - 1] == expected[:-1] and set(labels[len(expected) - 1 :]) <= {IGNORE}
    for batch in epoch:
        assert sum(batch.lengths) == batch.tokens.numel()
        starts = np.cumsum([0, *batch.lengths[:-1]])
        positions = batch.positions.flatten().tolist()
        assert [i for i, position in enumerate(positions) if position == 0] == starts.tolist()
        assert set(np.cumsum(batch.lengths)) >= {8, 16}  # no document spans two rows
    tokens, positions = (
        torch.cat([getattr(batch, name).flatten() for batch in epoch]) for name in ("tokens", "positions")
    )
    after_end = torch.nonzero(tokens[: len(expected) - 2] == END) + 1  # behind that there is padding
    assert len(after_end) == len(WRITTEN) - 1 and not positions[after_end].any()


def test_epochs_shuffle_documents_deterministically(folder):
    def epochs(seed: int) -> list[list[list[int]]]:
        loader = data(folder, seed=seed).train_dataloader()
        return [rows_of(loader) for _ in range(2)]

    (first, second), again, other = epochs(0), epochs(0), epochs(1)
    assert [first, second] == again and first != second and first != other[0]
    assert len(first) == len(second)
    counts = [torch.tensor(epoch).flatten().bincount(minlength=258) for epoch in (first, second)]
    assert (counts[0] - counts[1]).abs().sum() <= 2 * 16  # which token is only a label, and padding, may differ


@pytest.mark.parametrize("settings", [{}, {"streaming": True, "shuffle_buffer_size": 7}, {"cache": "tokens"}])
@pytest.mark.parametrize("world", [1, 2])
def test_resume_anywhere_sees_exactly_the_remaining_rows(folder, tmp_path, settings, world):
    if "cache" in settings:
        settings = {"cache": str(tmp_path / "tokens")}

    def loader(rank: int):
        made = data(folder, **settings).train_dataloader()
        made.set_rank(rank, world)
        return made

    def take(made, count: int) -> list[list[int]]:
        rows = []
        while len(rows) < 2 * count:
            for batch in made:
                made.mark_consumed(batch)
                rows += rows_of([batch])
                if len(rows) == 2 * count:
                    break
        return rows

    whole = [take(loader(rank), 40 // world) for rank in range(world)]
    for stop in (1, 5, 13, 19):
        running = loader(0)
        take(running, stop)
        state = json.loads(json.dumps(running.state_dict()))
        for rank in range(world):
            resumed = loader(rank)
            resumed.load_state_dict(state)
            assert take(resumed, 20 - stop) == whole[rank][2 * stop : 40], (stop, rank)


def test_the_cache_equals_memory_and_is_made_once(folder, tmp_path, monkeypatch):
    cache = tmp_path / "tokens"
    plain = data(folder, val=FORMATS["txt"](folder))
    kept = data(folder, val=FORMATS["txt"](folder), cache=str(cache))
    kept.prepare_data()
    assert len(list(cache.iterdir())) == 2 and not list(cache.glob(".*"))
    monkeypatch.setattr(TextEncoder, "encode_many", None)  # from here on nothing may be tokenised
    again = data(folder, val=FORMATS["txt"](folder), cache=str(cache))
    again.setup("fit")
    monkeypatch.undo()
    assert rows_of(again.train_dataloader()) == rows_of(plain.train_dataloader())
    assert rows_of(again.val_dataloader()) == rows_of(plain.val_dataloader())
    assert again.train_reader.tally == plain.train_reader.tally
    corpus = again.train_plan.corpora[0]
    assert isinstance(corpus.tokens, np.memmap) and corpus.tokens.dtype == np.uint16


def test_the_cache_notices_what_changes_the_tokens(folder, tmp_path):
    rows, cache = tmp_path / "rows.jsonl", tmp_path / "tokens"
    rows.write_text('{"text": "old", "body": "other"}\n')
    seen = []
    for change in ({}, {"text_key": "body"}, {"end_of_text": "<|im_start|>"}):
        seen.append(rows_of(data(folder, train=JsonlSource(str(rows)), cache=str(cache), **change).train_dataloader()))
    rows.write_text('{"text": "newer"}\n')
    seen.append(rows_of(data(folder, train=JsonlSource(str(rows)), cache=str(cache)).train_dataloader()))
    assert len({str(each) for each in seen}) == len(list(cache.iterdir())) == 4


def test_a_failed_or_damaged_cache_is_not_used(folder, tmp_path):
    rows, cache = tmp_path / "rows.jsonl", tmp_path / "tokens"
    rows.write_text('{"text": "a"}\n' * 600 + '{"text": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:601: 'text' must be text, got int"):
        data(folder, train=JsonlSource(str(rows)), cache=str(cache)).setup("fit")
    assert list(cache.iterdir()) == []
    data(folder, cache=str(cache)).prepare_data()
    (tokens,) = cache.glob("*/tokens.bin")
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"tokens\.bin: damaged.*Delete .* and start again"):
        data(folder, cache=str(cache)).setup("fit")


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ('{"body": "x"}', {}, r"rows\.jsonl:1: no key 'text'; it has: body\. Set text_key"),
        ('{"text": "\\ud800"}', {}, r"rows\.jsonl:1: broken text at character 0"),
        ('{"text": " "}', {}, r"train: no text in .*rows\.jsonl"),
        ('{"text": "x"}', {"end_of_text": "<eot>"}, "the tokenizer has no token '<eot>'"),
        ('{"text": "x"}', {"sequence_length": 0}, r"data\.sequence_length: expected a positive number"),
        ('{"text": "x"}', {"streaming": True, "cache": "c"}, "cache and streaming exclude each other"),
    ],
)
def test_errors_are_clear(folder, tmp_path, rows, changes, message):
    (tmp_path / "rows.jsonl").write_text(rows + "\n")
    with pytest.raises(UserError, match=message):
        data(folder, train=JsonlSource(str(tmp_path / "rows.jsonl")), **changes).setup("fit")


def test_text_that_is_not_utf8_names_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 text"):
        list(TextFileSource(str(tmp_path / "a.txt")).rows())


def test_a_tokenizers_own_first_token_and_pretraining_end_are_used(tmp_path):
    """As in Llama 3: `<|begin_of_text|>` in front, and `<|end_of_text|>` behind although a chat turn ends otherwise."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    save_tokenizer(tmp_path)
    inner = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    inner.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 258)]
    )
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>"))
    documents = encoder.encode_many(["ab", "", "<|end_of_text|>"])
    assert documents[0][[0, -1]].tolist() == [258, 259] and len(documents[0]) == 4
    assert len(documents[1]) == 0 and len(documents[2]) == 2 + len("<|end_of_text|>")


def test_blends_mix_text(folder, tmp_path):
    (tmp_path / "b.txt").write_text("zzzzzzzz" * 4)
    blend = [
        BlendEntry(FORMATS["jsonl"](folder)),
        BlendEntry(TextFileSource(str(tmp_path / "b.txt")), epochs=3, stage=2),
    ]
    module = data(folder, train=blend)
    rows = rows_of(module.train_dataloader())
    z = module.encoder.encode_many(["z"])[0][0]
    assert sum(row.count(z) for row in rows) == 96 and not any(z in row for row in rows[:10])

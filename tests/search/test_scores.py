"""The file of scores: read back, continued after any cut, merged, refused when it is another's."""

import json
import math

import pytest

from lnlit.errors import UserError
from lnlit.search.choice import At, BlockChoice
from lnlit.search.score import make_header, merge, open_scores, read_done, read_scores
from lnlit.specs import NOOP, BlockSpec
from lnlit.testing.tiny import attention, swiglu, tiny_spec
from lnlit.testing.tiny_library import tiny_library

ENTRIES = [
    {"layer": 0, "slot": "attention", "name": "kv1", "score": 0.25, "kl": 0.25, "seconds": 0.1},
    {"layer": 0, "slot": "ffn", "name": "i24", "score": 0.5, "kl": 0.5, "seconds": 0.1},
    {"layer": 1, "slot": "ffn", "name": "noop", "score": -0.125, "kl": 0.1, "seconds": 0.1},
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    spec = tiny_spec().replace(layers=(BlockSpec(attention(), swiglu()), BlockSpec(NOOP, swiglu(24))))
    return tiny_library(tmp_path_factory.mktemp("scores") / "library", "parent", spec)


@pytest.fixture
def header(library):
    return make_header(library, "parent", metric="kl", granularity="subblock", tokens=64, sha256="0", dtype="float32")


def write(file, header, entries):
    read_done([file], header)
    with open_scores(file, header) as journal:
        for entry in entries:
            journal.append(entry)
    return file


def test_scores_come_back_as_a_table_with_the_parents_zeros(tmp_path, header, library):
    scores = read_scores(write(tmp_path / "scores.jsonl", header, ENTRIES))
    assert scores.header == header
    assert scores.table == (
        {"attention": {"kv2": 0.0, "kv1": 0.25}, "ffn": {"i48": 0.0, "i24": 0.5}},
        {"attention": {"noop": 0.0}, "ffn": {"i24": 0.0, "noop": -0.125}},
    )
    scores.check_library(library)
    assert scores.of(0, BlockChoice("kv1", "i24")) == 0.75
    assert scores.of(0, BlockChoice("kv2", "i24")) == 0.5
    assert scores.of(1, BlockChoice("noop", "i24")) == 0
    with pytest.raises(UserError, match=r"layer 0: attention 'linear' has no score. Run `lnlit search score` again"):
        scores.of(0, BlockChoice("linear", "i24"))


def test_block_scores_are_looked_up_whole(tmp_path, header):
    block = {**header, "granularity": "block"}
    entry = {"layer": 0, "slot": "block", "name": "kv1+i24", "score": 0.75}
    scores = read_scores(write(tmp_path / "scores.jsonl", block, [entry]))
    assert (scores.of(0, BlockChoice("kv1", "i24")), scores.of(0, BlockChoice("kv2", "i48"))) == (0.75, 0)


def test_a_file_cut_anywhere_is_continued_to_the_same_bytes(tmp_path, header):
    file = write(tmp_path / "scores.jsonl", header, ENTRIES)
    whole = file.read_bytes()
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        done = read_done([file], header)
        with open_scores(file, header) as journal:
            for entry in ENTRIES:
                if At(entry["layer"], entry["slot"], entry["name"]) not in done:
                    journal.append(entry)
        assert file.read_bytes() == whole, cut


def test_a_line_is_on_the_disk_when_add_returns(tmp_path, header):
    file = tmp_path / "scores.jsonl"
    journal = open_scores(file, header)
    for count, entry in enumerate(ENTRIES, start=1):
        journal.append(entry)
        assert len(read_done([file], header)) == count  # the journal is still open


def test_parts_of_several_processes_become_one_file_in_order(tmp_path, header):
    whole = write(tmp_path / "whole.jsonl", header, ENTRIES).read_bytes()
    parts = [
        write(tmp_path / "a.jsonl", header, [ENTRIES[2], ENTRIES[0]]),
        write(tmp_path / "b.jsonl", header, [ENTRIES[1], ENTRIES[2]]),
    ]
    order = {At(entry["layer"], entry["slot"], entry["name"]): index for index, entry in enumerate(ENTRIES)}
    out = tmp_path / "scores.jsonl"
    merge(out, [out, *parts], header, order)
    assert out.read_bytes() == whole
    assert not any(part.exists() for part in parts)


@pytest.mark.parametrize(("key", "value"), [("sha256", "1"), ("dtype", "bfloat16"), ("library_sha256", "x"), ("k", 5)])
def test_scores_of_something_else_are_not_continued(tmp_path, header, key, value):
    file = write(tmp_path / "scores.jsonl", header, ENTRIES)
    before = file.read_bytes()
    with pytest.raises(
        UserError, match=rf"holds scores with other settings: {key} is .*, now {value!r}\. .*write elsewhere"
    ):
        read_done([file], {**header, key: value})
    assert file.read_bytes() == before
    assert len(read_done([file], {**header, "library": "moved", "parent": {"kl": 0.0}})) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some notes", "not a file of scores"),
        ("some notes\n", "scores.jsonl:1: not a line of scores"),
        ('{"a": 1}\n', "not a file of scores: its first line is no header"),
    ],
)
def test_another_file_is_refused_and_kept(tmp_path, header, text, message):
    file = tmp_path / "scores.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_done([file], header)
    with pytest.raises(UserError, match=message):
        read_scores(file)
    assert file.read_text() == text


def test_a_broken_line_in_the_middle_is_named(tmp_path, header):
    file = write(tmp_path / "scores.jsonl", header, ENTRIES)
    lines = file.read_text().split("\n")
    file.write_text("\n".join([*lines[:2], lines[2][:20], *lines[3:]]))
    with pytest.raises(UserError, match=r"scores.jsonl:3: not a line of scores"):
        read_scores(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": math.nan}, ":2: score: expected a finite number, got nan. Delete this line and run"),
        ({"score": 10**400}, ":2: score: expected a finite number, got 1000"),
        ({"score": "0.1"}, ":2: score: expected a finite number, got '0.1'"),
        ({"layer": 9}, ":2: layer: there are 0 to 1, got 9. Delete this line"),
        ({"layer": -1}, ":2: layer: expected a whole number, 0 or more, got -1"),
        ({"layer": True}, ":2: layer: expected a whole number, 0 or more, got True"),
        ({"slot": "mlp"}, ":2: slot: expected one of attention, ffn, block, got 'mlp'"),
        ({"name": ["kv1"]}, ":2: name: expected a text, got .'kv1'."),
        ("{}", ":2: the key 'layer' is missing; required are layer, slot, name, score"),
        ("[1]", r":2: expected a mapping, got \[1\]"),
    ],
)
def test_a_bad_score_is_named_by_its_line_whoever_reads(tmp_path, header, change, message):
    file = tmp_path / "scores.jsonl"
    first = change if isinstance(change, str) else json.dumps({**ENTRIES[0], **change})
    file.write_text("\n".join([json.dumps(header), first, *map(json.dumps, ENTRIES[1:]), ""]))
    for read in (read_scores, lambda file: read_done([file], header)):
        with pytest.raises(UserError, match=message) as refusal:
            read(file)
        assert "\n" not in str(refusal.value)


def test_a_header_without_a_digest_is_another_librarys(tmp_path, header, library):
    del header["library_sha256"]
    scores = read_scores(write(tmp_path / "scores.jsonl", header, ENTRIES))
    with pytest.raises(UserError, match="which is another library"):
        scores.check_library(library)


def test_a_pair_that_was_trained_together_has_a_score_of_its_own(tmp_path):
    library = tiny_library(tmp_path / "library", "parent", tiny_spec())
    header = make_header(library, "parent", metric="kl", granularity="subblock")
    halves = [{"layer": 1, "slot": s, "name": n, "score": 1.0} for s, n in (("attention", "kv1"), ("ffn", "i24"))]
    scores = read_scores(write(tmp_path / "halves.jsonl", header, halves))
    with pytest.raises(UserError, match=r"layer 1: block 'kv1\+i24' has no score"):
        scores.of(1, BlockChoice("kv1", "i24"))
    pair = {"layer": 1, "slot": "block", "name": "kv1+i24", "score": 0.5}
    scores = read_scores(write(tmp_path / "scores.jsonl", header, [*halves, pair]))
    found = [scores.of(1, BlockChoice(*halves)) for halves in (("kv1", "i24"), ("kv1", "i48"), ("kv2", "i24"))]
    assert found == [0.5, 1.0, 1.0]


def test_scores_of_another_or_retrained_library_are_refused(tmp_path, header, library):
    scores = read_scores(write(tmp_path / "scores.jsonl", header, ENTRIES))
    other = tiny_library(tmp_path / "other", "another", library.spec)
    with pytest.raises(UserError, match=r"the scores are of .*, which is another library or was other when"):
        scores.check_library(other)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read as scores.*`lnlit search score` makes them"):
        read_scores(tmp_path / "none.jsonl")

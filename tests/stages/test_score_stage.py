"""`lnlit search score` from model, library and text to a file; interrupted, divided and fed with bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import load_file, save_file

from lnlit.cli.main import main
from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.data.tokenizer import read_tokenizer
from lnlit.errors import UserError
from lnlit.eval.tasks.multiple_choice import MultipleChoice
from lnlit.search.choice import BlockChoice
from lnlit.search.library import Library, layer_file
from lnlit.search.score import Scorer, candidates, read_scores
from lnlit.stages.score import Questions, choices, score
from lnlit.testing.tiny import mixed_spec, tiny_folder
from lnlit.testing.tiny_library import tiny_library, undigested

WORDS = "a text that is long enough to be scored on, with all of its letters and spaces"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """model/, library/ and two files of data."""
    folder = tmp_path_factory.mktemp("stage")
    tiny_folder(folder / "model", mixed_spec())
    tiny_library(folder / "library", folder / "model", mixed_spec())
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} {WORDS}"}) + "\n" for n in range(4)))
    rows = [
        {"ctx": f"{n} times", "ends": ["is more", "makes less of it", "so"], "label": "ABC"[n % 3]} for n in range(5)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(folder: Path, out: Path, **options) -> Path:
    data = TextSample(JsonlSource(str(folder / "text.jsonl")), rows=3, length=32)
    settings = {"dtype": "float32", "batch_tokens": 64, **options}
    return score(str(folder / "model"), str(folder / "library"), settings.pop("data", data), str(out), **settings)


def lines(file: Path) -> list[dict]:
    """What the file says, without the clock."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    return run(folder, folder / "whole.jsonl")


def test_every_candidate_is_scored_and_read_back(folder, whole):
    scores, library = read_scores(whole), Library.open(folder / "library")
    scores.check_library(library)
    assert scores.header["tokens"] == 96
    assert scores.header["parent"]["kl"] == 0
    for layer, variants in enumerate(library.layers):
        for slot in ("attention", "ffn"):
            assert scores.table[layer][slot].keys() == getattr(variants, slot).keys()
        assert set(scores.table[layer].get("block", ())) == set(variants.pairs)
    assert scores.of(1, BlockChoice("kv1", "i24")) == scores.table[1]["block"]["kv1+i24"]
    assert lines(whole)[1].keys() == {"layer", "slot", "name", "score", "kl", "lm_loss", "hidden_cosine"}


def test_a_run_stopped_anywhere_goes_on_to_the_same_scores(folder, whole, tmp_path, monkeypatch):
    out, score_one, left = tmp_path / "scores.jsonl", Scorer.scores, 7

    def interrupted(self, candidates):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return score_one(self, candidates)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "scores", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder, out)
    assert lines(out) == lines(whole)[:8]
    for cut in (5, 60, 300):
        out.write_bytes(out.read_bytes()[:-cut])
        run(folder, out)
        assert lines(out) == lines(whole)


def test_what_is_done_is_not_done_again(folder, whole, monkeypatch):
    before = whole.read_bytes()
    monkeypatch.setattr(Scorer, "scores", lambda *_: pytest.fail("scored again"))
    run(folder, whole)
    assert whole.read_bytes() == before


def test_two_processes_write_the_same_file(folder, whole, tmp_path):
    out, script = tmp_path / "scores.jsonl", tmp_path / "ranks.py"
    script.write_text(
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from test_score_stage import run\n"
        "run(Path(sys.argv[3]), Path(sys.argv[4]))\n"
    )
    warm.torchrun(2, script, *Path(__file__).parents[:2], folder, out, cwd=tmp_path, timeout=120)
    assert lines(out) == lines(whole)
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".jsonl"] == ["scores.jsonl"]


def test_what_one_of_several_processes_left_is_used(folder, whole, tmp_path):
    rows = whole.read_text().splitlines(keepends=True)
    (tmp_path / "scores.rank-1.jsonl").write_text("".join([rows[0], *rows[2::2]]))
    out = run(folder, tmp_path / "scores.jsonl")
    assert lines(out) == lines(whole)
    assert list(tmp_path.iterdir()) == [out]


def test_the_parents_path_may_be_written_in_another_way(folder, whole, monkeypatch):
    before = whole.read_bytes()
    monkeypatch.chdir(folder)
    text = TextSample(JsonlSource("text.jsonl"), rows=3, length=32)
    score("./model", "library", text, str(whole), dtype="float32", batch_tokens=64)
    assert whole.read_bytes() == before


def test_more_candidates_may_follow(folder, whole, tmp_path):
    out = run(folder, tmp_path / "scores.jsonl", only=["noop", "kv1"])
    assert {row["name"] for row in lines(out)[1:]} == {"noop", "kv1"}
    run(folder, out)
    assert sorted(map(str, lines(out))) == sorted(map(str, lines(whole)))


@pytest.mark.parametrize("metric", ["lm_loss", "hidden_cosine", "top_k"])
def test_metrics_are_losses_against_the_parent(folder, tmp_path, metric):
    out = run(folder, tmp_path / "scores.jsonl", metric=metric, granularity="block", only=["noop+noop"], k=3)
    header, *rows = lines(out)
    assert header.get("k") == (3 if metric == "top_k" else None)
    assert len(rows) == 5  # one layer is noop+noop already
    sign = -1 if metric == "top_k" else 1
    for row in rows:
        assert row["score"] == pytest.approx(sign * (row[metric] - header["parent"][metric]))


def test_accuracy_on_questions(folder, tmp_path):
    questions = Questions(MultipleChoice(JsonlSource(str(folder / "questions.jsonl")), 4, "ctx", "ends", "label"))
    out = run(folder, tmp_path / "scores.jsonl", metric="accuracy", data=questions, only=["noop"])
    header, *rows = lines(out)
    assert header["parent"]["accuracy"] in {0, 0.25, 0.5, 0.75, 1}
    assert len(rows) == 8
    assert all(row["score"] == header["parent"]["accuracy"] - row["accuracy"] for row in rows)


def test_a_choice_is_a_row_behind_its_question_and_only_its_tokens_count(folder, tmp_path):
    tokenizer, file = read_tokenizer(folder / "model"), tmp_path / "questions.jsonl"
    first = {"context": "One and", "choices": ["two", "é"], "answer": 1}
    second = {"context": "B", "choices": ["c", "d", "longer"], "answer": "A"}
    file.write_text("".join(json.dumps(row) + "\n" for row in (first, second)))
    encoded = choices(MultipleChoice(JsonlSource(str(file))), tokenizer)
    assert encoded.question == [0, 0, 1, 1, 1] and encoded.right == [1, 2]
    assert encoded.size_R.tolist() == [4, 3, 2, 2, 7]
    texts = ["One and two", "One and é", "B c", "B d", "B longer"]
    for text, tokens, labels, size in zip(texts, encoded.tokens_RT, encoded.labels_RT, encoded.size_R, strict=True):
        ids = tokenizer(text)["input_ids"]  # bytes, so that text joins without merges
        counted = labels[: len(ids) - 1] != -100
        assert tokens[: len(ids) - 1].tolist() == ids[:-1] and labels[len(ids) - 1 :].eq(-100).all()
        assert labels[: len(ids) - 1][counted].tolist() == ids[-int(size) :]
        assert torch.equal(torch.tensor(ids[1:])[counted], labels[: len(ids) - 1][counted])
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError, match="has no rows"):
        choices(MultipleChoice(JsonlSource(str(tmp_path / "none.jsonl"))), tokenizer)


def test_data_of_the_wrong_kind(folder, tmp_path):
    questions = Questions(MultipleChoice(JsonlSource(str(folder / "questions.jsonl"))))
    with pytest.raises(UserError, match=r"data: the metric kl needs a text .*, got Questions"):
        run(folder, tmp_path / "a", data=questions)
    with pytest.raises(UserError, match=r"data: the metric accuracy needs questions .*, got TextSample"):
        run(folder, tmp_path / "a", metric="accuracy")
    with pytest.raises(UserError, match=r"questions.jsonl:1: choices: got None; expected a list"):
        run(folder, tmp_path / "a", metric="accuracy", data=questions)
    assert not list(tmp_path.iterdir())


def test_rows_of_a_length_the_model_cannot_read(folder, tmp_path):
    for length in (1, 257):
        text = TextSample(JsonlSource(str(folder / "text.jsonl")), rows=1, length=length)
        with pytest.raises(UserError, match=rf"data: rows have {length} tokens; scoring takes 2 to the model's 256"):
            run(folder, tmp_path / "a", data=text)


def test_k_beyond_the_vocabulary(folder, tmp_path):
    with pytest.raises(UserError, match="k: expected 1 to 258, the size of the vocabulary, got 259"):
        run(folder, tmp_path / "a", metric="top_k", k=259)


def test_scores_of_another_text_or_model_are_refused(folder, whole, tmp_path):
    text = TextSample(JsonlSource(str(folder / "text.jsonl")), rows=2, length=32)
    before = whole.read_bytes()
    with pytest.raises(UserError, match=r"holds scores with other settings: .*sha256 is "):
        run(folder, whole, data=text, granularity="subblock")
    assert whole.read_bytes() == before
    tiny_folder(tmp_path / "model")
    with pytest.raises(UserError, match=r"is not the parent of .*First difference: spec.layers"):
        score(str(tmp_path / "model"), str(folder / "library"), text, str(tmp_path / "scores.jsonl"))


def test_a_foreign_parent_is_refused_and_a_moved_one_is_not(built_library, tiny_parent, folder, tmp_path):
    text = TextSample(JsonlSource(str(folder / "text.jsonl")), rows=1, length=32)
    other, moved = tiny_folder(tmp_path / "other", seed=1), shutil.copytree(tiny_parent, tmp_path / "moved")
    options = {"data": text, "out": str(tmp_path / "a"), "metric": "hidden_cosine"}
    with pytest.raises(UserError, match=rf"model: {other} is not .*made from {tiny_parent}\. .* the weights differ"):
        score(str(other), str(built_library), **options)
    score(str(moved), str(built_library), **options)


def test_a_nan_is_one_line_and_what_was_scored_stays(folder, tmp_path, capsys):
    library = tiny_library(tmp_path / "library", folder / "model", mixed_spec())
    file = layer_file(library.folder, 3)
    tensors = load_file(file)
    tensors["attention/kv1/self_attn.q_proj.weight"][0] = float("nan")
    save_file(tensors, file)
    undigested(library.folder)
    out, data = tmp_path / "scores.jsonl", folder / "text.jsonl"
    options = {
        "model": folder / "model",
        "library": library.folder,
        "out": out,
        "dtype": "float32",
        "data.source": "JsonlSource",
        "data.source.paths": data,
        "data.rows": 3,
        "data.length": 32,
    }
    assert main(["search", "score", *(f"--{key}={value}" for key, value in options.items())]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "layer_03/attention/kv1: its kl is nan" in error[-1]
    before = [candidate.name for candidate in candidates(library, "subblock") if candidate.position < 6]
    assert len(lines(out)) == 1 + len(before) + 1  # the header, and kv4 of layer 3

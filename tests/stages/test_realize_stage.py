"""A solution file becomes a model folder that lnlit and transformers load, or one line says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lnlit.checkpoint.folder import read_provenance
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.search.choice import At, BlockChoice
from lnlit.search.library import Library
from lnlit.stages.realize import realize
from lnlit.testing.tiny import tiny_folder, tiny_spec

OWN, MIXED = ["kv2+i48", "kv2+i48"], ["kv1+linear", "noop+i16"]
OWN_SOLVED = {"choice": OWN, "score": 0.0, "costs": {}}


@pytest.fixture
def solution(tmp_path) -> Path:
    solutions = [
        OWN_SOLVED,
        {"choice": MIXED, "score": 0.5, "costs": {"memory_mib": 1.5}},
    ]
    (tmp_path / "solution.json").write_text(json.dumps({"status": "optimal", "solutions": solutions}))
    return tmp_path / "solution.json"


def loaded(folder: Path):
    decoder = build_decoder(read_spec(folder), "cpu")
    load_weights(decoder, folder)
    return decoder.eval()


def test_the_parents_own_choice_is_the_parent(solution, built_library, tiny_parent, tmp_path):
    child = realize(str(solution), str(built_library), str(tmp_path / "child"))
    assert (child / "model.safetensors").read_bytes() == (tiny_parent / "model.safetensors").read_bytes()
    assert (child / "tokenizer.json").read_bytes() == (tiny_parent / "tokenizer.json").read_bytes()


def test_a_child_is_composed_of_library_and_parent(solution, built_library, tiny_parent, tmp_path):
    folder = realize(str(solution), str(built_library), str(tmp_path / "child"), index=1)
    child, parent, library = loaded(folder), loaded(tiny_parent), Library.open(built_library)
    assert child.spec.layers[0] == library.block_spec(0, BlockChoice("kv1", "linear"))
    made = library.weights(At(1, "ffn", "i16"))
    assert torch.equal(child.layers[1].mlp.down_proj.weight, made["mlp.down_proj.weight"])  # type: ignore
    assert torch.equal(child.embed_tokens.weight, parent.embed_tokens.weight)
    assert child(torch.arange(5)[None]).isfinite().all()


def test_a_child_is_chosen_by_its_name(solution, built_library, tmp_path):
    """Those of the solver and of baselines in a file of solve, all that were measured in one of refine."""
    solved = json.loads(solution.read_text())
    solved["baselines"] = {"ratio_greedy": {"status": "feasible", "solutions": [{**OWN_SOLVED, "choice": MIXED}]}}
    solution.write_text(json.dumps(solved))
    by_index = realize(str(solution), str(built_library), str(tmp_path / "index"), index=1)
    named = {
        name: realize(str(solution), str(built_library), str(tmp_path / name), name=name)
        for name in ("child", "child 2", "ratio greedy")
    }
    assert read_spec(named["child"]) != read_spec(by_index)
    for name in ("child 2", "ratio greedy"):
        assert (named[name] / "model.safetensors").read_bytes() == (by_index / "model.safetensors").read_bytes()
        assert read_provenance(named[name])["solution"]["name"] == name

    kept = {"realised": 1.0, "held_out": None, "is_plain": False}
    children = [{"name": "depth", "score": 1.5, "choice": MIXED, **kept}, {"name": "child", **OWN_SOLVED, **kept}]
    (tmp_path / "refined.json").write_text(json.dumps({**solved, "refined": {"children": children}}))
    depth = realize(str(tmp_path / "refined.json"), str(built_library), str(tmp_path / "depth"), name="depth")
    assert read_spec(depth) == read_spec(by_index)
    assert read_provenance(depth)["solution"]["score"] == 1.5


def test_a_name_that_no_child_has_is_told_with_those_that_there_are(solution, built_library, tmp_path):
    with pytest.raises(UserError, match=r"no child 'chidl'. Did you mean 'child'\? It has child, child 2"):
        realize(str(solution), str(built_library), str(tmp_path / "child"), name="chidl")
    with pytest.raises(UserError, match=r"index: 1 and name: 'child'.* give one"):
        realize(str(solution), str(built_library), str(tmp_path / "child"), index=1, name="child")
    assert not (tmp_path / "child").exists()


def test_who_cannot_load_the_child_is_told_and_stands_in_the_folder(solution, built_library, tmp_path, capsys):
    folder = realize(str(solution), str(built_library), str(tmp_path / "child"), index=1)
    told = capsys.readouterr().err.splitlines()
    assert "transformers, vLLM with lnlit-vllm can run this architecture" in told
    assert "vLLM cannot: it knows no single linear (layers[0].ffn)" in told
    kept = json.loads((folder / "lnlit.json").read_text())["obstacles"]
    assert kept["vLLM"] == ["it knows no single linear (layers[0].ffn)"] and kept["transformers"] == []


def test_the_folder_says_what_was_predicted(solution, built_library, tiny_parent, tmp_path):
    folder = realize(str(solution), str(built_library), str(tmp_path / "child"), index=1)
    record = read_provenance(folder)
    assert record["parent"] == str(tiny_parent) and record["library"] == str(built_library)
    assert record["solution"]["costs"] == {"memory_mib": 1.5} and record["solution"]["score"] == 0.5


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            {"status": "infeasible", "solutions": [], "message": "memory_mib cannot be below 3."},
            r"\(infeasible\). memory",
        ),
        ({"layers": []}, r"bad.json: the key 'status' is missing"),
        ({"status": "optimal", "solutions": {}}, r"bad.json.solutions: expected a list"),
        ({"status": "optimal", "solutions": [OWN_SOLVED]}, "holds 1 solutions, numbered from 0; got 1"),
        ({"status": "optimal", "solutions": [OWN_SOLVED, {}]}, r"solutions\[1\]: the key 'choice' is missing"),
        (
            {"status": "optimal", "solutions": [OWN_SOLVED, {**OWN_SOLVED, "choice": ["kv2+i48"]}]},
            "chooses 1 blocks, .* has 2 layers",
        ),
    ],
)
def test_bad_solutions_end_in_one_line(result, message, built_library, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=message):
        realize(str(tmp_path / "bad.json"), str(built_library), str(tmp_path / "child"), index=1)
    assert not (tmp_path / "child").exists()


def test_nothing_is_overwritten_unasked(solution, built_library, tmp_path):
    child = realize(str(solution), str(built_library), str(tmp_path / "child"))
    with pytest.raises(UserError, match="exists already"):
        realize(str(solution), str(built_library), str(child), index=1)
    realize(str(solution), str(built_library), str(child), index=1, overwrite=True)
    assert read_provenance(child)["solution"]["index"] == 1


def test_neither_the_parent_nor_the_library_is_overwritten(solution, built_library, tiny_parent):
    before = {file: file.read_bytes() for file in tiny_parent.iterdir()}
    for place in (tiny_parent, tiny_parent.parent, built_library, solution.parent):
        with pytest.raises(UserError, match="read by this very command"):
            realize(str(solution), str(built_library), str(place), overwrite=True)
    assert {file: file.read_bytes() for file in tiny_parent.iterdir()} == before


def test_a_parent_that_changed_is_noticed(solution, built_library, tmp_path, monkeypatch):
    other = tiny_spec().replace(layers=tiny_spec().layers[:1])
    changed = tiny_folder(tmp_path / "changed", other)
    index = json.loads((built_library / "library.json").read_text())
    copy = tmp_path / "library"
    copy.mkdir()
    for file in built_library.glob("layer-*"):
        (copy / file.name).symlink_to(file)
    (copy / "library.json").write_text(json.dumps({**index, "model": str(changed)}))
    with pytest.raises(UserError, match=r"is not the parent of .*First difference"):
        realize(str(solution), str(copy), str(tmp_path / "child"))

"""Which library a file was made from travels with it, and what is of another one is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lnlit.checkpoint.folder import read_provenance
from lnlit.errors import UserError
from lnlit.interfaces import Latency, Workload
from lnlit.journal import Lines
from lnlit.search.choice import At, BlockChoice
from lnlit.search.costs import CostTable
from lnlit.search.library import Library, layer_file
from lnlit.search.measure import LatencyLog, Plan
from lnlit.search.score import make_header, open_scores, read_done, read_scores
from lnlit.search.targets import Deployment, Target
from lnlit.stages.measure import measure, untimed
from lnlit.stages.realize import realize
from lnlit.stages.report import report
from lnlit.stages.solve import solve
from lnlit.testing.tiny import tiny_folder, tiny_spec
from lnlit.testing.tiny_library import tiny_library, undigested


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two libraries of one parent with the same names and other weights; scores, costs and a solution of "one"."""
    folder = tmp_path_factory.mktemp("identity")
    tiny_folder(folder / "parent", tiny_spec())
    one, _ = (
        tiny_library(folder / name, folder / "parent", tiny_spec(), seed=n) for n, name in enumerate(("one", "two"))
    )
    rows = [
        {"layer": layer, "slot": slot, "name": name, "score": 0.1 * place}
        for layer, variants in enumerate(one.layers)
        for slot, have in (("attention", variants.attention), ("ffn", variants.ffn), ("block", variants.pairs))
        for place, name in enumerate(have, start=1)
        if name not in one.layers[layer].parent
    ]
    header = make_header(one, "parent", metric="kl", granularity="subblock")
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    measure(str(one.folder), [Workload(1, 8, 4)], str(folder / "costs.json"), timing=False)
    solved(folder, folder / "solution.json")
    return folder


def solved(made: Path, out: Path, **changes: str) -> Path:
    given = {"library": str(made / "one"), "scores": str(made / "scores.jsonl"), "costs": str(made / "costs.json")}
    given |= changes
    deployment = Deployment(given.pop("costs"), (Target("parameters", max=0.9, of_parent=True),))
    return solve(str(out), deployment=deployment, solver="ratio_greedy", **given)


def test_a_solution_of_another_library_is_refused_by_both_names(made, tmp_path):
    """Both libraries have candidates of the same names."""
    says = rf"was made from the library {made / 'one'}, not from {made / 'two'}, whose candidates are others"
    with pytest.raises(UserError, match=says):
        realize(str(made / "solution.json"), str(made / "two"), str(tmp_path / "child"))
    with pytest.raises(UserError, match=says):
        report(str(made / "solution.json"), str(tmp_path / "report"), library=str(made / "two"))
    assert not list(tmp_path.iterdir())
    child = realize(str(made / "solution.json"), str(made / "one"), str(tmp_path / "child"))
    assert read_provenance(child)["library_sha256"] == Library.open(made / "one").identity["sha256"]


def test_a_moved_library_is_the_same_and_one_trained_on_is_not(made, tmp_path):
    moved = Path(shutil.copytree(made / "one", tmp_path / "moved"))
    assert realize(str(made / "solution.json"), str(moved), str(tmp_path / "child")).is_dir()
    file = solved(made, tmp_path / "solution.json", library=str(moved))
    shutil.rmtree(moved)
    shutil.copytree(made / "two", moved)
    with pytest.raises(UserError, match=rf"made from the library {moved}, which has changed since"):
        realize(str(file), str(moved), str(tmp_path / "other"))


def test_the_library_stays_known_by_way_of_the_problem_file(made, tmp_path):
    out = solve(str(tmp_path / "again.json"), str(made / "problem.json"), solver="greedy")
    assert json.loads(out.read_text())["library"]["folder"] == str(made / "one")
    with pytest.raises(UserError, match="whose candidates are others"):
        realize(str(out), str(made / "two"), str(tmp_path / "child"))


def test_a_solution_of_an_older_lnlit_is_told_and_taken(made, tmp_path, capsys):
    data = json.loads((made / "solution.json").read_text())
    del data["library"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert realize(str(tmp_path / "old.json"), str(made / "one"), str(tmp_path / "child")).is_dir()
    assert "old.json: does not say which library it was made from; taken as of" in capsys.readouterr().err


def test_a_report_goes_with_its_problem_its_costs_and_its_child(made, tmp_path):
    other = json.loads((made / "problem.json").read_text())
    other["library"]["sha256"] = "0" * 64
    (tmp_path / "problem.json").write_text(json.dumps(other))
    arguments = {"solution": str(made / "solution.json"), "out": str(tmp_path / "report")}
    with pytest.raises(UserError, match=r"problem.json: is a problem of the library .*one, the solution .* of .*one"):
        report(**arguments, problem=str(tmp_path / "problem.json"))
    costs = {"parameters": 1.0}
    child = {"name": "child", "predicted": costs, "measured": costs}
    for about, says in (
        ({"costs_sha256": "0" * 64}, "measured beside another cost table"),
        (
            {"models": [{**child, "library_sha256": "0" * 64}]},
            r"child is a child of another library than .*solution.json",
        ),
    ):
        (tmp_path / "measured.json").write_text(json.dumps({"models": [child], **about}))
        with pytest.raises(UserError, match=says):
            report(**arguments, costs=str(made / "costs.json"), measured=str(tmp_path / "measured.json"))
    assert not (tmp_path / "report").exists()


def test_a_layer_file_of_another_library_is_noticed_when_the_library_is_opened(made, tmp_path):
    copy = Path(shutil.copytree(made / "one", tmp_path / "copy"))
    shutil.copy(layer_file(made / "two", 1), layer_file(copy, 1))
    with pytest.raises(UserError, match=r"layer-001.safetensors: is not the file that library.json was written with"):
        Library.open(copy)


def test_weights_that_were_changed_in_their_file_are_noticed_when_they_are_read(made, tmp_path):
    copy = Path(shutil.copytree(made / "one", tmp_path / "copy"))
    file = layer_file(copy, 1)
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    tensors = load_file(file)
    tensors["ffn/i24/mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, file, metadata=about)
    library = Library.open(copy)
    linear = At(1, "ffn", "linear")
    assert library.weights(linear).keys() == Library.open(made / "one").weights(linear).keys()
    with pytest.raises(UserError, match=r"layer-001.safetensors: is not the file"):
        library.weights(At(1, "ffn", "i24"))
    with pytest.raises(UserError, match=r"layer-001.safetensors: is not the file"):
        library.block_weights(1, BlockChoice("linear", "i24"), {})


def test_a_library_of_an_older_lnlit_is_told_and_read(made, tmp_path, capsys):
    old = undigested(Path(shutil.copytree(made / "one", tmp_path / "copy")))
    assert "kept no digests of its weights" in capsys.readouterr().err
    new = Library.open(made / "one")
    assert capsys.readouterr().err == ""
    for at in (At(0, "attention", "kv1"), At(1, "block", "kv1+i24")):
        ours, theirs = old.weights(at), new.weights(at)
        assert all((ours[key] == theirs[key]).all() for key in theirs | ours)


def test_costs_hold_for_libraries_of_the_same_parts_and_no_others(made, tmp_path, capsys):
    """A part costs the same whatever its weights: the table of a library before it was trained is right for it."""
    table = CostTable.read(made / "costs.json")
    assert table.library == Library.open(made / "one").identity
    two = Library.open(made / "two").identity
    replace(table, library=two).write(tmp_path / "costs.json")
    assert solved(made, tmp_path / "s.json", costs=str(tmp_path / "costs.json")).is_file()
    assert f"measured for the library {made / 'two'}; it has all parts of {made / 'one'}" in capsys.readouterr().err
    fewer = {part: cost for part, cost in table.ffn.items() if part.args.get("intermediate_size") != 24}
    replace(table, library=two, ffn=fewer).write(tmp_path / "costs.json")
    with pytest.raises(UserError, match=rf"library {made / 'two'}, which lacks ffn 'i24' of layer 0 of {made / 'one'}"):
        solved(made, tmp_path / "s.json", costs=str(tmp_path / "costs.json"))
    table_alone = untimed(Plan.of(tiny_spec(), [], []), [Workload(1, 8, 4)], "bfloat16")
    assert "library" not in table_alone.to_json()


def test_a_candidate_that_is_scored_twice_is_refused(made, tmp_path):
    lines = (made / "scores.jsonl").read_text().splitlines()
    entry = json.loads(lines[1])
    other = json.dumps({**entry, "score": entry["score"] + 1})
    for again in (lines[1], other):
        (tmp_path / "scores.jsonl").write_text("\n".join([*lines, again, ""]))
        at = At(0, entry["slot"], entry["name"])
        says = rf"scores.jsonl:{len(lines) + 1}: {at} has a score in line 2 already"
        with pytest.raises(UserError, match=says):
            read_scores(tmp_path / "scores.jsonl")
    (tmp_path / "a").write_text("\n".join([lines[0], lines[1], ""]))
    (tmp_path / "b").write_text("\n".join([lines[0], lines[1], ""]))
    assert len(read_done([tmp_path / "a", tmp_path / "b"], json.loads(lines[0]))) == 1  # a merge that was cut short
    (tmp_path / "b").write_text("\n".join([lines[0], other, ""]))
    with pytest.raises(UserError, match="and another file of the same run as"):
        read_done([tmp_path / "a", tmp_path / "b"], json.loads(lines[0]))


def test_two_measurements_do_not_share_a_file(tmp_path):
    file, turn = tmp_path / "costs.json.partial", (0, "parent")
    with LatencyLog.beside(tmp_path / "costs.json", {"engine": "native"}) as log:
        log.append(turn, [Latency((1.0,), (2.0,))])
        with pytest.raises(UserError, match="another process is writing these measurements"):
            LatencyLog.beside(tmp_path / "costs.json", {"engine": "native"})
    with file.open("ab") as stream:
        stream.write(b'{"cut')
    with LatencyLog.beside(tmp_path / "costs.json", {"engine": "native"}) as log:
        assert turn in log
        log.append((1, "parent"), [Latency((1.0,), (2.0,))])
    assert len(file.read_bytes().splitlines()) == 3
    with open_scores(tmp_path / "scores", {"format": 1}), pytest.raises(UserError, match="is writing these scores"):
        open_scores(tmp_path / "scores", {"format": 1})
    (tmp_path / "gone").touch()
    with Lines(tmp_path / "gone", "lines") as stream:
        (tmp_path / "gone").unlink()
        with Lines(tmp_path / "gone", "lines") as another:  # not the one that its owner has finished and deleted
            another.append({})
            assert len(stream) == 0 and (tmp_path / "gone").read_text() == "{}\n"

"""Merging whole folders, by the command line and in Python."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lnlit
from lnlit.checkpoint.descent import ancestors
from lnlit.checkpoint.folder import knows_thinking, read_provenance, save_folder
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.safetensors_folder import SafetensorsFolder
from lnlit.cli.main import main
from lnlit.errors import UserError
from lnlit.models.weights import canonical_weights
from lnlit.stages.merge import _taken, merge
from lnlit.testing.tiny import mixed_spec, swiglu, tiny_decoder, tiny_folder, tiny_spec


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three models of one heterogeneous spec, one of another."""
    folder = tmp_path_factory.mktemp("merge")
    for seed, name in enumerate("abc"):
        tiny_folder(folder / name, mixed_spec(), seed)
    tiny_folder(folder / "other", tiny_spec())
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(file).items()
    }


def names(made: Path, *which: str) -> list[str]:
    return [str(made / name) for name in which]


def test_a_mean_by_weights_of_two_and_of_three(made, tmp_path):
    out = merge(names(made, "a", "b", "c"), str(tmp_path / "m"), weights=[1, 2, 5])
    found, of = weights(out), [weights(made / name) for name in "abc"]
    for name, tensor in found.items():
        a, b, c = (each[name].double() for each in of)
        torch.testing.assert_close(tensor.double(), (a + 2 * b + 5 * c) / 8, rtol=1e-6, atol=1e-6)
    assert read_spec(out) == read_spec(made / "a")
    equal = weights(merge(names(made, "a", "b"), str(tmp_path / "e")))
    assert all(equal[name].equal((of[0][name] + of[1][name]) / 2) for name in equal)


def test_task_vectors_add_what_was_learned(made, tmp_path):
    out = merge(names(made, "a", "b"), str(tmp_path / "m"), "task_vectors", [0.7, 0.5], base=str(made / "c"))
    a, b, base = (weights(made / name) for name in "abc")
    for name, tensor in weights(out).items():
        expected = base[name] + 0.7 * (a[name] - base[name]) + 0.5 * (b[name] - base[name])
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)
    again = merge([str(made / "a")], str(tmp_path / "whole"), "task_vectors", [1.0], base=str(made / "c"))
    assert all(tensor.equal(a[name]) for name, tensor in weights(again).items())


def test_slerp_takes_two_and_ends_at_them(made, tmp_path):
    out = merge(names(made, "a", "b"), str(tmp_path / "m"), "slerp", [0, 3])
    torch.testing.assert_close(weights(out), weights(made / "b"))
    with pytest.raises(UserError, match="slerp takes exactly 2 models, got 3"):
        merge(names(made, "a", "b", "c"), str(tmp_path / "no"), "slerp")


def test_a_dtype_is_that_of_the_first_model_or_as_wished(made, tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in weights(made / "a").items()}
    first = save_folder(tmp_path / "half", mixed_spec(), half.items(), tokenizer_from=made / "a", provenance={})
    out = merge([str(first), str(made / "b")], str(tmp_path / "m"))
    b = weights(made / "b")
    assert all(tensor.equal(((half[n].float() + b[n]) / 2).bfloat16()) for n, tensor in weights(out).items())
    wide = merge([str(first), str(made / "b")], str(tmp_path / "w"), dtype="float32")
    assert {tensor.dtype for tensor in weights(wide).values()} == {torch.float32}
    with pytest.raises(UserError, match="float16 ends at"):
        big = {name: tensor * 1e6 for name, tensor in weights(made / "a").items()}
        save_folder(tmp_path / "big", mixed_spec(), big.items(), tokenizer_from=made / "a", provenance={})
        merge([str(tmp_path / "big"), str(made / "b")], str(tmp_path / "no"), dtype="float16")
    assert not (tmp_path / "no").exists()


def test_what_was_merged_is_remembered(made, tmp_path):
    thinks = shutil.copytree(made / "b", tmp_path / "thinks")
    record = json.loads((thinks / "lnlit.json").read_text())
    record["provenance"] = {"thinking": True, "method": "SFT", "parent": "/gone"}
    (thinks / "lnlit.json").write_text(json.dumps(record))
    out = merge([str(made / "a"), str(thinks)], str(tmp_path / "m"), weights=[1, 3])
    found = read_provenance(out)
    assert (found["stage"], found["method"], [each["weight"] for each in found["merged"]]) == (
        "merge",
        "linear",
        [1, 3],
    )
    assert [each["model"] for each in found["merged"]] == [str(made / "a"), str(thinks)]
    assert found["merged"][1]["parent_provenance"]["method"] == "SFT"
    assert len({each["fingerprint"] for each in found["merged"]}) == 2
    assert knows_thinking(out) and not knows_thinking(made / "a")
    assert [name for name, _ in ancestors(str(out))] == [str(out), str(made / "a")]


def test_the_newest_checkpoints_of_a_run_are_averaged(made, tmp_path):
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    states = []
    for step in (5, 10, 100):
        decoder = tiny_decoder(tiny_spec(), seed=step)
        states.append(dict(canonical_weights(decoder)))
        ours = {"spec": tiny_spec().to_json(), "model": str(made / "other"), "tokenizer": None, "lora": None}
        ours |= {"length": [1, None], "total_steps": 1}
        state = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
        torch.save({"pytorch-lightning_version": "2", "state_dict": state, "lnlit": ours}, run / f"step-{step}.ckpt")
    out = merge([str(tmp_path / "run")], str(tmp_path / "m"), last=2)
    found = weights(out)
    assert all(tensor.equal((states[1][name] + states[2][name]) / 2) for name, tensor in found.items())
    assert (out / "tokenizer.json").is_file()
    assert [Path(each["model"]).name for each in read_provenance(out)["merged"]] == ["step-10.ckpt", "step-100.ckpt"]
    with pytest.raises(UserError, match=r"4 checkpoints are asked for, and .* has step-5.ckpt, step-10.ckpt, st"):
        merge([str(tmp_path / "run")], str(tmp_path / "no"), last=4)


def test_one_tensor_of_each_model_is_held(made, tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    most = 0
    read = SafetensorsFolder.read

    def counted(self, name, *part):
        nonlocal most
        tensor = read(self, name, *part)
        alive[:] = [each for each in (*alive, weakref.ref(tensor)) if each() is not None]
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(SafetensorsFolder, "read", counted)
    merge(names(made, "a", "b", "c"), str(tmp_path / "m"))
    assert 3 <= most <= 4, "three at a time, and one that is about to go"


def test_the_order_of_tensors_in_a_folder_does_not_matter(made, tmp_path):
    whole = weights(made / "b")
    shuffled = shutil.copytree(made / "b", tmp_path / "shuffled")
    (shuffled / "model.safetensors").unlink()
    order = sorted(whole, reverse=True)
    held = {f"model-{i:05d}.safetensors": order[i::3] for i in range(3)}
    for file, those in held.items():
        save_file({name: whole[name] for name in those}, shuffled / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, those in held.items() for name in those}}
    (shuffled / "model.safetensors.index.json").write_text(json.dumps(index))
    one, two = (merge([str(made / "a"), str(b)], str(tmp_path / f"m-{b.name}")) for b in (made / "b", shuffled))
    assert all(tensor.equal(weights(two)[name]) for name, tensor in weights(one).items())


def test_streams_of_any_order_meet_by_name():
    """As those of other formats, which need not list weights as a folder does."""
    first = [("a", 1), ("b", 2), ("c", 3)]
    held: dict = {}
    stream = iter([("c", 30), ("a", 10), ("b", 20)])
    assert [_taken(name, stream, held, "other") for name, _ in first] == [10, 20, 30] and not held
    with pytest.raises(UserError, match="other lacks the tensor d"):
        _taken("d", stream, held, "other")


def test_unlike_models_are_refused_by_the_first_slot_that_differs(made, tmp_path):
    layers = mixed_spec().layers
    narrow = mixed_spec().replace(layers=(*layers[:5], layers[5].replace(ffn=swiglu(24))))
    tiny_folder(tmp_path / "narrow", narrow)
    shorter = tiny_folder(tmp_path / "shorter", mixed_spec().replace(layers=layers[:5]))
    longer = tiny_folder(tmp_path / "longer", mixed_spec().replace(context_length=512))
    before = sorted(tmp_path.rglob("*"))
    for other, told in [
        (tmp_path / "narrow", r"layers\[5\].ffn is swiglu\(intermediate_size=24\), not swiglu\(intermediate_size=16\)"),
        (shorter, "it has 5 layers, not 6"),
        (longer, "spec.context_length: 256 -> 512"),
    ]:
        with pytest.raises(UserError, match=f"is another architecture than .*: {told}"):
            merge([str(made / "a"), str(other)], str(tmp_path / "no"))
    assert sorted(tmp_path.rglob("*")) == before


def test_models_with_other_tokens_are_refused_and_other_templates_are_told(made, tmp_path, capsys):
    swapped = shutil.copytree(made / "b", tmp_path / "swapped")
    data = json.loads((swapped / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (swapped / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"the tokenizers of .*swapped and .*a differ: 2 tokens differ, e.g. "):
        merge([str(made / "a"), str(swapped)], str(tmp_path / "no"))
    capsys.readouterr()
    talks = shutil.copytree(made / "b", tmp_path / "talks")
    (talks / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    out = merge([str(made / "a"), str(talks)], str(tmp_path / "m"), tokenizer=str(talks))
    assert "the chat template is that of" in capsys.readouterr().err
    assert (out / "chat_template.jinja").read_text() == (talks / "chat_template.jinja").read_text()
    merge(names(made, "a", "b"), str(tmp_path / "quiet"))
    assert "chat template" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "settings", "told"),
    [
        ("a", {}, "linear takes 2 models or more, got 1"),
        ("aa", {}, "is there twice, so it would be merged with itself"),
        ("ab", {"weights": [1.0]}, "expected one for each of 2 models, got 1"),
        ("ab", {"weights": [1.0, float("nan")]}, "expected finite numbers"),
        ("ab", {"weights": [1.0, -1.0]}, "their sum is 0, and they are divided by it"),
        ("ab", {"weights": [1.0, -0.5], "method": "slerp"}, "so 0 or more for slerp"),
        ("ab", {"method": "task_vectors", "base": "c"}, "task vectors need a factor for each model"),
        ("ab", {"method": "task_vectors", "weights": [1, 1]}, "so they need one"),
        ("ab", {"method": "task_vectors", "weights": [1, 1], "base": "b"}, "is there twice"),
        ("ab", {"base": "c"}, "belongs to method: task_vectors, not to linear"),
        ("ab", {"last": 0}, "merge.last: expected 1 or more, got 0"),
        ("ab", {"last": 1}, "1 checkpoints are asked for, and .* has none"),
        ("ab", {"weights": [1e30, 1e39]}, "the tensor .* has a value that is no finite number, as the weights are too"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(made, tmp_path, models, settings, told):
    if "base" in settings:
        settings = {**settings, "base": str(made / settings["base"])}
    with pytest.raises(UserError, match=told) as raised:
        merge(names(made, *models), str(tmp_path / "out"), **settings)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_model_by_another_of_its_paths_is_that_model(made, tmp_path):
    (tmp_path / "link").symlink_to(made / "a")
    for other in (f"{made / 'a'}/", str(made / "b" / ".." / "a"), str(tmp_path / "link")):
        with pytest.raises(UserError, match="is there twice, so it would be merged with itself"):
            merge([str(made / "a"), other], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("written", ["[", "[]"])
def test_a_damaged_configuration_of_a_tokenizer_is_named(made, tmp_path, written):
    other = shutil.copytree(made / "b", tmp_path / "b")
    (other / "chat_template.jinja").unlink()
    (other / "tokenizer_config.json").write_text(written)
    with pytest.raises(UserError, match=r"b/tokenizer_config.json: "):
        merge([str(made / "a"), str(other)], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", [["--overwrite"], ["--overwrite", "true"], ["--overwrite=True"]])
def test_a_flag_may_stand_before_the_models(made, tmp_path, flag):
    merge(names(made, "a", "c"), str(tmp_path / "out"))
    before = weights(tmp_path / "out")
    assert main(["merge", *flag, *names(made, "a", "b"), "--out", str(tmp_path / "out")]) == 0
    assert not all(tensor.equal(before[name]) for name, tensor in weights(tmp_path / "out").items())
    assert main(["merge", "--overwrite", "false", *names(made, "a", "b"), "--out", str(tmp_path / "out")]) == 2


def test_a_damaged_model_is_named(made, tmp_path):
    broken = shutil.copytree(made / "b", tmp_path / "broken")
    spoilt = weights(broken)
    spoilt["model.norm.weight"][3] = float("inf")
    save_file(spoilt, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"tensor model.norm.weight has a value .* as in .*broken, whose weights are da"
    ):
        merge([str(made / "a"), str(broken)], str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_a_model_is_never_lost(made, tmp_path):
    mine = shutil.copytree(made / "a", tmp_path / "mine")
    with pytest.raises(UserError, match="read by this very command"):
        merge([str(mine), str(made / "b")], str(mine), overwrite=True)
    taken = tiny_folder(tmp_path / "taken", tiny_spec())
    with pytest.raises(UserError, match="exists already"):
        merge(names(made, "a", "b"), str(taken))
    assert read_spec(merge(names(made, "a", "b"), str(taken), overwrite=True)) == read_spec(made / "a")


def test_merge_is_offered_in_python():
    assert lnlit.merge is merge


def test_words_are_models_on_the_command_line(made, tmp_path, capsys):
    (tmp_path / "merge.yaml").write_text(f"stage: merge\nmodels: [nowhere]\nweights: [3, 1]\nout: {tmp_path}/m\n")
    assert main(["merge", *names(made, "a", "b"), "--config", str(tmp_path / "merge.yaml")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/m\n"
    assert [each["weight"] for each in read_provenance(tmp_path / "m")["merged"]] == [3, 1]
    assert main(["merge", "--out", str(tmp_path / "n"), "--dtype", "float32", *names(made, "a", "b")]) == 0
    assert main(["merge", *names(made, "a", "b"), "--out", str(tmp_path / "no"), "--weights", "0.3,0.7"]) == 2
    assert "weights: expected list[float] or null, got '0.3,0.7'. Write a list as '[a, b]'." in capsys.readouterr().err
    assert main(["merge", "sweep", str(made / "a"), "--out", "x", "--asked.tasks", "[gsm8k]"]) == 2
    assert "sweep.models: expected two models, got 1" in capsys.readouterr().err
    assert main(["merge", "--help"]) == 0 and "which is merge" in capsys.readouterr().out


def test_reward_models_keep_a_head(made, tmp_path):
    for name, value in (("a", 1.0), ("b", 3.0)):
        shutil.copytree(made / name, tmp_path / name)
        save_file({"weight": torch.full((1, 32), value)}, tmp_path / name / "reward_head.safetensors")
    out = merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "m"), weights=[3, 1])
    assert load_file(out / "reward_head.safetensors")["weight"].unique().tolist() == [1.5]
    with pytest.raises(UserError, match="is no reward model, and others here are"):
        merge([str(tmp_path / "a"), str(made / "c")], str(tmp_path / "no"))


def test_mergekit_gives_the_same_weights_bit_by_bit(tmp_path):
    pytest.importorskip("mergekit", reason="pip install mergekit==0.1.5")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    spec = tiny_spec()
    for seed, name in enumerate("abc"):
        half = ((n, tensor.bfloat16()) for n, tensor in canonical_weights(tiny_decoder(spec, seed)))
        source = tiny_folder(tmp_path / f"full-{name}", spec, seed)
        save_folder(tmp_path / name, spec, half, tokenizer_from=source, provenance={})
    shares = [0.3, 0.45, 0.25]
    models = [{"model": str(tmp_path / n), "parameters": {"weight": w}} for n, w in zip("abc", shares, strict=True)]
    config = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    run_merge(MergeConfiguration.model_validate(config), str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=True))
    ours = weights(merge([str(tmp_path / name) for name in "abc"], str(tmp_path / "ours"), weights=shares))
    theirs = weights(tmp_path / "theirs")
    assert ours.keys() <= theirs.keys()
    assert all(tensor.view(torch.int16).equal(theirs[name].view(torch.int16)) for name, tensor in ours.items())

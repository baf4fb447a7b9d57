"""`lnlit import` and `lnlit export`: bitwise, in little memory, from folders, GGUF and training checkpoints."""

from __future__ import annotations

import json
import re

import pytest
import torch
from checkpoint_models import mixed_spec, random_decoder, save_tiny
from safetensors.torch import load_file, save_file

from lnlit.checkpoint.convert import export_model, import_model
from lnlit.checkpoint.folder import read_provenance
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.layout import packed_runs
from lnlit.models.lora import LoRA, add_lora, init_lora
from lnlit.models.weights import canonical_weights
from lnlit.testing.tiny import save_tokenizer


def test_import_export_import_is_bitwise(tmp_path):
    save_tiny(tmp_path / "source", attention_bias=True)
    import_model(tmp_path / "source", tmp_path / "first")
    assert export_model(tmp_path / "first", tmp_path / "exported") == tmp_path / "exported"
    import_model(tmp_path / "exported", tmp_path / "second", max_shard_bytes=10_000)
    assert not (tmp_path / "second" / "model.safetensors").exists()
    import_model(tmp_path / "second", tmp_path / "third")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "exported", "third")]
    assert files[0] == files[1] == files[2]
    source = load_file(tmp_path / "source" / "model.safetensors")
    first = load_file(tmp_path / "first" / "model.safetensors")
    assert source.keys() == first.keys()
    assert all(torch.equal(first[name], tensor) for name, tensor in source.items())
    assert len({read_spec(tmp_path / name) for name in ("source", "first", "exported", "second", "third")}) == 1


def test_a_dtype_converts_and_is_recorded(tmp_path):
    save_tiny(tmp_path / "source")
    out = import_model(tmp_path / "source", tmp_path / "half", dtype="bfloat16")
    tensors = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(UserError, match=r"dtype 'bfloat' is unknown. Did you mean 'bfloat16'"):
        import_model(tmp_path / "source", tmp_path / "other", dtype="bfloat")


def test_a_number_that_a_dtype_cannot_hold_is_refused(tmp_path):
    save_tiny(tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    tensors["model.norm.weight"][:2] = torch.tensor([1e30, torch.inf])
    save_file(tensors, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model.norm.weight holds numbers up to 1e\+30, and float16 ends at 6.55e\+04"):
        import_model(tmp_path / "source", tmp_path / "half", dtype="float16")
    assert not (tmp_path / "half").exists()
    import_model(tmp_path / "source", tmp_path / "brain", dtype="bfloat16")  # as it holds infinity, that one may stay


@pytest.mark.parametrize(
    ("file", "ids", "message"),
    [
        ("generation_config.json", {"eos_token_id": [1, [2]]}, "eos_token_id: expected a token id or a list of ids"),
        ("generation_config.json", {"eos_token_id": "</s>"}, "eos_token_id: expected a token id or a list of ids"),
        ("config.json", {"eos_token_id": [1, "x"]}, "eos_token_id: expected a token id or a list of ids"),
        ("config.json", {"eos_token_id": True}, "eos_token_id: expected a token id or a list of ids, got True"),
        ("config.json", {"bos_token_id": [1, 2]}, r"bos_token_id: expected one token id, got \[1, 2\]"),
        (
            "config.json",
            {"pad_token_id": 99999},
            "pad_token_id: 99999 is no token of the model, whose vocabulary has 97",
        ),
    ],
)
def test_ids_that_are_none_are_named_with_their_file(tmp_path, file, ids, message):
    source = tmp_path / "source"
    save_tiny(source)
    values = json.loads((source / file).read_text()) if (source / file).is_file() else {}
    (source / file).write_text(json.dumps(values | ids))
    with pytest.raises(UserError, match=message) as refused:
        import_model(source, tmp_path / "out")
    assert "99999" in message or str(source / file) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_the_target_is_checked_before_the_weights_are_read(tmp_path):
    save_tiny(tmp_path / "source")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UserError, match="taken: exists already"):
        import_model(tmp_path / "source", tmp_path / "taken")


@pytest.mark.parametrize("place", ["source", ".", "source/../link"])
@pytest.mark.parametrize("write", [import_model, export_model])
def test_what_is_read_is_never_overwritten(tmp_path, place, write):
    save_tiny(tmp_path / "source")
    save_tiny(tmp_path)  # a model folder that holds another
    (tmp_path / "link").symlink_to(tmp_path / "source")
    before = (tmp_path / "source" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"read by this very command, and would be lost. Choose another place"):
        write(tmp_path / "source", tmp_path / place, overwrite=True)
    assert (tmp_path / "source" / "model.safetensors").read_bytes() == before


def test_a_checkpoint_is_not_exported_over_the_model_it_was_trained_from(tmp_path):
    save_tiny(tmp_path / "origin")
    decoder = random_decoder(mixed_spec())
    lnlit = {**said_of(decoder), "model": str(tmp_path / "origin")}
    file = write_ckpt(tmp_path / "last.ckpt", decoder, lnlit=lnlit)
    with pytest.raises(UserError, match="origin is read by this very command"):
        export_model(file, tmp_path / "origin", overwrite=True)


def test_the_tokenizers_end_token_joins_the_configs(tmp_path):
    save_tiny(tmp_path / "source", eos_token_id=2)
    (tmp_path / "source" / "generation_config.json").unlink()
    save_tokenizer(tmp_path / "source")
    config = tmp_path / "source" / "tokenizer_config.json"
    changed = json.loads(config.read_text()) | {"eos_token": {"content": "<|im_end|>", "__type": "AddedToken"}}
    config.write_text(json.dumps(changed))
    out = import_model(tmp_path / "source", tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 257]


def said_of(decoder):
    """What a checkpoint says of its weights."""
    return {"spec": json.dumps(decoder.spec.to_json()), "model": None, "packed_runs": packed_runs(decoder)}


def write_ckpt(file, decoder, **changes):
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    lnlit = said_of(decoder)
    torch.save({"state_dict": state | {"teacher.weight": torch.ones(1)}, "lnlit": lnlit, "epoch": 1} | changes, file)
    return file


def test_a_training_checkpoint_exports_with_the_tokenizer_of_its_origin(tmp_path):
    save_tiny(tmp_path / "origin")
    (tmp_path / "origin" / "chat_template.jinja").write_text("{{ messages }}")
    decoder = random_decoder(mixed_spec())
    lnlit = {**said_of(decoder), "model": str(tmp_path / "origin")}
    file = write_ckpt(tmp_path / "last.ckpt", decoder, lnlit=lnlit)
    export_model(file, tmp_path / "out")
    assert "no single linear" in json.loads((tmp_path / "out" / "lnlit.json").read_text())["obstacles"]["vLLM"][0]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    expected = dict(canonical_weights(decoder))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_adapters_of_a_training_checkpoint_are_merged(tmp_path):
    decoder = random_decoder(mixed_spec())
    add_lora(decoder, LoRA(rank=2, targets=("q_proj", "gate_up_proj")))
    init_lora(decoder)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "lora_b" in name:
                parameter.normal_()
    adapters = {"rank": 2, "alpha": 32.0, "dropout": 0.0, "targets": ["q_proj", "gate_up_proj"]}
    lnlit = {**said_of(decoder), "lora": adapters}
    export_model(write_ckpt(tmp_path / "last.ckpt", decoder, lnlit=lnlit), tmp_path / "out")
    exported = build_decoder(decoder.spec, "cpu").eval()
    load_weights(exported, tmp_path / "out")
    tokens = torch.randint(0, 97, (1, 20))
    with torch.no_grad():
        assert (exported(tokens) - decoder.eval()(tokens)).abs().max() <= 1e-4
        assert (exported(tokens) - random_decoder(mixed_spec())(tokens)).abs().max() > 0.1


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lnlit": {}}, r"last.ckpt: a Lightning checkpoint without an lnlit spec"),
        ({"state_dict": {}}, r"model.embed_tokens|embed_tokens.weight.* missing"),
        ({"extra": Payload()}, r"cannot be read as a checkpoint of plain tensors"),
    ],
)
def test_a_foreign_or_dangerous_ckpt_is_refused(tmp_path, capsys, changes, message):
    file = write_ckpt(tmp_path / "last.ckpt", random_decoder(mixed_spec()), **changes)
    with pytest.raises(UserError, match=message):
        export_model(file, tmp_path / "out")
    assert "never run" not in capsys.readouterr().out


def test_a_truncated_ckpt_is_named(tmp_path):
    file = write_ckpt(tmp_path / "last.ckpt", random_decoder(mixed_spec()))
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"last.ckpt: cannot be read"):
        export_model(file, tmp_path / "out")


def test_padding_for_pipeline_stages_keeps_every_weight(tmp_path):
    spec = mixed_spec()
    file = write_ckpt(tmp_path / "last.ckpt", random_decoder(spec))
    export_model(file, tmp_path / "plain")
    export_model(file, tmp_path / "padded", dtype="float32", pipeline_stages=2)
    child, made_of = read_spec(tmp_path / "padded"), read_provenance(tmp_path / "padded")["layers"]
    assert len(child.layers) % 2 == 0 and len(child.layers) == len(made_of)
    plain, padded = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "padded"))
    number = {parent: place for place, parents in enumerate(made_of) for parent in parents}
    moved = {re.sub(r"(?<=layers\.)\d+", lambda found: str(number[int(found[0])]), name): name for name in plain}
    assert moved.keys() == padded.keys()
    assert all(torch.equal(padded[new], plain[old]) for new, old in moved.items())
    config = json.loads((tmp_path / "padded" / "config.json").read_text())
    dummies = [block["attention"]["no_op"] and block["ffn"]["no_op"] for block in config["block_configs"]]
    assert dummies == [not parents for parents in made_of]

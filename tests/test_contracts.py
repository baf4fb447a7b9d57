"""The contract of every registered part, built-in or installed, and proof that the contracts catch broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import (
    AttentionKernel,
    AttentionLayer,
    FeedForwardLayer,
    Latency,
    Meter,
    Solution,
    Solver,
    SolverResult,
    Source,
)
from lnlit.models.kernels import SDPAKernel
from lnlit.testing import contracts
from lnlit.testing.meter_contract import check_meter
from lnlit.testing.solver_contract import check_solver

GQA = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
NORMED = {**GQA, "qk_norm": True, "window": 3, "rotary_dim": 4}
PLACELESS = {**GQA, "bias": True, "output_bias": False, "rotary_dim": 0}
LAYERS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("attention", "gqa"): [
        GQA,
        {**GQA, "bias": True},
        {"num_heads": 5, "num_kv_heads": 1, "head_dim": 6},
        NORMED,
        PLACELESS,
    ],
    ("attention", "single_linear"): [{}],
    ("attention", "noop"): [{}],
    ("ffn", "swiglu"): [{"intermediate_size": 48}, {"intermediate_size": 7, "bias": True}],
    ("ffn", "swiglu_fused"): [{"intermediate_size": 48}, {"intermediate_size": 7, "bias": True}],
    ("ffn", "single_linear"): [{}],
    ("ffn", "noop"): [{}],
}


def builtins(*kinds: str) -> set[tuple[str, str]]:
    return {(e.kind, e.name) for kind in kinds for e in registry.entries(kind) if e.distribution == "lnlit"}


def test_every_registered_layer_is_covered():
    assert builtins("attention", "ffn") == LAYERS.keys()


@pytest.mark.parametrize(("part", "args"), [(part, args) for part, all_args in LAYERS.items() for args in all_args])
def test_layer(part: tuple[str, str], args: dict[str, Any]):
    contracts.check_layer(*part, args)


@pytest.mark.parametrize("name", sorted(name for _, name in builtins("attention_kernel")))
def test_attention_kernel(name: str):
    if reason := contracts.check_attention_kernel(name):
        pytest.skip(reason)


ROWS = [{"input": f"question {i}", "output": str(i), "extra": {"n": [i, None, 0.5]}} for i in range(7)]


def write_rows(folder: Path, name: str) -> dict[str, Any]:
    """The arguments of a source that reads ROWS."""
    if name == "jsonl":
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return {"paths": str(file)}
    if name == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        pa = pytest.importorskip("pyarrow")
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=3)
        return {"paths": str(folder / "rows.parquet")}
    if name == "huggingface":
        pytest.importorskip("datasets.config").HF_DATASETS_CACHE = folder / "cache"
        (folder / "set").mkdir()
        write_rows(folder / "set", "jsonl")
        return {"path": str(folder / "set"), "split": "train"}
    if name == "text":
        for i in range(3):
            (folder / f"{i}.txt").write_text(f"text {i}\u2028\n\nend\r\n")
        return {"paths": str(folder / "*.txt")}
    if name == "split":
        return {"source": registry.build("source", "jsonl", **write_rows(folder, "jsonl")), "split": "train"}
    if name == "difficulty":
        rows = "".join(json.dumps(row | {"pass_rate": number / 8}) + "\n" for number, row in enumerate(ROWS))
        (folder / "annotated.jsonl").write_text(rows)
        return {"source": registry.build("source", "jsonl", paths=str(folder / "annotated.jsonl"))}
    if name == "preference":
        pairs = [{"prompt": row["input"], "chosen": row["output"], "rejected": "?", "n": 1} for row in ROWS]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        return {"source": registry.build("source", "jsonl", paths=str(folder / "pairs.jsonl"))}
    pytest.importorskip("reasoning_gym")
    return {"split": "train", "size": 7, "seed": 3}


@pytest.mark.parametrize("name", sorted(name for _, name in builtins("source")))
def test_source(name: str, tmp_path: Path):
    args = write_rows(tmp_path, name)
    contracts.check_source(lambda: registry.build("source", name, **args))


@pytest.mark.parametrize("name", sorted(name for _, name in builtins("solver")))
def test_solver(name: str):
    check_solver(name)


class Linear(nn.Module):
    """The parts below differ from a correct one in one thing each."""

    packed_weights: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, context: Any, *, width: int = 8) -> None:
        super().__init__()
        self.up = nn.Linear(context.hidden_size, width, bias=False)
        self.down = nn.Linear(width, context.hidden_size, bias=False)


class Good(Linear, FeedForwardLayer):
    def forward(self, x_BTD):
        return self.down(self.up(x_BTD).relu())


class MixesTokens(Good):
    def forward(self, x_BTD):
        return super().forward(x_BTD + x_BTD.mean(1, keepdim=True))


class InPlace(Good):
    def forward(self, x_BTD):
        return super().forward(x_BTD.detach().mul_(2.0))


class Random(Good):
    def forward(self, x_BTD):
        return super().forward(x_BTD) + torch.rand(())


class Upcasts(Good):
    def forward(self, x_BTD):
        return super().forward(x_BTD).float()


class CutsGradient(Good):
    def forward(self, x_BTD):
        return super().forward(x_BTD.detach())


class IgnoresMeta(Good):
    def __init__(self, context, *, width: int = 8) -> None:
        super().__init__(context, width=width)
        self.register_buffer("table", torch.ones(3, device="cpu"))


class WrongDeclaration(Good):
    packed_weights = {"gate_up": ("gate", "up")}


class Unpicklable(Good):
    def __init__(self, context, *, width: int = 8) -> None:
        super().__init__(context, width=width)
        self.act = lambda x: x


@pytest.mark.parametrize(
    ("part", "promise"),
    [
        (MixesTokens, "acts on each token alone"),
        (InPlace, "changed in place"),
        (Random, "two calls differ"),
        (Upcasts, "bfloat16 in, bfloat16 out"),
        (CutsGradient, "no finite gradient reaches the input"),
        (IgnoresMeta, r"ignores torch\.device\('meta'\)"),
        (WrongDeclaration, "'gate_up', which is no linear"),
        (Unpicklable, "cannot be pickled"),
    ],
)
def test_a_broken_layer_is_caught(part, promise, monkeypatch):
    monkeypatch.setattr(registry, "_added", {("ffn", "good"): Good, ("ffn", "broken"): part})
    contracts.check_layer("ffn", "good", {"width": 8})
    with pytest.raises(AssertionError, match=promise):
        contracts.check_layer("ffn", "broken", {"width": 8})


class LooksAhead(Linear, AttentionLayer):
    def forward(self, x_BTD, attend, rope):
        return self.down(self.up(x_BTD.flip(1)))


class CachesInSecret(Linear, AttentionLayer):
    def forward(self, x_BTD, attend, rope):
        h = self.up(x_BTD)[:, :, None]
        return self.down(attend(h, h, h).flatten(2))


@pytest.mark.parametrize(("part", "promise"), [(LooksAhead, "earlier one"), (CachesInSecret, "kv_cache_shape is None")])
def test_a_broken_attention_is_caught(part, promise, monkeypatch):
    monkeypatch.setattr(registry, "_added", {("attention", "broken"): part})
    with pytest.raises(AssertionError, match=promise):
        contracts.check_layer("attention", "broken", {})


class CrossesDocuments(AttentionKernel):
    def attend(self, q_BTHd, k_BTKd, v_BTKd, segments, window=None):
        q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BTKd, v_BTKd))
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)


def test_a_kernel_that_crosses_documents_is_caught(monkeypatch):
    monkeypatch.setattr(registry, "_added", {("attention_kernel", "broken"): CrossesDocuments})
    with pytest.raises(AssertionError, match=r"differs from softmax for \(5, 7, 12\)"):
        contracts.check_attention_kernel("broken")


class ForgetsTheWindow(SDPAKernel):
    def attend(self, q_BTHd, k_BTKd, v_BTKd, segments, window=None):
        return super().attend(q_BTHd, k_BTKd, v_BTKd, segments)


def test_a_kernel_that_forgets_the_window_is_caught(monkeypatch):
    monkeypatch.setattr(registry, "_added", {("attention_kernel", "broken"): ForgetsTheWindow})
    with pytest.raises(AssertionError, match=r"differs from softmax for \(12, 12\), window 4"):
        contracts.check_attention_kernel("broken")


class Rows(Source):
    def rows(self, start: int = 0):
        return iter(ROWS[start:])


class IgnoresStart(Source):
    def rows(self, start: int = 0):
        return iter(ROWS)


class Shuffles(Source):
    calls = 0

    def rows(self, start: int = 0):
        self.calls += 1
        return iter([*ROWS[self.calls :], *ROWS[: self.calls]][start:])


class NotJson(Source):
    def rows(self, start: int = 0):
        return iter([{"a": (1, 2)}][start:])


class OneShot(Source):
    def __init__(self) -> None:
        self.position = 0

    def rows(self, start: int = 0):
        self.position = start
        while self.position < len(ROWS):
            self.position += 1
            yield ROWS[self.position - 1]


@pytest.mark.parametrize(
    ("source", "promise"),
    [
        (IgnoresStart, r"rows\(1\) is not rows\(\)"),
        (Shuffles, "a second pass gives other rows"),
        (NotJson, "JSON values only"),
        (OneShot, "two iterators share a position"),
    ],
)
def test_a_broken_source_is_caught(source, promise):
    contracts.check_source(Rows)
    with pytest.raises(AssertionError, match=promise):
        contracts.check_source(source)


@pytest.mark.parametrize("name", sorted(name for _, name in builtins("meter")))
def test_meter(name: str):
    check_meter(lambda: registry.build("meter", name), dtypes=("float32", "bfloat16"))


class Clock(Meter):
    """A stand-in for an engine that takes a millisecond per token; the ones below break one promise each."""

    def measure(self, spec, folder, workloads, *, dtype, samples):
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype {dtype!r}")
        return [Latency((w.prompt_tokens / 1e3,) * samples, (w.new_tokens / 1e3,) * samples) for w in workloads]


class OneSample(Clock):
    def measure(self, spec, folder, workloads, *, dtype, samples):
        return super().measure(spec, folder, workloads, dtype=dtype, samples=1)


class Backwards(Clock):
    def measure(self, spec, folder, workloads, **options):
        return super().measure(spec, folder, workloads[::-1], **options)


class Zero(Clock):
    def measure(self, spec, folder, workloads, *, dtype, samples):
        return [Latency((0.0,) * samples, (0.0,) * samples) for _ in workloads]


class Litters(Clock):
    def measure(self, spec, folder, workloads, **options):
        (folder / "model.safetensors").write_bytes(b"")
        return super().measure(spec, folder, workloads, **options)


class AnyDtype(Clock):
    def measure(self, spec, folder, workloads, *, dtype, samples):
        return super().measure(spec, folder, workloads, dtype="float32", samples=samples)


@pytest.mark.parametrize(
    ("meter", "promise"),
    [
        (OneSample, "1 samples instead of 2"),
        (Backwards, "are the workloads mixed up"),
        (Zero, "times must be positive"),
        (Litters, "changes the folder"),
        (AnyDtype, "an unknown dtype is a UserError"),
    ],
)
def test_a_broken_meter_is_caught(meter, promise):
    check_meter(Clock)
    with pytest.raises(AssertionError, match=promise):
        check_meter(meter)


class Boasts(Solver):
    """Takes the first choice everywhere and calls it optimal."""

    def solve_one(self, problem, time_limit_s):
        choice = tuple(problem.allowed(layer)[0].name for layer in range(len(problem.layers)))
        return SolverResult("optimal", (Solution(choice, 0.0, {}, bound=0.0, gap=0.0),))


class GivesUp(Solver):
    def solve_one(self, problem, time_limit_s):
        return SolverResult("infeasible")


@pytest.mark.parametrize(
    ("solver", "error", "promise"),
    [(Boasts, RuntimeError, "breaks a limit"), (GivesUp, AssertionError, "with solutions is called infeasible")],
)
def test_a_broken_solver_is_caught(solver, error, promise, monkeypatch):
    monkeypatch.setattr(registry, "_added", {("solver", "broken"): solver})
    with pytest.raises(error, match=promise):
        check_solver("broken")

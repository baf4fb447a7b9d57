"""Compiled blocks, with the attention kernel that CUDA runs mocked: few graphs, whole ones, and none left out."""

from __future__ import annotations

import itertools
import random

import mock_varlen
import pytest
import torch
from torch._dynamo.utils import counters

from lnlit.errors import UserError
from lnlit.models import compiling
from lnlit.models.block import Block
from lnlit.models.compiling import compile_blocks
from lnlit.models.decoder import Decoder
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.testing.tiny import attention, swiglu, tiny_decoder, tiny_spec

FULL = BlockSpec(attention(), swiglu())
EMPTY = BlockSpec(NOOP, NOOP)


@pytest.fixture(autouse=True)
def varlen(monkeypatch, request):
    """Graphs are made as they are for CUDA, but run without inductor; a graph too many is an error, not a log line."""
    backend = "aot_eager" if "checkpointing" in request.fixturenames else "eager"  # saves what inductor's graphs save
    mock_varlen.install(monkeypatch)
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(Block, "compile", lambda self: compiled(self, backend=backend))
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        yield
    torch._dynamo.reset()


def decoder_of(spec: ModelSpec, checkpointing: bool = False) -> Decoder:
    """In bfloat16, which the kernel wants."""
    weights = tiny_decoder(spec).state_dict()
    decoder = Decoder(spec, "varlen", checkpointing)
    decoder.load_state_dict(weights)
    return decoder.to(torch.bfloat16)


def packed(seed: int, tokens: int = 64) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(tokens, positions, lengths) of one row of documents."""
    draw, lengths = random.Random(seed), []
    while (left := tokens - sum(lengths)) > 0:
        lengths.append(min(left, draw.randint(1, 24)))
    row = torch.randint(0, 250, (1, tokens), generator=torch.Generator().manual_seed(seed))
    return row, torch.cat([torch.arange(length) for length in lengths])[None], lengths


def step(decoder: Decoder, batch) -> dict[str, torch.Tensor]:
    decoder.zero_grad()
    decoder(*batch).float().logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def check_whole(*decoders: Decoder) -> None:
    assert not counters["graph_break"], dict(counters["graph_break"])
    codes = [block.forward.__func__.__code__ for decoder in decoders for block in decoder.layers]
    distinct = {id(code): code for code in codes}.values()  # copies are equal
    entries = map(torch._dynamo.eval_frame._debug_get_cache_entry_list, distinct)
    assert sum(map(len, entries)) == graphs()  # every graph is of a block as a whole


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_an_empty_block_does_not_keep_the_others_from_being_compiled(checkpointing):
    spec = tiny_spec().replace(layers=(FULL, EMPTY, FULL, BlockSpec(NOOP, swiglu(32))))
    eager, compiled = decoder_of(spec, checkpointing), decoder_of(spec, checkpointing)
    compile_blocks(compiled, required=True)
    for seed in range(2):
        expected, found = step(eager, packed(seed)), step(compiled, packed(seed))
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            error = (found[name] - gradient).norm() / gradient.norm()
            assert error < 0.05, (name, error)
    check_whole(compiled)


KINDS = {
    "no FFN": BlockSpec(attention(), NOOP),
    "no attention": BlockSpec(NOOP, swiglu(32)),
    "linears": BlockSpec(PartSpec("single_linear"), PartSpec("single_linear")),
    "empty": EMPTY,
}


@pytest.mark.parametrize("checkpointing", [True], ids=["recomputed"])
@pytest.mark.parametrize("kinds", [*itertools.permutations(KINDS, 1), *itertools.permutations(KINDS, 2)], ids="+".join)
def test_kinds_of_blocks_beside_a_kernel_that_is_not_traced(kinds, checkpointing):
    """Dynamo finds no content before or behind the kernel in some of them, which is no matter of the others."""
    first, *rest = (KINDS[kind] for kind in kinds)
    spec = tiny_spec().replace(layers=(first, FULL, *rest))
    eager = tiny_decoder(spec)
    compiled = Decoder(spec, "sdpa", checkpointing)
    compiled.load_state_dict(eager.state_dict())
    compile_blocks(compiled, required=True)
    expected, found = step(eager, packed(0)), step(compiled, packed(0))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_packed_rows_of_any_documents_share_two_graphs_with_gradients_and_two_without():
    decoder = decoder_of(tiny_spec().replace(layers=(FULL,) * 3))
    compile_blocks(decoder, required=True)
    for seed in range(6):
        step(decoder, packed(seed))
    assert graphs() <= 2
    with torch.no_grad():
        for seed in range(6):
            decoder.eval()(*packed(seed))
    assert graphs() <= 4
    check_whole(decoder)


def test_rows_of_any_length_share_three():
    decoder = decoder_of(tiny_spec().replace(layers=(FULL,) * 3))
    compile_blocks(decoder, required=True)
    for seed in range(8):
        step(decoder, packed(seed, tokens=40 + 16 * (seed % 5)))
    assert graphs() <= 3
    check_whole(decoder)


def test_a_teacher_beside_a_student_of_many_distinct_blocks_is_compiled_as_well():
    """Equal blocks of both run one code object, whose limit dynamo otherwise reaches, to compute eagerly for good."""
    spec = tiny_spec().replace(layers=tuple(BlockSpec(attention(), swiglu(16 * n)) for n in range(1, 5)))
    student, teacher = decoder_of(spec), decoder_of(spec).eval()
    for decoder in (student, teacher):
        compile_blocks(decoder, required=True)
    for seed in range(4):
        batch = packed(seed, tokens=48 + 16 * (seed % 3))
        with torch.no_grad():
            teacher(*batch)
        step(student, batch)
        with torch.no_grad():
            student.eval()(*batch)
        student.train()
    assert 4 * 2 <= graphs() <= 4 * 2 * 4
    check_whole(student, teacher)


@pytest.mark.parametrize(
    ("device", "found", "compiles"),
    [("cpu", "g++", True), ("cpu", "gcc", False), ("cuda", "gcc", True), ("cuda", "g++", False)],
)
def test_a_gpu_needs_a_c_compiler_and_a_cpu_one_of_cpp(monkeypatch, device, found, compiles):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name if name == found else None)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    empty = decoder_of(tiny_spec().replace(layers=(EMPTY,)))
    assert compile_blocks(empty, False, device) == compiles
    if not compiles:
        with pytest.raises(UserError, match=r"no C(\+\+)? compiler found"):
            compile_blocks(empty, True, device)

"""The contracts of layers, attention kernels, sources and checkpoint formats, as functions for a test to call.

    from lnlit.testing import contracts

    def test_contract():
        contracts.check_layer("ffn", "geglu", {"intermediate_size": 48})

Each raises AssertionError naming the part and the broken promise.

Shape suffixes: B rows, T tokens, D hidden, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

import inspect
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lnlit import registry
from lnlit.interfaces import AttentionKernel, CheckpointFormat, LayerContext, Source
from lnlit.models.build import build_decoder, check_spec
from lnlit.models.device import torch_device
from lnlit.models.kernels import SDPAKernel, make_segments
from lnlit.models.packed_attention import PackedAttention
from lnlit.models.rope import inverse_frequencies, rope_tables
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec, RopeSpec
from lnlit.testing.part_contract import check_knowledge
from lnlit.testing.promises import copied, expect

_HIDDEN, _ROWS, _TOKENS, _DOCUMENTS = 32, 2, 12, (5, 7, 12)
_STYLES = {"colwise", "rowwise", "gathered", "per_head"}


def check_layer(kind: str, name: str, args: Mapping[str, Any]) -> None:
    """Checks a part of kind `attention` or `ffn`, built with `args` at hidden size 32."""
    label = f"{kind} {name!r} with {dict(args)}"
    spec = _one_block(PartSpec(name, args), kind)
    check_spec(spec)
    _check_arguments(kind, name, label)
    with torch.device("meta"):
        on_meta = _build(kind, name, args)
    for where, tensor in itertools.chain(on_meta.named_parameters(), on_meta.named_buffers()):
        expect(tensor.is_meta, label, f"{where} ignores torch.device('meta'): create it with the default device")
    layer = _initialised(_build(kind, name, args))
    run = _attention_runner(layer, args) if kind == "attention" else layer
    _check_declarations(layer, label)
    _check_output_linear(layer, run, label)
    _check_numbers(layer, run, label)
    _check_gradients(layer, run, label)
    if kind == "attention":
        _check_causal(layer, run, args, label)
        _check_cache_shape(layer, args, label)
    else:
        _check_tokenwise(run, label)
    _check_packed(spec, label)
    check_knowledge(spec, kind, PartSpec(name, args), lambda condition, promise: expect(condition, label, promise))


def check_attention_kernel(
    name: str,
    device: str | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    shapes: Sequence[tuple[int, int, int]] = ((4, 4, 16), (6, 2, 16), (5, 1, 32)),
) -> str | None:
    """Checks that an attention kernel equals masked softmax attention, gradients included.

    `shapes` are (query heads, key/value heads, head size). Returns the reason why the kernel cannot run here, so that a
    test can skip, or None if it ran and passed.
    """
    kernel_class = registry.get("attention_kernel", name)
    assert issubclass(kernel_class, AttentionKernel)
    reason = kernel_class.unavailable()
    expect(reason is None or (isinstance(reason, str) and bool(reason)), name, "unavailable() is a reason or None")
    if reason is not None:
        return reason
    device = device or torch_device()
    for dtype, shape in itertools.product(dtypes, shapes):
        _check_kernel(kernel_class(), f"attention_kernel {name!r} {dtype} {shape}", device, dtype, shape)
    return None


def check_source(make: Callable[[], Source], limit: int = 50) -> None:
    """Checks that a source built by `make` yields JSON rows, always in the same order, from any start."""
    source = make()
    label = type(source).__name__
    rows = list(itertools.islice(source.rows(), limit))
    expect(bool(rows), label, "a source for this test needs at least one row")
    for row in rows:
        expect(isinstance(row, dict), label, f"a row is a dict, got {type(row).__name__}")
        expect(json.loads(json.dumps(row)) == row, label, f"a row holds JSON values only, got {row!r:.200}")
    for what, again in {"a second pass": source, "a new source": make(), "a copy": copied(source, label)}.items():
        expect(list(itertools.islice(again.rows(), limit)) == rows, label, f"{what} gives other rows")
    for start in {0, 1, len(rows) // 2, len(rows) - 1}:
        part = list(itertools.islice(source.rows(start), limit - start))
        expect(part == rows[start:], label, f"rows({start}) is not rows() without its first {start}")
    one, two = source.rows(), source.rows()
    next(one)
    alone = list(itertools.islice(two, limit)) == rows and list(itertools.islice(one, limit - 1)) == rows[1:]
    expect(alone, label, "two iterators share a position")
    if len(rows) < limit:
        expect(list(source.rows(len(rows))) == [], label, "rows(start) past the end is not empty")


def check_checkpoint(name: str, path: Path) -> None:
    """Checks that a format reads every weight of a model's spec exactly once and in its shape."""
    label = f"checkpoint {name!r} on {path.name}"
    reader = registry.build("checkpoint", name)
    assert isinstance(reader, CheckpointFormat)
    expect(reader.recognises(path), label, "recognises() refuses the model")
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "notes.txt"
        other.write_text("not a model")
        expect(not reader.recognises(Path(folder)), label, "recognises() takes an empty folder")
        expect(not reader.recognises(other), label, "recognises() takes a text file")
    spec = reader.read_spec(path)
    check_spec(spec)
    expect(ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec, label, "the spec is not JSON")
    wanted, seen = _canonical_shapes(spec), {}
    for weight, tensor in reader.weights(path):
        expect(weight not in seen, label, f"{weight} comes twice")
        expect(tensor.device.type == "cpu" and tensor.is_floating_point(), label, f"{weight} is not a CPU float tensor")
        seen[weight] = tuple(tensor.shape)
    expect(
        seen.keys() == wanted.keys(), label, f"weights differ from the spec's: {sorted(seen.keys() ^ wanted.keys())}"
    )
    expect(seen == wanted, label, f"shapes differ: {[w for w in seen if seen[w] != wanted[w]]}")


# Layers


def _one_block(part: PartSpec, kind: str) -> ModelSpec:
    block = BlockSpec(part, NOOP) if kind == "attention" else BlockSpec(NOOP, part)
    return ModelSpec(vocab_size=16, hidden_size=_HIDDEN, layers=(block,), context_length=64)


def _build(kind: str, name: str, args: Mapping[str, Any]) -> Any:
    context = LayerContext(hidden_size=_HIDDEN, layer_index=0, rope=RopeSpec(), context_length=64)
    return registry.build(kind, name, context, **args)


def _initialised(layer: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return layer


def _inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(_ROWS, _TOKENS, _HIDDEN, generator=torch.Generator().manual_seed(2)).to(dtype)


def _attention_runner(layer: Any, args: Mapping[str, Any], attend: Callable[..., Tensor] | None = None) -> Any:
    """The layer as a function of x_BTD only, over a packed batch of three documents in two rows."""
    segments = make_segments(_DOCUMENTS, torch.device("cpu"))
    positions_BT = torch.cat([torch.arange(length) for length in _DOCUMENTS]).view(_ROWS, _TOKENS)
    size = type(layer).rope_dim(args)
    frequencies = {size: inverse_frequencies(RopeSpec(), size)} if size else {}

    def run(x_BTD: Tensor) -> Tensor:
        rope = {size: rope_tables(frequencies[size], positions_BT, x_BTD.dtype) for size in frequencies}
        return layer(x_BTD, attend or PackedAttention(SDPAKernel(), segments), rope)

    return run


def _check_arguments(kind: str, name: str, label: str) -> None:
    first, *rest = inspect.signature(registry.get(kind, name)).parameters.values()
    expect(first.name == "context", label, "the constructor is (context, **args)")
    for parameter in rest:
        named = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        expect(named, label, f"{parameter} must be a named argument: a spec's keys are checked against them")


def _check_declarations(layer: Any, label: str) -> None:
    """`packed_weights` and `tensor_parallel` name existing modules, which are linears or norms of each head; what is
    packed splits into its weights and their runs."""
    expect(isinstance(layer, nn.Module), label, "a part is an nn.Module")
    modules = dict(layer.named_modules())
    per_head = {name for name, style in layer.tensor_parallel.items() if style == "per_head"}
    for name in (*layer.packed_weights, *layer.tensor_parallel):
        kind = nn.Module if name in per_head else nn.Linear
        expect(isinstance(modules.get(name), kind), label, f"declares {name!r}, which is no linear of it")
    for name, parts in layer.packed_weights.items():
        runs = len(parts) * layer.packed_runs
        expect(modules[name].out_features % runs == 0, label, f"{name!r} does not split into {runs} runs of {parts}")
    styles = set(layer.tensor_parallel.values())
    expect(styles <= _STYLES, label, f"tensor_parallel styles are {_STYLES}, got {styles}")


def _check_output_linear(layer: Any, run: Callable[[Tensor], Tensor], label: str) -> None:
    """The result of `output_linear` is the part's output, and its weight is one that checkpoints know."""
    if (name := layer.output_linear) is None:
        return
    linear, results = dict(layer.named_modules()).get(name), []
    expect(isinstance(linear, nn.Linear), label, f"output_linear is {name!r}, which is no linear of it")
    expect(name not in layer.packed_weights, label, f"output_linear {name!r} stacks several weights")
    hook = linear.register_forward_hook(lambda _, inputs, result: results.append(result))  # type: ignore[union-attr]
    out = run(_inputs())
    hook.remove()
    same = len(results) == 1 and torch.equal(results[0], out)
    expect(same, label, f"the output is not the result of the output_linear {name!r}, called once")


def _check_numbers(layer: Any, run: Callable[[Tensor], Tensor], label: str) -> None:
    """Outputs have the right shape and dtype, are finite, deterministic and equal after pickling, and inputs are
    unchanged."""
    x_BTD = _inputs()
    before = x_BTD.clone()
    out = run(x_BTD)
    expect(out.shape == x_BTD.shape, label, f"[B, T, D] in, [B, T, D] out; got {tuple(out.shape)}")
    expect(bool(out.isfinite().all()), label, "the output is not finite")
    expect(torch.equal(x_BTD, before), label, "the input is changed in place")
    expect(torch.equal(run(x_BTD), out), label, "two calls differ")
    expect(bool((out == 0).all()) != layer.residual, label, "the output is zero exactly when residual is False")
    copy = copied(layer, label)
    expect(all(torch.equal(a, b) for a, b in zip(copy.parameters(), layer.parameters(), strict=True)), label, "pickle")
    layer.to(torch.bfloat16)
    half = run(_inputs(torch.bfloat16))
    layer.to(torch.float32).load_state_dict(copy.state_dict())
    expect(half.dtype == torch.bfloat16, label, f"bfloat16 in, bfloat16 out; got {half.dtype}")
    expect(torch.allclose(half.float(), out, atol=0.1, rtol=0.1), label, "bfloat16 is far from float32")


def _check_gradients(layer: Any, run: Callable[[Tensor], Tensor], label: str) -> None:
    if not layer.residual:
        expect(not list(layer.parameters()), label, "a part without residual has no parameters")
        return
    x_BTD = _inputs().requires_grad_()
    (run(x_BTD) * _inputs().flip(0)).sum().backward()
    for name, tensor in (("the input", x_BTD), *layer.named_parameters()):
        flows = tensor.grad is not None and bool(tensor.grad.isfinite().all()) and bool(tensor.grad.any())
        expect(flows, label, f"no finite gradient reaches {name}")
    layer.zero_grad(set_to_none=True)


def _changed(run: Callable[[Tensor], Tensor], row: int, token: int) -> Tensor:
    """True for the outputs [B, T] that change when the input at (row, token) does."""
    x_BTD = _inputs()
    moved_BTD = x_BTD.clone()
    moved_BTD[row, token] += 1.0
    with torch.no_grad():
        return ~torch.isclose(run(x_BTD), run(moved_BTD), atol=1e-6).all(-1)


def _check_tokenwise(run: Callable[[Tensor], Tensor], label: str) -> None:
    changed_BT = _changed(run, 0, 3)
    changed_BT[0, 3] = False
    expect(not changed_BT.any(), label, "an FFN acts on each token alone")


def _check_causal(layer: Any, run: Callable[[Tensor], Tensor], args: Mapping[str, Any], label: str) -> None:
    """A token affects only itself and later tokens of its document. Row 0 holds documents of 5 and 7 tokens."""
    for row, token, last in ((0, 2, 5), (0, 8, 12), (1, 6, 12)):
        changed_BT = _changed(run, row, token)
        changed_BT[row, token:last] = False
        expect(not changed_BT.any(), label, "a token reaches an earlier one or another document")


def _check_cache_shape(layer: Any, args: Mapping[str, Any], label: str) -> None:
    """`kv_cache_shape` matches what the layer passes to `attend`, which it calls at most once."""
    calls: list[tuple[int, int]] = []

    def attend(q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, window: int | None = None) -> Tensor:
        calls.append((k_BTKd.shape[2], k_BTKd.shape[3]))
        return torch.zeros_like(q_BTHd)

    _attention_runner(layer, args, attend)(_inputs())
    shape = type(layer).kv_cache_shape(args)
    expect(calls == ([] if shape is None else [tuple(shape)]), label, f"kv_cache_shape is {shape}, attend saw {calls}")


def _check_packed(spec: ModelSpec, label: str) -> None:
    """The part works inside a decoder and its packed weights fill their parameters."""
    decoder = build_decoder(spec)
    shapes = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    missing = decoder.packed_weights().keys() - shapes.keys()
    expect(not missing, label, f"packed_weights names {sorted(missing)}, which are no parameters")


# Kernels


def _check_kernel(
    kernel: AttentionKernel, label: str, device: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """Compares the kernel with masked softmax in float32, for several ways to split the same tokens into documents."""
    heads, kv_heads, size = shape
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(2, 12, n, size, generator=generator) for n in (heads, kv_heads, kv_heads)]
    upstream = torch.randn(2, 12, heads, size, generator=generator).to(device)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    cases = itertools.product((None, 4), ((12, 12), (5, 7, 12), (1, 11, 3, 1, 8)))
    for window, lengths in cases:
        ours = [t.detach().clone().to(device, dtype).requires_grad_() for t in tensors]
        exact = [t.detach().to(dtype).float().to(device).requires_grad_() for t in tensors]
        segments = make_segments(lengths, torch.device(device))
        out, wanted = (
            kernel.attend(ours[0], ours[1], ours[2], segments, window),
            _reference(exact[0], exact[1], exact[2], lengths, window),
        )
        expect(out.shape == wanted.shape and out.dtype == dtype, label, f"got {tuple(out.shape)} {out.dtype}")
        expect(
            torch.allclose(out.float(), wanted, atol=tolerance),
            label,
            f"differs from softmax for {lengths}, window {window}",
        )
        expect(torch.equal(kernel.attend(ours[0], ours[1], ours[2], segments, window), out), label, "two calls differ")
        (out.float() * upstream).sum().backward()
        (wanted * upstream).sum().backward()
        for one, two in zip(ours, exact, strict=True):
            assert one.grad is not None and two.grad is not None
            close = torch.allclose(one.grad.float(), two.grad, atol=10 * tolerance)
            expect(close, label, f"gradients differ for {lengths}, window {window}")


def _reference(q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, lengths: Sequence[int], window: int | None) -> Tensor:
    """Softmax attention with an explicit mask over all B * T tokens."""
    q, k, v = (x.flatten(0, 1).transpose(0, 1) for x in (q_BTHd, k_BTKd, v_BTKd))
    k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for x in (k, v))
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(q.device)
    index = torch.arange(len(document), device=q.device)
    behind = index[:, None] - index
    visible = (document[:, None] == document) & (behind >= 0) & (behind < (window or len(index)))
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~visible, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(q_BTHd.shape)


# Checkpoints


def _canonical_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The canonical name and shape of every weight of a spec."""
    decoder = build_decoder(spec)
    packed = decoder.packed_weights()
    shapes = {}
    for name, parameter in decoder.named_parameters():
        parts = packed[name].parts if name in packed else (name,)
        for part in parts:
            canonical = part if part.startswith("lm_head.") else f"model.{part}"
            shapes[canonical] = (parameter.shape[0] // len(parts), *parameter.shape[1:])
    return shapes

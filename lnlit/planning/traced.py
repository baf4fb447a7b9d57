"""The memory that code takes, found by running it on fake tensors: these have sizes but no content, so this costs
neither memory nor arithmetic, and holds for any part, loss or kernel without a formula of its own.

Fake tensors say that they are on a CPU, since code asks their device what autocast does there, and the meta device has
no autocast.

Shape suffixes: B rows, T tokens, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lnlit.interfaces.layer import Attend

#: Operators whose results a compiled block keeps for its backward pass. All others are computed again from these, since
#: inductor fuses them into the kernels that need them. A sum is kept in place of its two operands.
_KEPT = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "convolution", "embedding", "add", "cat", "index_select"}
#: Makes tensors fake while it is entered. All that meet have to be of one.
fake = cache(FakeTensorMode)


@dataclass(frozen=True)
class Use:
    """Bytes that code takes beside its inputs and parameters.

    Attributes:
        kept: What stays alive between the forward and the backward pass, the result included.
        forward: The peak of the forward pass.
        backward: The peak of the backward pass, with what was kept and with the parameters' gradients.
    """

    kept: int
    forward: int
    backward: int


class Trace(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, as long as it is entered and after."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, tuple[int, bool]] = {}  # storage -> (bytes, whether a compiled block would keep it)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # what is first seen as an input was there before
            if isinstance(tensor, Tensor):
                self._note(tensor, 0, False)
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        kept = name in _KEPT and "Scalar" not in func._overloadname
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor, tensor.untyped_storage().nbytes(), kept)
        return result

    def keep(self, *tensors: Tensor) -> None:
        """Marks tensors as kept for the backward pass even if a block is compiled."""
        for tensor in tensors:
            key = id(tensor.untyped_storage())
            if key in self._sizes:
                self._sizes[key] = self._sizes[key][0], True

    def kept_bytes(self, tensor: Tensor) -> tuple[int, int]:
        """(storage, its bytes if a compiled block would keep it). Tensors of before count nothing."""
        key = id(tensor.untyped_storage())
        size, kept = self._sizes.get(key, (0, False))
        return key, size if kept else 0

    def _note(self, tensor: Tensor, size: int, kept: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)  # the same object as long as any tensor has this storage
        if key in self._sizes:
            return
        self._sizes[key] = size, kept
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)[0]


def attention(trace: Trace) -> Attend:
    """Stands in for attention kernels, and takes the memory of a flash kernel."""
    return lambda q_BTHd, k_BTKd, v_BTKd, window=None: _Flash.apply(q_BTHd, k_BTKd, v_BTKd, trace)  # type: ignore[return-value]


class _Flash(torch.autograd.Function):
    """FlashAttention-2 (Dao 2023) keeps queries, keys, values, its result and one number per query and head."""

    @staticmethod
    def forward(ctx: Any, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, trace: Trace) -> Tensor:
        out_BTHd = torch.empty_like(q_BTHd)
        log_sums_BTH = q_BTHd.new_empty(q_BTHd.shape[:3], dtype=torch.float32)
        trace.keep(q_BTHd, k_BTKd, v_BTKd, out_BTHd, log_sums_BTH)
        ctx.save_for_backward(q_BTHd, k_BTKd, v_BTKd, out_BTHd, log_sums_BTH)
        return out_BTHd

    @staticmethod
    def backward(ctx: Any, grad_BTHd: Tensor) -> Any:  # type: ignore[override]
        q_BTHd, k_BTKd, v_BTKd, *_ = ctx.saved_tensors
        return torch.empty_like(q_BTHd), torch.empty_like(k_BTKd), torch.empty_like(v_BTKd), None


def traced(
    run: Callable[[Trace], Tensor],
    parameters: Iterator[nn.Parameter],
    compiled: bool = False,
    mixed: torch.dtype | None = None,
    frees_gradients: bool = False,
) -> Use:
    """The bytes that `run(trace)` takes, which returns what is propagated backwards.

    Args:
        run: Computes on fake tensors.
        parameters: The parameters that get gradients.
        compiled: Whether the code would be compiled, and thus keep less for its backward pass.
        mixed: The dtype of autocast, if it is on.
        frees_gradients: Whether each gradient is added to an earlier one and freed, as with gradient accumulation.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    trace = Trace()
    hooks = [each.register_post_accumulate_grad_hook(_drop_gradient) for each in trainable] if frees_gradients else []
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        key, size = trace.kept_bytes(tensor)
        sizes[key] = size
        return tensor

    try:
        with fake(), trace, saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", mixed, enabled=mixed is not None):
                result = run(trace)
            whole, forward = trace.now, trace.peak
            key, _ = trace.kept_bytes(result)
            kept = sum({**sizes, key: result.untyped_storage().nbytes()}.values()) if compiled else whole
            gradient, edge = torch.empty_like(result), get_gradient_edge(result) if result.requires_grad else None
            del result
            trace.peak = trace.now
            if edge is not None:
                torch.autograd.backward([edge], [gradient])  # type: ignore[arg-type]
        return Use(kept, forward - whole + kept, trace.peak - whole + kept)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trainable:
            parameter.grad = None


def quiet_peak(run: Callable[[Trace], Tensor]) -> int:
    """The peak of `run(trace)` without gradients, in bytes."""
    trace = Trace()
    with torch.no_grad(), fake(), trace:
        run(trace)
    return trace.peak


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None

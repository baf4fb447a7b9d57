"""The GPUs that runs are planned for, as their datasheets describe them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

import torch

from lnlit.errors import UserError, did_you_mean
from lnlit.models.device import has_cuda

_GB, _TFLOPS = 10**9, 10**12


@dataclass(frozen=True)
class Gpu:
    """One kind of device.

    Attributes:
        name: What `--gpu` calls it.
        torch_name: A pattern of what torch calls it.
        source: The datasheet of the figures below.
        memory_bytes: Its memory.
        bf16_flops: Dense BF16 FLOP/s of its tensor cores. Datasheets of some cards print the number with sparsity,
            which is twice as much.
        memory_bytes_per_s: The bandwidth of its memory.
        link_bytes_per_s: The bandwidth to another GPU of its node, in one direction.
    """

    name: str
    torch_name: str
    source: str
    memory_bytes: int
    bf16_flops: float | None = None
    memory_bytes_per_s: float | None = None
    link_bytes_per_s: float | None = None

    @property
    def overhead_bytes(self) -> int:
        """What is taken beside a run's tensors, an assumption: 2 GB for the CUDA context, NCCL's buffers and the
        workspaces of cuBLAS, and 4 % for blocks that the allocator cannot use again. Nothing on a CPU."""
        return 0 if self.name == CPU else int(2 * _GB + 0.04 * self.memory_bytes)


def _gpu(name, torch_name, source, gb, tflops, memory_gb_per_s, link_gb_per_s) -> Gpu:
    return Gpu(name, torch_name, source, gb * _GB, tflops * _TFLOPS, memory_gb_per_s * _GB, link_gb_per_s * _GB)


CPU = "cpu"
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40g", r"A100.*40GB", "NVIDIA A100 Tensor Core GPU datasheet, SXM", 40, 312, 1555, 300),
        _gpu("a100-80g", r"A100.*80GB", "NVIDIA A100 Tensor Core GPU datasheet, SXM", 80, 312, 2039, 300),
        _gpu("h100-nvl-94g", r"H100 NVL", "NVIDIA H100 Tensor Core GPU datasheet, NVL", 94, 835.5, 3900, 300),
        _gpu("h100-pcie-80g", r"H100 PCIe", "NVIDIA H100 PCIe GPU product brief", 80, 756.5, 2000, 64),
        _gpu("h100-80g", r"H100", "NVIDIA H100 Tensor Core GPU datasheet, SXM", 80, 989.5, 3350, 450),
        _gpu("h200-141g", r"H200", "NVIDIA H200 Tensor Core GPU datasheet, SXM", 141, 989.5, 4800, 450),
        _gpu("b200-180g", r"B200", "NVIDIA HGX B200 datasheet", 180, 2250, 7700, 900),
        _gpu("l40s-48g", r"L40S", "NVIDIA L40S datasheet", 48, 362, 864, 32),
    )
}
#: Bandwidth to a GPU of another node, an assumption: of the 50 GB/s that one 400 Gb/s adapter per GPU has, as in a DGX
#: H100, a collective over many nodes gets four fifths.
NETWORK_BYTES_PER_S = 40 * _GB


def named(name: str) -> Gpu:
    """The GPU called `name`; "cpu" is this machine without one. Raises `UserError` for a name that is not known."""
    if name == CPU:
        return _this_cpu()
    if name not in GPUS:
        allowed = [*GPUS, CPU]
        raise UserError(f"gpu: unknown name {name!r}.{did_you_mean(name, allowed)} Allowed: {', '.join(allowed)}.")
    return GPUS[name]


def of_torch(device_name: str) -> Gpu | None:
    """The GPU that torch calls `device_name`, such as "NVIDIA H100 80GB HBM3"; None if it is not in the table."""
    return next((gpu for gpu in GPUS.values() if re.search(gpu.torch_name, device_name)), None)


def here() -> Gpu:
    """The device of this machine, with the memory that it really has."""
    if not has_cuda():
        return _this_cpu()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    known = of_torch(properties.name)
    if known is None:
        return Gpu(properties.name, re.escape(properties.name), "this machine", properties.total_memory)
    return replace(known, memory_bytes=properties.total_memory)


def _this_cpu() -> Gpu:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return Gpu(CPU, CPU, "this machine", memory)

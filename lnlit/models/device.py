"""Where things are computed: the one place that asks torch what this machine has.

A CUDA build of torch, which is what PyPI serves, calls "cuda" its accelerator on a machine without a GPU as well,
unless it is asked whether one is there.
"""

from __future__ import annotations

import torch


def has_cuda() -> bool:
    """Whether there is a GPU that CUDA can use."""
    return torch.cuda.is_available()


def torch_device() -> str:
    """Where models run: "cuda" if there is a GPU, else "cpu". `CUDA_VISIBLE_DEVICES=` hides one."""
    return "cuda" if has_cuda() else "cpu"


def accelerator() -> torch.device:
    """The accelerator of whatever kind, as the trainer chooses it, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

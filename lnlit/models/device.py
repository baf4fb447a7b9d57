"""Selects the device to compute on. No other file asks torch which devices exist.

PyPI's CUDA build of torch names "cuda" as the accelerator even on a machine without a GPU, unless it is asked to check.
"""

from __future__ import annotations

import torch


def has_cuda() -> bool:
    """True if there is a GPU that CUDA can use."""
    return torch.cuda.is_available()


def torch_device() -> str:
    """The device for models: "cuda" if there is a GPU, else "cpu". `CUDA_VISIBLE_DEVICES=` hides the GPU."""
    return "cuda" if has_cuda() else "cpu"


def accelerator() -> torch.device:
    """The accelerator of any kind that Lightning's trainer would choose, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

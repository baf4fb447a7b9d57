"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in the input's dtype. Gains kept in fp32 are cast, and autocast, which would compute in
    fp32 on CUDA, is disabled."""

    def forward(self, x: Tensor) -> Tensor:
        gain = None if self.weight is None else self.weight.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.rms_norm(x, self.normalized_shape, gain, self.eps)

"""Root-mean-square normalisation."""

from __future__ import annotations

from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm with the gain cast to the input's dtype, so fp32 master weights keep torch's one-dtype path."""

    def forward(self, x: Tensor) -> Tensor:
        gain = None if self.weight is None else self.weight.to(x.dtype)
        return nn.functional.rms_norm(x, self.normalized_shape, gain, self.eps)

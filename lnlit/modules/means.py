"""Sums that become means once a whole optimizer step or validation is in."""

from __future__ import annotations

from torch import Tensor


class Sums:
    """Sums of several quantities over one count of tokens. They stay on their device: adding does not wait for it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.parts: dict[str, Tensor | float] = {}
        self.count: Tensor | int = 0

    def add(self, count: Tensor | int, **parts: Tensor) -> None:
        self.count = self.count + count
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.detach()

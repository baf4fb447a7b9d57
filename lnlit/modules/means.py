"""Sums that are turned into means at the end of an optimizer step or a validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


class Sums:
    """Sums of several quantities with one common count. They stay on their device, so adding does not synchronise."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.parts: dict[str, Tensor | float] = {}
        self.count: Tensor | int = 0

    def add(self, count: Tensor | int, **parts: Tensor) -> None:
        self.count = self.count + count
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.detach()


class Means:
    """Means of several quantities, each with its own count. They stay on their device until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, observed: Mapping[str, tuple[Tensor, Tensor | int]]) -> None:
        for name, (total, count) in observed.items():
            self._sums[name] = self._sums.get(name, 0.0) + total.detach()
            self._counts[name] = self._counts.get(name, 0.0) + count

    def take(self, reduce: Callable[..., list[float]]) -> dict[str, float]:
        """Returns the means over all ranks and resets them. `reduce` sums values over the ranks."""
        names = list(self._sums)
        totals = reduce(*self._sums.values(), *self._counts.values()) if names else []
        self._sums, self._counts = {}, {}
        pairs = zip(names, totals[: len(names)], totals[len(names) :], strict=True)
        return {name: total / max(count, 1.0) for name, total, count in pairs}

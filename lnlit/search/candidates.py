"""Which variants are tried in place of the parent's sub-blocks (Puzzle, Bercovich et al. 2024, section 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lnlit.errors import UserError
from lnlit.models.surgery import convertible
from lnlit.search.library import variant_name
from lnlit.specs import ModelSpec, PartSpec

Stub = Literal["single_linear", "noop"]


@dataclass(frozen=True)
class Candidates:
    """The search space of every layer; the paper's by default.

    Args:
        kv_heads: numbers of KV heads for grouped-query attention; None takes every divisor of the parent's number.
        widths: FFN widths as shares of the parent's.
        width_multiple: widths are rounded to multiples of this. 256 is what the DeciLM format can hold.
        attention_stubs: what else may replace attention.
        ffn_stubs: what else may replace the FFN.
    """

    kv_heads: list[int] | None = None
    widths: tuple[float, ...] = (0.87, 0.75, 0.5, 0.25, 0.2, 0.1)
    width_multiple: int = 256
    attention_stubs: tuple[Stub, ...] = ("single_linear", "noop")
    ffn_stubs: tuple[Stub, ...] = ("single_linear", "noop")

    def __post_init__(self) -> None:
        if self.width_multiple < 1:
            raise UserError(f"candidates.width_multiple: expected a positive number, got {self.width_multiple}")
        for share in self.widths:
            if not 0 < share < 1:
                raise UserError(
                    f"candidates.widths: each is a share of the parent's width, above 0, below 1; got {share}"
                )

    def check(self, spec: ModelSpec) -> list[str]:
        """What becomes of values that cannot be had as they are written, one line each, for a parent like `spec`.

        Raises `UserError` for KV heads that no layer of it can have.
        """
        heads = list(dict.fromkeys(block.attention.args.get("num_kv_heads", 1) for block in spec.layers))
        for count in self.kv_heads or ():
            if count < 1 or not any(own % count == 0 for own in heads):
                fits = sorted({n for own in heads for n in range(1, own) if own % n == 0}, reverse=True)
                raise UserError(
                    f"candidates.kv_heads: no layer's KV heads ({', '.join(map(str, heads))}) can be averaged to "
                    f"{count}. Allowed: {', '.join(map(str, fits)) or 'none, so leave kv_heads out'}."
                )
        widths = dict.fromkeys(block.ffn.args.get("intermediate_size") for block in spec.layers)
        return [line for full in widths if full is not None for line in self._rounding(full)]

    def _rounding(self, full: int) -> Iterator[str]:
        """Which shares of a width come out as the whole of it, as another share's width, or far from what they say."""
        shares: dict[int, list[float]] = {}
        for share in self.widths:
            shares.setdefault(self._width(share, full), []).append(share)
        of = f"of an FFN of {full}, in multiples of {self.width_multiple}"
        for width, these in shares.items():
            text = " and ".join(f"{share:g}" for share in these)
            if width >= full:
                yield f"candidates.widths: {text} {of}, is no narrower FFN and left out"
            elif len(these) > 1:
                yield f"candidates.widths: {text} {of}, are both {width}: one candidate"
            elif abs(width - these[0] * full) > 0.25 * these[0] * full:
                yield f"candidates.widths: {text} {of}, is {width}: {width / full:.2f} of it"

    def _width(self, share: float, full: int) -> int:
        return max(round(share * full / self.width_multiple), 1) * self.width_multiple

    def of(self, slot: Literal["attention", "ffn"], parent: PartSpec) -> dict[str, PartSpec]:
        """Name -> part of the candidates beside `parent` in one slot, largest first, without `parent` itself.

        Where surgery knows no way (from a plugin's part), the part can only be removed. Raises `UserError` for KV heads
        that the parent's cannot be averaged to.
        """
        smaller, stubs = {
            "attention": (self._fewer_heads, self.attention_stubs),
            "ffn": (self._narrower, self.ffn_stubs),
        }[slot]
        parts = [*smaller(parent), *map(PartSpec, stubs)]
        return {variant_name(part): part for part in parts if part != parent and convertible(parent, part)}

    def _fewer_heads(self, parent: PartSpec) -> Iterator[PartSpec]:
        heads = parent.args.get("num_kv_heads", 1)
        divisors = [count for count in range(heads - 1, 0, -1) if heads % count == 0]
        wanted = divisors if self.kv_heads is None else [count for count in self.kv_heads if count < heads]
        if unfit := set(wanted) - set(divisors):
            raise UserError(
                f"candidates.kv_heads: {heads} KV heads cannot be averaged to {min(unfit)}. "
                f"Allowed: {', '.join(map(str, divisors))}."
            )
        return (parent.replace(num_kv_heads=count) for count in wanted)

    def _narrower(self, parent: PartSpec) -> Iterator[PartSpec]:
        full = parent.args.get("intermediate_size", 1)
        widths = {self._width(share, full) for share in self.widths}
        return (parent.replace(intermediate_size=width) for width in sorted(widths, reverse=True) if width < full)

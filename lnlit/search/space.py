"""Which variants are tried in place of the parent's sub-blocks (Puzzle, Bercovich et al. 2024, section 2).

A part says itself which smaller variants of it there are; the search says how small, and what else may take its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lnlit import registry
from lnlit.builtins import STUBS
from lnlit.errors import UserError
from lnlit.models.build import check_part
from lnlit.models.parts import conversions, layer_class, short_name
from lnlit.search.choice import SLOTS, Half
from lnlit.specs import ModelSpec, PartSpec


@dataclass(frozen=True)
class Candidates:
    """The search space of every layer; the paper's by default.

    Args:
        kv_heads: Numbers of KV heads for grouped-query attention; None takes every divisor of the parent's number.
        widths: FFN widths as shares of the parent's.
        width_multiple: Widths are rounded to multiples of this. 256 is what the DeciLM format can hold.
        attention_stubs: What else may replace attention, by registry name, or as `{type: NAME, args: {...}}`.
        ffn_stubs: What else may replace the FFN, likewise.
    """

    kv_heads: list[int] | None = None
    widths: tuple[float, ...] = (0.87, 0.75, 0.5, 0.25, 0.2, 0.1)
    width_multiple: int = 256
    attention_stubs: tuple[str | dict[str, Any], ...] = STUBS
    ffn_stubs: tuple[str | dict[str, Any], ...] = STUBS

    def __post_init__(self) -> None:
        if self.width_multiple < 1:
            raise UserError(f"candidates.width_multiple: expected a positive number, got {self.width_multiple}")
        for share in self.widths:
            if not 0 < share < 1:
                raise UserError(
                    f"candidates.widths: each is a share of the parent's width, above 0, below 1; got {share}"
                )
        for slot in SLOTS:
            for part in self._stubs(slot):
                try:
                    registry.get(slot, part.type)
                except UserError as error:
                    raise UserError(f"candidates.{slot}_stubs: {error}") from error

    def check(self, spec: ModelSpec) -> list[str]:
        """One line for each setting that cannot be followed exactly for the parent `spec`, and what is done instead.

        Raises `UserError` for a number of KV heads that no layer can have, and for a stub with wrong arguments.
        """
        asked = _Asked()
        for _, slot, part in spec.parts():
            tuple(layer_class(slot, part).smaller(part.args, asked))
        heads = list(dict.fromkeys(asked.heads))
        for count in self.kv_heads or ():
            if count < 1 or not any(own % count == 0 for own in heads):
                fits = sorted({n for own in heads for n in range(1, own) if own % n == 0}, reverse=True)
                raise UserError(
                    f"candidates.kv_heads: no layer's KV heads ({', '.join(map(str, heads))}) can be averaged to "
                    f"{count}. Allowed: {', '.join(map(str, fits)) or 'none, so leave kv_heads out'}."
                )
        lines = [line for full in dict.fromkeys(asked.channels) for line in self._rounding(full)]
        return lines + [line for slot in SLOTS for line in self._unmade(spec, slot)]

    def _unmade(self, spec: ModelSpec, slot: Half) -> Iterator[str]:
        """Which stubs cannot be made of any layer's part."""
        parents = dict.fromkeys(part for _, kind, part in spec.parts() if kind == slot)
        for part in self._stubs(slot):
            check_part(f"candidates.{slot}_stubs", slot, part)
            if all(part != parent and not conversions(slot, parent, part) for parent in parents):
                of = " or ".join(map(str, parents))
                yield f"candidates.{slot}_stubs: {part.type} knows no way to be made of {of}, and is left out"

    def _rounding(self, full: int) -> Iterator[str]:
        """Yields a line for each of `widths` which rounding turns into the full width of `full` channels, into the same
        number of channels as another one, or into a number that is off by more than a quarter."""
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

    def of(self, slot: Half, parent: PartSpec) -> dict[str, PartSpec]:
        """Name -> part of the candidates beside `parent` in one slot, largest first, without `parent` itself.

        Where no training-free way to a part is known, it is left out. Raises `UserError` for KV heads that the parent's
        cannot be averaged to, and for two parts of one name.
        """
        smaller = layer_class(slot, parent).smaller(parent.args, self)
        parts = [*(PartSpec(parent.type, args) for args in smaller), *self._stubs(slot)]
        found = {short_name(slot, parent): parent}
        for part in [part for part in parts if part != parent and conversions(slot, parent, part)]:
            name = short_name(slot, part)
            if (other := found.setdefault(name, part)) != part:
                raise UserError(
                    f"candidates.{slot}_stubs: {part} and {other} are both called {name!r}. Leave one out, or let "
                    "`short_name` of their class tell them apart."
                )
        return {name: part for name, part in found.items() if part != parent}

    def narrower(self, channels: int) -> list[int]:
        """The widths to try in place of so many channels, largest first (`lnlit.interfaces.layer.SearchSpace`)."""
        widths = {self._width(share, channels) for share in self.widths}
        return [width for width in sorted(widths, reverse=True) if width < channels]

    def fewer_heads(self, heads: int) -> list[int]:
        """The numbers of KV heads to try in place of so many, as listed. Raises `UserError` for one that is no divisor
        of it (`lnlit.interfaces.layer.SearchSpace`).
        """
        divisors = [count for count in range(heads - 1, 0, -1) if heads % count == 0]
        wanted = divisors if self.kv_heads is None else [count for count in self.kv_heads if count < heads]
        if unfit := set(wanted) - set(divisors):
            raise UserError(
                f"candidates.kv_heads: {heads} KV heads cannot be averaged to {min(unfit)}. "
                f"Allowed: {', '.join(map(str, divisors))}."
            )
        return wanted

    def _stubs(self, slot: Half) -> list[PartSpec]:
        listed = {"attention": self.attention_stubs, "ffn": self.ffn_stubs}[slot]
        where = f"candidates.{slot}_stubs"
        return [PartSpec(stub) if isinstance(stub, str) else PartSpec.from_json(stub, where) for stub in listed]


@dataclass
class _Asked:
    """A search space without any sizes. It records the numbers of KV heads and channels that parts ask it to reduce."""

    heads: list[int] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)

    def narrower(self, channels: int) -> Sequence[int]:
        self.channels.append(channels)
        return ()

    def fewer_heads(self, heads: int) -> Sequence[int]:
        self.heads.append(heads)
        return ()

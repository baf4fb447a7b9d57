"""What a layer may take, and where. Choices are named, written and read here and nowhere else.

    BlockChoice("kv1", "i768")       kv1+i768                   what a whole layer takes
    At(3, "attention", "kv1")        layer_03/attention/kv1     one variant beside the parent's other half
    At(3, "block", "kv1+i768")       layer_03/block/kv1+i768    both halves together

Names of variants are whatever a part calls itself (`lnlit.models.parts.short_name`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product, starmap
from typing import Literal, NamedTuple

from lnlit.errors import UserError
from lnlit.interfaces.patterns import fitting
from lnlit.schema import Whole
from lnlit.specs import NOOP, BlockSpec, PartSpec

Half = Literal["attention", "ffn"]
Slot = Literal["attention", "ffn", "block"]
SLOTS: tuple[Half, ...] = ("attention", "ffn")
#: Slots as `library.json` and the tensors of layer files call them.
STORED: dict[Slot, str] = {"attention": "attention", "ffn": "ffn", "block": "pairs"}


class BlockChoice(NamedTuple):
    """The names of one layer's attention and FFN; patterns over them are written in the same way."""

    attention: str
    ffn: str

    def __str__(self) -> str:
        return f"{self.attention}+{self.ffn}"

    @classmethod
    def among(cls, name: str, attention: Iterable[str], ffn: Iterable[str]) -> BlockChoice | None:
        """The choice of these variants that is called `name`; None where there is none. Variants may have a + in their
        own names.
        """
        found = (cls(first, second) for first in attention for second in ffn)
        return next((choice for choice in found if str(choice) == name), None)

    @classmethod
    def guess(cls, name: str) -> BlockChoice | None:
        """The choice that `name` looks like, without knowing the variants; None where it has no two halves."""
        attention, plus, ffn = name.partition("+")
        return cls(attention, ffn) if plus else None


#: What all choices without attention are called.
NO_ATTENTION = str(BlockChoice(NOOP.type, "*"))


@dataclass(frozen=True, order=True)
class At:
    """A variant of one slot of one layer; of the slot "block", the name of a `BlockChoice`."""

    layer: int
    slot: Slot
    name: str

    def __str__(self) -> str:
        return f"layer_{self.layer:02d}/{self.slot}/{self.name}"

    @property
    def position(self) -> int:
        """How many of the parent's sub-blocks come before it."""
        return 2 * self.layer + (self.slot == "ffn")

    @property
    def width(self) -> int:
        """How many of the parent's sub-blocks it replaces."""
        return 2 if self.slot == "block" else 1


def chosen(candidates: Sequence[At], only: Iterable[str]) -> list[At]:
    """The `candidates` that match a pattern of `only`, in order. A pattern with a slash is matched against places too
    ("layer_03/*"), any other one against names only ("kv1", "noop+*").

    Raises `UserError` for a pattern that matches none of them.
    """
    names, places = {at.name for at in candidates}, {str(at) for at in candidates}
    wanted: set[str] = set()
    for pattern in only:
        found = fitting(pattern, names | places if "/" in pattern else names)
        if not found:
            known = ", ".join(dict.fromkeys(at.name for at in candidates)) or "none"
            place = f", or by place, as {candidates[0]}" if candidates else ""
            renamed = " The slot pairs is now called block." if "/pairs/" in pattern else ""
            raise UserError(f"only: {pattern!r} fits no candidate.{renamed} There are, by name: {known}{place}.")
        wanted |= found
    return [at for at in candidates if at.name in wanted or str(at) in wanted]


def alone(slot: Half, part: PartSpec) -> BlockSpec:
    """A block that has `part` in one slot and nothing in the other: what a variant of that slot is by itself."""
    return BlockSpec(NOOP, NOOP).replace(**{slot: part})


@dataclass(frozen=True)
class Variant:
    """One choice for one slot of one layer.

    Errors are normalised: squared distance of the block's output to the parent block's, over that output's square,
    the block being the variant beside the parent's other sub-block, fed with the parent's activations. The text is the
    library's, to which its candidates were fitted, so that initial errors flatter them a little. `sha256` is of the
    weights; None for the parent's own, for none, and in libraries from before it was kept.
    """

    part: PartSpec
    parameters: Whole
    parent: bool = False
    init_error: float | None = None
    trained_error: float | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Pair:
    """Both slots of one layer trained together (coupled distillation). Errors are those of the block they make."""

    parameters: Whole
    init_error: float | None = None
    trained_error: float | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class LayerVariants:
    """The choices of one layer by name, the parent's own first.

    Raises `UserError` if two choices would be written alike, as "a+b" with "c" and "a" with "b+c".
    """

    attention: Mapping[str, Variant]
    ffn: Mapping[str, Variant]
    pairs: Mapping[str, Pair] = field(default_factory=dict)

    def __post_init__(self) -> None:
        written: dict[str, BlockChoice] = {}
        for choice in starmap(BlockChoice, product(self.attention, self.ffn)):
            if (other := written.setdefault(str(choice), choice)) != choice:
                raise UserError(
                    f"the choices {tuple(other)} and {tuple(choice)} of a layer are both called {str(choice)!r}. Let "
                    "`short_name` of their classes tell them apart."
                )

    def of(self, slot: Slot) -> Mapping[str, Variant | Pair]:
        """What there is in a slot by name: of a whole block, the pairs that were trained together."""
        return getattr(self, STORED[slot])

    @property
    def parent(self) -> BlockChoice:
        """The parent's own choice."""
        halves = (self.attention, self.ffn)
        return BlockChoice(*(next(name for name, variant in half.items() if variant.parent) for half in halves))

    def choices(self, attention: Iterable[str] = ("*",), ffn: Iterable[str] = ("*",)) -> list[BlockChoice]:
        """Every pair of an attention and an FFN variant whose names match one of these patterns. The parent's own
        variants always match."""
        first, second = (
            {own, *(name for pattern in patterns for name in fitting(pattern, half))}
            for own, half, patterns in zip(self.parent, (self.attention, self.ffn), (attention, ffn), strict=True)
        )
        return [BlockChoice(a, f) for a in self.attention for f in self.ffn if a in first and f in second]

"""One palette for pages and pictures, light and dark, which is distinguishable for all kinds of colour vision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

#: Steps of the colour ramp.
_STEPS = 32
#: Characters that XML does not allow or that browsers do not show.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Theme:
    """The colours of a theme. `back` is the background of a page, `page` that of its cards and of pictures, and
    `on_deep` the text colour on the darker half of `ramp`, which runs from low to high values. `accents` are Okabe and
    Ito's colours, adapted to the background. No two colours of a theme are equal, so that each can become a CSS
    variable."""

    back: str
    page: str
    ink: str
    muted: str
    faint: str
    bad: str
    on_deep: str
    ramp: tuple[str, ...]
    accents: tuple[str, ...]

    def colormap(self) -> Colormap:
        """The ramp as a colormap. Missing values get the page's colour."""
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list("ramp", self.ramp, N=_STEPS).with_extremes(bad=self.page)

    def variables(self) -> dict[str, str]:
        """Maps the names of CSS variables to colours. All themes have the same names."""
        from matplotlib.colors import to_hex

        named = {name: colour for name, colour in vars(self).items() if isinstance(colour, str)}
        ramp = self.colormap()
        named |= {f"r{step}": to_hex(ramp(step)) for step in range(_STEPS)}
        return named | {f"c{number}": colour for number, colour in enumerate(self.accents)}


LIGHT = Theme(
    back="#f6f7f9",
    page="#ffffff",
    ink="#1f2733",
    muted="#5b6575",
    faint="#e3e7ee",
    bad="#b54708",
    on_deep="#fefefe",
    ramp=("#eef3f9", "#c3d6ea", "#86b0d6", "#4584bd", "#1f5f9e", "#12467a"),
    accents=("#0b5fa5", "#d55e00", "#009e73", "#b8860b", "#b0569a", "#4f6d7a"),
)
DARK = Theme(
    back="#0c0f14",
    page="#12161d",
    ink="#e6eaf0",
    muted="#98a2b3",
    faint="#2b323d",
    bad="#ff8a45",
    on_deep="#0b1119",
    ramp=("#1c2532", "#243f5e", "#2d6193", "#4489c4", "#74abda", "#a9d0f2"),
    accents=("#6cb4ee", "#ff9655", "#3fd0a4", "#e8bd4a", "#e59bcf", "#9fb4bf"),
)


@contextmanager
def styled(theme: Theme, salt: str) -> Iterator[None]:
    """Sets matplotlib's style while a picture is drawn and written, independently of the user's settings. Equal data
    give equal bytes. Pictures of one page need different `salt`s."""
    from matplotlib import style

    settings = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), theme.page),
        **dict.fromkeys(("text.color", "axes.titlecolor", "legend.labelcolor"), theme.ink),
        **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), theme.muted),
        **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), theme.faint),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        **{"axes.titlesize": 11, "axes.titlelocation": "left", "axes.titlepad": 10, "axes.titleweight": "bold"},
        **{"axes.axisbelow": True, "font.size": 9, "grid.linewidth": 0.8, "lines.linewidth": 1.8},
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
        "text.parse_math": False,  # names are the user's
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
    }
    with style.context(settings, after_reset=True):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches, created without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def visible(text: str) -> str:
    """The text with control characters replaced by visible ones, because XML does not allow them."""
    return _CONTROL.sub(_symbol, text)


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def plain(value: float, _: Any = None) -> str:
    """Formats a number without powers of ten or needless digits: 0.003, 25.31, 1,500, 134.5M, 70.55B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float, _: Any = None) -> str:
    """Formats a fraction as a percentage: 45%, 1.5%, 0%."""
    return f"{value:.0%}" if abs(value) >= 0.1 or value == 0 else f"{value:.1%}"

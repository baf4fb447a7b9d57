"""Pictures drawn by matplotlib: as PNG in one theme, or as SVG that follows the theme of its page."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from lnlit.report.theme import LIGHT, Theme, styled, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Draws one picture in a theme.
Draw = Callable[[Theme], "Figure"]
_SVG, _LINK, _TIPS = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href", "tips:"
_COLOUR = re.compile("#[0-9a-f]{6}")


@dataclass(frozen=True)
class Picture:
    """A picture: file name without suffix, heading, description in words, and the function that draws it."""

    name: str
    title: str
    caption: str
    draw: Draw

    def svg(self) -> str:
        """The picture as an SVG element for a page. Colours are the page's CSS variables, the font is the page's, and
        texts given to `tips` are shown on hover. On a narrow page the picture scrolls when it would become unreadable.
        """
        unsaid = {"Creator": None, "Date": None, "Format": None, "Type": None}
        root = ElementTree.fromstring(visible(_written(self.draw, io.StringIO(), LIGHT, self.name, "svg", unsaid)))
        variable = {colour: f"var(--{name})" for name, colour in LIGHT.variables().items()}
        for node in root.iter():
            if node.tag == f"{_SVG}g":
                name = node.attrib.pop("id", "")
                if name.startswith(_TIPS):
                    _add_tips(node, json.loads(name.removeprefix(_TIPS)))
            if _LINK in node.attrib:
                node.set("href", node.attrib.pop(_LINK))
            if "style" in node.attrib:
                node.set("style", _COLOUR.sub(lambda found: variable.get(found[0], found[0]), node.attrib["style"]))
        width = float(root.attrib.pop("width").removesuffix("pt"))
        root.attrib.pop("height")
        root.attrib |= {"role": "img", "aria-label": visible(self.caption), "style": f"min-width: {width * 0.85:.0f}px"}
        for child in [node for node in root if node.tag == f"{_SVG}defs" and node.find(f"{_SVG}style") is not None]:
            root.remove(child)  # would be a rule of the whole page
        ElementTree.register_namespace("", _SVG.strip("{}"))
        return ElementTree.tostring(root, encoding="unicode")


def png(draw: Draw, theme: Theme = LIGHT) -> bytes:
    """The picture as PNG. Equal data give equal bytes."""
    return _written(draw, io.BytesIO(), theme, "", "png", {"Software": None})


def _written(draw: Draw, buffer: Any, theme: Theme, salt: str, kind: str, metadata: Mapping[str, None]) -> Any:
    with styled(theme, salt), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a user's own words
        draw(theme).savefig(buffer, format=kind, dpi=150 if kind == "png" else "figure", metadata=metadata)
    return buffer.getvalue()


def tips(texts: Iterable[str]) -> str:
    """The `gid` of an artist whose marks show these texts on hover in an SVG, in the order of the marks."""
    return _TIPS + json.dumps([visible(text) for text in texts])


def _add_tips(group: ElementTree.Element, texts: list[str]) -> None:
    defined = {id(node) for holder in group.iter(f"{_SVG}defs") for node in holder}
    marks = [node for node in group.iter() if node.tag in (f"{_SVG}use", f"{_SVG}path") and id(node) not in defined]
    for mark, text in zip(marks, texts, strict=True):
        mark.set("class", "tip")
        ElementTree.SubElement(mark, f"{_SVG}title").text = text

"""HTML pages that a browser opens from a file: no scripts, no network, light and dark mode, printable. They are also
valid XML, whatever text they contain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lnlit.report.side_by_side import shortened
from lnlit.report.theme import DARK, LIGHT, visible

if TYPE_CHECKING:
    from jinja2 import Environment


class Table(NamedTuple):
    """A table. Its first `words` columns are text and the others numbers. Each row is (CSS class, cells)."""

    head: Sequence[str]
    rows: Iterable[tuple[str, Sequence[object]]]
    words: int = 1


def render(template: str, **values: Any) -> str:
    """Renders a page from a template. All values are escaped, except the SVG of a picture."""
    return _environment().get_template(template).render(light=LIGHT.variables(), dark=DARK.variables(), **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(str(value))

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        autoescape=True, finalize=shown, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["shortened"] = shortened
    return environment

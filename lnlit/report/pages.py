"""Pages that a browser opens from a file: no scripts, no network, light and dark, fit to print. Valid XML too, whatever
text is put into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lnlit.report.theme import DARK, LIGHT, visible

if TYPE_CHECKING:
    from jinja2 import Environment


class Table(NamedTuple):
    """Its first `words` columns are text and the others numbers; a row is its class and its cells."""

    head: Sequence[str]
    rows: Iterable[tuple[str, Sequence[object]]]
    words: int = 1


def render(template: str, **values: Any) -> str:
    """A page made of one of the templates; every value is text, unless it is a picture's `svg`."""
    return _environment().get_template(template).render(light=LIGHT.variables(), dark=DARK.variables(), **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(str(value))

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(
        autoescape=True, finalize=shown, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

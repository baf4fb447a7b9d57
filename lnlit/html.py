"""Pages that a browser opens from a file: no scripts, no network, light and dark, fit to print. Valid XML too, whatever
text is put into them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1f2733; --muted: #5b6575; --line: #e3e7ee;
  --accent: #0b5fa5; --bad: #b54708; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #0c0f14; --card: #12161d; --ink: #e6eaf0;
  --muted: #98a2b3; --line: #2b323d; --accent: #6cb4ee; --bad: #ff9655; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 0 0 .7rem; } h3 { font-size: .95rem; margin: 0 0 .4rem; }
p { margin: 0 0 .6rem; }
.lead, .note, figcaption { color: var(--muted); } .note { font-size: .9rem; }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; }
section { padding: 1.3rem 1.5rem; margin-top: 1.25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .8rem;
  margin-top: 1.25rem; }
.tile { padding: .9rem 1.1rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 650; letter-spacing: -.01em; }
.tile span { color: var(--muted); font-size: .85rem; }
ul { margin: 0; padding-left: 1.1rem; } li { margin: .25rem 0; }
figure { margin: 0; } figcaption { font-size: .9rem; margin-top: .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 550; } .text { text-align: left; }
tr.changed td { font-weight: 550; } tr.bad td { color: var(--bad); }
tbody tr:last-child td { border-bottom: 0; }
summary { cursor: pointer; font-weight: 650; font-size: 1.1rem; } details[open] summary { margin-bottom: .8rem; }
@media print { body { background: none; padding: 0; } section, .tile { border-color: #ccc; } }
"""
#: Keeps a browser from loading or running anything at all.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
#: What XML does not allow, and what a browser would not show.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def document(tab: str, title: str, lead: str, body: Iterable[str], style: str = "") -> str:
    """The whole page; `tab` is its title in the browser, `style` what its own pieces need beside the common rules."""
    return (
        '<!DOCTYPE html>\n<html lang="en" xmlns="http://www.w3.org/1999/xhtml">\n<head>\n<meta charset="utf-8" />\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        f"<title>{safe(tab)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<header>\n<h1>{safe(title)}</h1>"
        f'\n<p class="lead">{safe(lead)}</p>\n</header>\n{chr(10).join(body)}\n</body>\n</html>\n'
    )


def safe(text: str) -> str:
    """Any text as text of the page: markup is shown, and so are control characters."""
    return escape(_CONTROL.sub(_visible, text))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def section(title: str, *parts: str) -> str:
    """A titled card; empty without anything in it."""
    inside = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{safe(title)}</h2>\n{inside}\n</section>" if inside else ""


def folded(title: str, inside: str) -> str:
    """A card that opens when its title is clicked."""
    return f"<section>\n<details>\n<summary>{safe(title)}</summary>\n{inside}\n</details>\n</section>"


def note(text: str) -> str:
    return f'<p class="note">{safe(text)}</p>'


def listed(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{safe(sentence)}</li>' for sentence in sentences)}</ul>"


def tiles(numbers: Iterable[tuple[str, str]]) -> str:
    """Big numbers, each with what it is."""
    cells = "".join(f'<div class="tile"><b>{safe(big)}</b><span>{safe(small)}</span></div>' for big, small in numbers)
    return f'<div class="tiles">{cells}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], marks: Sequence[str] = (), text: int = 1) -> str:
    """A table whose first `text` columns are words and whose other columns are numbers; `marks` are classes of rows."""

    def line(tag: str, cells: Sequence[str], mark: str = "") -> str:
        kind = [' class="text"' if at < text else "" for at in range(len(cells))]
        inside = "".join(f"<{tag}{k}>{safe(cell)}</{tag}>" for k, cell in zip(kind, cells, strict=True))
        return f'<tr class="{mark}">{inside}</tr>' if mark else f"<tr>{inside}</tr>"

    shown = list(rows)
    body = "".join(line("td", row, mark) for row, mark in zip(shown, marks or [""] * len(shown), strict=True))
    header = f"<thead>{line('th', head)}</thead>" if any(head) else ""
    return f'<div class="wide"><table>{header}<tbody>{body}</tbody></table></div>'

"""What tests of documents read: the pages that are written, and the fences in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
#: A fence, and the comment before it, which says to which file a part of a configuration belongs.
_FENCE = re.compile(
    r"(?:^<!-- in (?P<into>[^:]+): (?P<at>\S+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Fence:
    """A block of code of a page. `kind` is its language; `into` and `at` say where a part of a configuration goes."""

    page: Path
    line: int
    kind: str
    text: str
    into: str | None
    at: str | None

    @property
    def name(self) -> str | None:
        """The file that a fence is, if its first line says so: `# mine.yaml`."""
        found = re.match(r"# ([\w/]+\.(?:py|yaml))\n", self.text)
        return found[1] if found else None

    @property
    def is_a_file_of_ours(self) -> bool:
        """Whether the site shows a file of the repository in its place."""
        return self.text.startswith("--8<--")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fences(*kinds: str) -> list[Fence]:
    """All fences of these languages, page by page."""
    return [fence for page in PAGES for fence in _of(page) if fence.kind in kinds]


def _of(page: Path) -> Iterator[Fence]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start("text"))
        yield Fence(page, line, found["kind"], found["text"], found["into"], found["at"])


def said(page: Path) -> str:
    """A page without its fences."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))

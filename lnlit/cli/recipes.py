"""`lnlit recipes`: lists the configurations that come with lnlit, prints one, or copies some to be changed.

A recipe is named by its path without `.yaml`: `mini/6_grpo`. The name of a folder, `mini`, stands for everything in it.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import yaml

from lnlit.cli.arguments import CommandParser
from lnlit.cli.main import told
from lnlit.cli.written import texts
from lnlit.errors import UserError, did_you_mean
from lnlit.files import check_output, expanded, write_file

#: A link to the folder `yaml` in a checkout, and the files themselves in a wheel.
HOME = Path(os.path.normpath(Path(__file__).parent.parent / "recipes"))


def main(argv: list[str]) -> int:
    """List the recipes, print one, or copy some."""
    parser = CommandParser(prog="lnlit recipes", description="The configurations that come with lnlit.")
    commands = parser.add_subparsers(dest="command", metavar="show | copy")
    show = commands.add_parser("show", help="print a recipe")
    show.add_argument("name", help="as `lnlit recipes` lists it")
    copy = commands.add_parser("copy", help="write a recipe, or a folder of them, and the recipes that it names")
    copy.add_argument("name", help="as `lnlit recipes` lists it, or a folder: mini")
    copy.add_argument("folder", type=Path, metavar="DIR", help="where to: NAME becomes DIR/NAME.yaml")
    options = parser.parse_args(argv)
    if options.command == "show":
        print(text_of(options.name), end="")
    elif options.command == "copy":
        written = copy_recipes(options.name, options.folder)
        print("\n".join(map(str, written)) or "all of it is there already")
    else:
        found = listed()
        width = max(map(len, found))
        for name, what in found.items():
            print(f"{name:<{width}}  {what}")
        print(
            "\n`lnlit recipes show NAME` prints one; `lnlit recipes copy NAME DIR` writes it, or a folder such as mini."
        )
    return 0


@told
def listed() -> dict[str, str]:
    """The configurations that come with lnlit: name -> what it does, in one sentence."""
    return {_name(file): _what(file) for file in _all()}


@told
def text_of(name: str) -> str:
    """The YAML of a recipe."""
    return _one(name).read_text(encoding="utf-8")


def pipelines() -> set[str]:
    """Names of folders of recipes that `lnlit run` takes."""
    return {file.parent.relative_to(HOME).as_posix() for file in HOME.rglob("[0-9]*_*.yaml")}


@told
def copy_recipes(name: str, folder: str | Path) -> list[Path]:
    """Writes a recipe, or all recipes of a folder, below `folder`, with every recipe that they name by a relative path.

    Folders are kept, so that the paths stay valid. An existing file with the same content is skipped; one with other
    content is an error before anything is written. Returns the files written.
    """
    folder = expanded(folder)
    wanted: dict[Path, None] = {}  # in order, each once
    ahead = [_one(name)] if _is_file(name) else [file for file in _all() if _name(file).startswith(f"{_plain(name)}/")]
    if not ahead:
        raise _unknown(name)
    while ahead:
        file = ahead.pop(0)
        if file not in wanted:
            wanted[file] = None
            ahead += _named(file)
    written: dict[Path, bytes] = {}
    for file in wanted:
        out, content = check_output(folder / file.relative_to(HOME)), file.read_bytes()
        if not out.exists() and not out.is_symlink():
            written[out] = content
        elif out.read_bytes() != content:
            raise UserError(f"{out}: is there already with other content. Nothing was written; choose another folder.")
    for out, content in written.items():
        write_file(out, content)
    return list(written)


def _all() -> list[Path]:
    found = sorted(HOME.rglob("*.yaml"), key=lambda file: (file.parent, file.stem))
    if not found:
        raise UserError(
            f"{HOME}: holds no recipes. Install lnlit again; in a checkout this is a link to its folder yaml."
        )
    return found


def _name(file: Path) -> str:
    return file.relative_to(HOME).with_suffix("").as_posix()


def _plain(name: str) -> str:
    """The name of a recipe that is given as a path in the checkout or in the file system."""
    return name.strip("/").removeprefix("yaml/").removesuffix(".yaml")


def _is_file(name: str) -> bool:
    return _plain(name) in map(_name, _all())


def _one(name: str) -> Path:
    if not _is_file(name):
        raise _unknown(name)
    return HOME / f"{_plain(name)}.yaml"


def _unknown(name: str) -> UserError:
    names = [_name(file) for file in _all()]
    inside = [found for found in names if found.startswith(f"{_plain(name)}/")]
    if inside:
        return UserError(f"there is no recipe {name!r}. It is a folder of {', '.join(inside)}.")
    folders = {folder.as_posix() for found in names for folder in Path(found).parents}
    return UserError(
        f"there is no recipe {name!r}.{did_you_mean(_plain(name), [*names, *folders])} `lnlit recipes` lists them."
    )


def comment_of(file: Path) -> str:
    """The comment at the top of a file."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def _what(file: Path) -> str:
    """The first sentence of the comment at the top of a file."""
    return textwrap.shorten(
        re.split(r"(?<=[.?!])\s", comment_of(file), maxsplit=1)[0], 110, placeholder=" ...", break_on_hyphens=False
    )


def _named(file: Path) -> Iterator[Path]:
    """The recipes that a recipe names by a path relative to itself."""
    for _, text in texts(yaml.safe_load(file.read_text(encoding="utf-8"))):
        if text.endswith(".yaml"):
            named = Path(os.path.normpath(file.parent / text))
            if named.is_relative_to(HOME) and named.is_file():
                yield named

"""`lnlit plugins`: lists every part by kind and name, with its distribution and state. The plain listing imports
none."""

from __future__ import annotations

import importlib.util
import inspect
from collections import Counter
from pathlib import Path

from lnlit import registry
from lnlit.cli.arguments import CommandParser
from lnlit.cli.new_plugin import write_plugin
from lnlit.errors import UserError, did_you_mean
from lnlit.registry import Entry


def main(argv: list[str]) -> int:
    """List the parts, find one, or create one. Returns 1 if `--check` found a part that cannot be used, else 0."""
    parser = CommandParser(prog="lnlit plugins", description="Every part by kind and name.")
    parser.add_argument("--check", action="store_true", help="import every part and show what is broken")
    commands = parser.add_subparsers(dest="command", metavar="find | new")
    find = commands.add_parser("find", help="print file:line and the first docstring line of one part")
    find.add_argument("kind", help=", ".join(registry.kinds()))
    find.add_argument("name", help="a name of that kind, or distribution:name")
    new = commands.add_parser("new", help="write a package with a part that works, its entry point and its test")
    new.add_argument("kind", help=", ".join(registry.kinds()))
    new.add_argument("name", help="what configurations and specs will call it")
    new.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="where to (default: ./lnlit-NAME)")
    options = parser.parse_args(argv)
    if options.command == "find":
        print(_location(options.kind, options.name))
        return 0
    if options.command == "new":
        print(write_plugin(options.kind, options.name, options.folder))
        return 0
    return _list(options.check)


def _list(check: bool) -> int:
    entries = [entry for kind in registry.kinds() for entry in registry.entries(kind)]
    offers = Counter((entry.kind, entry.name) for entry in entries)
    states = [_state(entry, offers[entry.kind, entry.name], check) for entry in entries]
    entries += (strays := registry.strays())
    kinds = registry.kinds()
    states += [f"not looked at: {stray.kind!r} is no kind.{did_you_mean(stray.kind, kinds)}" for stray in strays]
    rows = [(e.kind, e.name, e.distribution, e.version, s) for e, s in zip(entries, states, strict=True)]
    _print_table([("KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE"), *rows])
    broken = sum(state.startswith("broken") for state in states)
    if broken:
        print(f"\n{broken} broken; each fails only when a configuration or a model asks for it")
    return 1 if check and broken else 0


def _state(entry: Entry, offers: int, check: bool) -> str:
    if not check:
        found = "available" if _has_module(entry) else f"broken: there is no module {_module(entry)}"
    else:
        try:
            reason = getattr(entry.load(), "unavailable", lambda: None)()
            found = f"not on this machine: {reason}" if reason else "ok"
        except UserError as error:
            found = f"broken: {error}"
    return f"clash, write {entry.distribution}:{entry.name}; {found}" if offers > 1 else found


def _has_module(entry: Entry) -> bool:
    """True if the top-level package exists. Looking deeper would import it."""
    try:
        return importlib.util.find_spec(_module(entry).partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _module(entry: Entry) -> str:
    return entry.target.partition(":")[0]


def _location(kind: str, name: str) -> str:
    part = registry.get(kind, name)
    file, line = inspect.getsourcefile(part), inspect.getsourcelines(part)[1]
    doc = inspect.getdoc(part) or "(no docstring)"
    return f"{file}:{line}\n{doc.partition(chr(10))[0]}"


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

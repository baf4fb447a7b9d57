"""Maps names to parts: the built-in ones and those of installed plugins (entry points in group `lnlit.<kind>`).

Installing a plugin makes a name available and never changes a run. A part is imported when it is asked for. Two
distributions may offer the same name: that is an error only if a user writes the bare name, and `distribution:name`
picks one. A name in a model's spec or in a default means lnlit's own part if there is one. `LNLIT_PLUGINS=off` hides
all plugins.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lnlit import __version__
from lnlit.builtins import BUILTINS, INTERFACES, OF_OUR_PLUGINS
from lnlit.errors import UserError, did_you_mean

_added: dict[tuple[str, str], type] = {}


@dataclass(frozen=True)
class Entry:
    """One available part: its name, its distribution, and where to import it from. Listing entries imports nothing."""

    kind: str
    name: str
    target: str  # "module:attribute"
    distribution: str
    version: str

    def load(self) -> type:
        """Import the part. Raises `UserError` when the import fails or the class does not fit its kind's interface."""
        try:
            part = _resolve(self.target)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.kind} {self.name!r} of {self.distribution} {self.version} cannot be imported from "
                f"{self.target}: {type(error).__name__}: {error}. Reinstall or uninstall {self.distribution}."
            ) from error
        return _checked(self.kind, self.name, part)


def kinds() -> list[str]:
    return list(BUILTINS)


def entries(kind: str) -> list[Entry]:
    """All entries of `kind`, built-in ones first. Imports none of them."""
    _check_kind(kind)
    builtin = [Entry(kind, name, target, "lnlit", __version__) for name, target in BUILTINS[kind].items()]
    return builtin + ([] if _without_plugins() else _plugins(kind))


def _without_plugins() -> bool:
    return os.environ.get("LNLIT_PLUGINS", "on").lower() == "off"


def strays() -> list[Entry]:
    """Entry points of plugins in groups `lnlit.<something>` that are not a known kind, and are therefore never used."""
    if _without_plugins():
        return []
    groups = sorted(group for group in entry_points().groups if group.startswith("lnlit."))
    kinds = [group.removeprefix("lnlit.") for group in groups]
    return [entry for kind in kinds if kind not in BUILTINS for entry in _plugins(kind)]


def _strays() -> str:
    return "".join(
        f" {entry.distribution} offers {entry.name!r} in the group 'lnlit.{entry.kind}', which is no kind."
        f"{did_you_mean(f'lnlit.{entry.kind}', [f'lnlit.{kind}' for kind in BUILTINS])}"
        for entry in strays()
    )


def names(kind: str) -> list[str]:
    """Every name that `get` accepts for `kind`, sorted."""
    added = {name for of_kind, name in _added if of_kind == kind}
    return sorted({entry.name for entry in entries(kind)} | added)


def spellings(kind: str) -> list[str]:
    """The shortest unambiguous name of every part of `kind`, built-in ones first."""
    offered = entries(kind)
    count = Counter(entry.name for entry in offered)
    spelled = [e.name if count[e.name] == 1 else f"{e.distribution}:{e.name}" for e in offered]
    return spelled + [name for of_kind, name in _added if of_kind == kind]


def find(kind: str, name: str) -> Entry:
    """The entry for a name or `distribution:name`. Raises `UserError` if it is unknown or ambiguous."""
    offers = _offers(kind, name)
    if len(offers) > 1:
        owners = " and ".join(f"{e.distribution} ({e.target})" for e in offers)
        choices = " or ".join(repr(f"{entry.distribution}:{entry.name}") for entry in offers)
        raise UserError(f"{kind} {name!r} is offered by {owners}. Write {choices} to choose one.")
    return offers[0]


def get(kind: str, name: str) -> type:
    """The class for a name in a model's spec or in a default. A built-in part is preferred to a plugin's of the same
    name."""
    if (kind, name) in _added:
        return _added[kind, name]
    offers = _offers(kind, name)
    return (offers[0] if offers[0].distribution == "lnlit" else find(kind, name)).load()


def named(kind: str, name: str) -> type:
    """The class for a name that a user wrote. Raises `UserError` if several parts have it."""
    return _added.get((kind, name)) or find(kind, name).load()


def name_of(kind: str, part: type) -> str | None:
    """The name under which a class is registered, or None. Imports nothing."""
    targets = {entry.target: entry.name for entry in entries(kind)}
    added = {cls: name for (of_kind, name), cls in _added.items() if of_kind == kind}
    return added.get(part) or targets.get(f"{part.__module__}:{part.__qualname__}")


def _offers(kind: str, name: str) -> list[Entry]:
    owner, _, bare = name.rpartition(":")
    offers = [e for e in entries(kind) if e.name == bare and owner in ("", e.distribution)]
    if not offers:
        known = names(kind)
        if (plugin := OF_OUR_PLUGINS.get((kind, bare))) is not None and owner in ("", plugin):
            others = f", or choose another: {', '.join(known)}" if known else ""
            way = f"run `pip install -e plugins/{plugin}` in a checkout of lnlit{others}. No index has it."
            way = f"remove LNLIT_PLUGINS=off from the environment{others}." if _without_plugins() else way
            raise UserError(f"{kind} {name!r} is of the plugin {plugin}, which is not there: {way}")
        near = did_you_mean(bare, [*known, *(entry.target.partition(":")[2] for entry in entries(kind))])
        allowed = f"Allowed: {', '.join(known)}; plugins that are installed add more."
        raise UserError(f"unknown {kind} {name!r}.{near} {allowed}{_strays()}")
    return offers


def build(kind: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Returns `get(kind, name)(*args, **kwargs)`."""
    return get(kind, name)(*args, **kwargs)


def add(kind: str, name: str, part: type) -> type:
    """Registers a class in this process only, for notebooks and tests. A package uses entry points instead."""
    _check_kind(kind)
    taken = {entry.name for entry in entries(kind)}
    if name in taken:
        raise UserError(f"{kind} {name!r} exists already; choose another name than {', '.join(sorted(taken))}.")
    _added[kind, name] = _checked(kind, name, part)
    return part


def _check_kind(kind: str) -> None:
    if kind not in BUILTINS:
        raise UserError(f"unknown kind {kind!r}.{did_you_mean(kind, BUILTINS)} Allowed: {', '.join(BUILTINS)}.")


@cache
def _plugins(kind: str) -> list[Entry]:
    found = [_entry(kind, point) for point in entry_points(group=f"lnlit.{kind}")]
    return sorted(found, key=lambda entry: (entry.name, entry.distribution))


def _entry(kind: str, point: EntryPoint) -> Entry:
    name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "?")
    return Entry(kind, point.name, point.value, name, version)


def _resolve(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _checked(kind: str, name: str, part: Any) -> type:
    interface = _resolve(INTERFACES[kind])
    if not (isinstance(part, type) and issubclass(part, interface)):
        raise UserError(f"{kind} {name!r} is {part!r}; it must be a subclass of {INTERFACES[kind].replace(':', '.')}.")
    return part

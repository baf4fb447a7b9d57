"""Names of classes in a configuration: `SFT`, a registry name such as `jsonl`, `distribution:name`, `my_file.py:Mine`.

jsonargparse knows short names of classes that are imported already. Ours need not be: a registry name is looked up in
the registry, which imports only that part, and a class of `lnlit.data` or `lnlit.callbacks` is found by importing that
package's modules. A user's own class, `my_package.Mine` or `my_file.py:Mine`, is taken where it is what its place asks
for; nothing is imported that nobody wrote.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse._typehints as typehints
from jsonargparse import set_parsing_settings
from jsonargparse.typing import Path_fr

from lnlit import own, registry
from lnlit.builtins import INTERFACES
from lnlit.errors import UserError
from lnlit.interfaces import Reward
from lnlit.interfaces.reward import reward_class

#: The packages with the subclasses of a base that a configuration may name by short names.
_HOMES = {
    "lightning.pytorch.core.datamodule.LightningDataModule": ("lnlit.data", "lnlit.modules"),
    "lightning.pytorch.callbacks.callback.Callback": ("lnlit.callbacks",),
    "lnlit.modules.reference.KnownReference": ("lnlit.modules",),
    "lnlit.modules.reference.PolicySnapshot": ("lnlit.modules",),
    "datatrove.pipeline.base.PipelineStep": ("lnlit.curation",),
    "lnlit.curation.executors.Executor": ("lnlit.curation",),
}
#: Whose functions a configuration may name as well as classes. torch is not open as a whole: it holds functions that
#: load pickles and compile code.
_ALLOWED = ("lnlit", "lightning", "torch.optim", "torch.nn", "torch.profiler")
POLICY = (
    f"A configuration may name classes of {', '.join(_ALLOWED)}, and of others those that are what a place asks for"
)

_native_resolve: Callable[[Any, str], str] = typehints.resolve_class_path_by_name


#: A type that jsonargparse makes as it is imported, which no checker can see.
_readable: Any = Path_fr


class Foreign(ImportError):
    """A class that does not fit the place where it is named."""


def install() -> None:
    """Makes jsonargparse resolve lnlit's names, and restricts what a configuration may name to `POLICY`.

    jsonargparse has no public hook for names. The one function replaced here is called for YAML and for the command
    line.
    """
    typehints.resolve_class_path_by_name = resolve
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*_ALLOWED])


def resolve(base: type | tuple[type, ...], name: str) -> str:
    """The class path for `name` if a subclass of `base` is expected.

    Raises `UserError` for an ambiguous name, a part that cannot be imported and a file without such a part, and
    `Foreign` for a class that is not a subclass of `base`.
    """
    bases = base if isinstance(base, tuple) else (base,)
    if own.split(name):
        return _of_file(bases, name)
    if ".py:" in name or name.endswith(".py"):
        raise UserError(f"{name!r} is no part: write FILE.py:NAME, where NAME is one class or function of that file.")
    if "." in name and ":" not in name:
        return name if _is_allowed(name) else _taken(bases, name, imported(name), *name.rpartition(".")[::2])
    for one in bases:
        kind = _kind_of(one)
        if kind is not None:
            return _registered(kind, name)
        for found in _ours(one):
            if found.__name__ == name:
                return _path(found)
    return _native_resolve(base, name)


def _of_file(bases: tuple[type, ...], name: str) -> str:
    """The class path of `file.py:name`. jsonargparse's type for paths knows the folder of the YAML file that is being
    read."""
    file, attribute = own.split(name) or (Path(), "")
    with contextlib.suppress(TypeError):  # it is not there, which is told below
        file = Path(_readable(str(file)).absolute)
    part = own.load(file, attribute)
    return _taken(bases, f"{own.whole(file)}:{attribute}", part, own.module_of(file), attribute)


def imported(name: str) -> Any:
    """The object `module.name`. Raises `UserError` if the module's own code is at fault."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise
    except (Exception, SystemExit) as error:  # its own code is at fault
        raise UserError(f"cannot import {module!r}: {own.said(error, module)}") from error


def _taken(bases: tuple[type, ...], name: str, part: Any, module: str, attribute: str) -> str:
    """The path of a user's own class, which may be imported from now on. A function that is a reward is turned into a
    class."""
    if callable(part) and not inspect.isclass(part) and Reward in bases:
        part = own.kept(reward_class(module, attribute), module)
        return own.named(part, name)
    if not (inspect.isclass(part) and issubclass(part, bases)):
        raise Foreign(name)
    own.check_class(part, name, bases)
    return _open(part, name)


def _open(cls: type, name: str) -> str:
    path = own.named(cls, name)
    if not _is_allowed(path):
        set_parsing_settings(import_path_allowlist=[path])
    return path


def choices(base: type | tuple[type, ...]) -> list[str]:
    """The short names of all subclasses of `base`, for an error message."""
    found: set[str] = set()
    for one in base if isinstance(base, tuple) else (base,):
        kind = _kind_of(one)
        if kind is not None:
            found.update(registry.names(kind))
            continue
        found.update(cls.__name__ for cls in _ours(one))
        others = (cls for cls in _subclasses(one) if _is_allowed(_path(cls)) and not inspect.isabstract(cls))
        found.update(cls.__name__ for cls in others if not re.search(r"\.(_|demos\.)", _path(cls)))
    return sorted(found)


def _registered(kind: str, name: str) -> str:
    """A registered part by registry name or by its class's name (`jsonl` or `JsonlSource`)."""
    same_class = [entry for entry in registry.entries(kind) if entry.target.rpartition(":")[2] == name]
    if not same_class or name in registry.names(kind):
        return _open(registry.named(kind, name), name)
    if len({entry.target for entry in same_class}) > 1:
        offers = " and ".join(f"{entry.distribution}:{entry.name}" for entry in same_class)
        raise UserError(f"{kind} class {name!r} is offered as {offers}. Write one of these instead.")
    return _open(same_class[0].load(), name)


def _kind_of(base: type) -> str | None:
    targets = {target: kind for kind, target in INTERFACES.items()}
    for cls in base.__mro__ if isinstance(base, type) else ():
        module, name = cls.__module__, cls.__qualname__
        if f"{module}:{name}" in targets:
            return targets[f"{module}:{name}"]
    return None


def _ours(base: type) -> list[type]:
    return [cls for package in _HOMES.get(_path(base), ()) for cls in _public_subclasses(package, base)]


def _public_subclasses(package: str, base: type) -> list[type]:
    found: dict[str, type] = {}
    root = importlib.import_module(package)
    names = (name for _, name, _ in pkgutil.walk_packages(root.__path__, f"{package}."))
    modules = [name for name in names if not name.rpartition(".")[2].startswith("_")]  # these hold no public class
    for module in [package, *modules]:
        for name, cls in vars(importlib.import_module(module)).items():
            ours = inspect.isclass(cls) and issubclass(cls, base) and cls.__module__.startswith(f"{package}.")
            if ours and not name.startswith("_") and not inspect.isabstract(cls):
                found[name] = cls
    return list(found.values())


def _subclasses(base: type) -> Iterator[type]:
    """Yields all subclasses of `base`, at any depth, whose modules have been imported."""
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_allowed(path: str) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in _ALLOWED)

"""Short class names in a configuration: `SFT`, `ChatData`, a registry name such as `jsonl`, or `distribution:name`.

jsonargparse knows short names of classes that are imported already. Ours need not be: a registry name is looked up in
the registry, which imports only that part, and a class of `lnlit.modules`, `lnlit.data` or `lnlit.callbacks` is
found by importing that package's modules.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import jsonargparse._typehints as typehints
from jsonargparse import set_parsing_settings

from lnlit import registry
from lnlit.builtins import INTERFACES
from lnlit.errors import UserError

#: Where the classes of a base live whose short name a configuration may use.
_HOMES = {
    "lightning.pytorch.core.module.LightningModule": ("lnlit.modules",),
    "lightning.pytorch.core.datamodule.LightningDataModule": ("lnlit.data", "lnlit.modules"),
    "lightning.pytorch.callbacks.callback.Callback": ("lnlit.callbacks",),
    "lnlit.rollout.order.PromptOrder": ("lnlit.rollout",),
}
#: What a configuration may name. torch is not open as a whole: it holds functions that load pickles and compile code.
_ALLOWED = ("lnlit", "lightning", "torch.optim", "torch.nn", "torch.profiler")
POLICY = f"A configuration may name classes of {', '.join(_ALLOWED)} and installed lnlit plugins."
#: How to have another class nevertheless.
WAY_OUT = (
    'To name one of yours, make it a plugin: [project.entry-points."lnlit.reward"] mine = "my_package:MyReward" in its '
    "pyproject.toml, likewise for other kinds."
)

_native_resolve = typehints.resolve_class_path_by_name


def install() -> None:
    """Teach jsonargparse our names, and let a configuration name no class outside `POLICY`.

    jsonargparse has no public hook for names; the one function replaced here is called for YAML and command line alike.
    """
    typehints.resolve_class_path_by_name = resolve
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*_ALLOWED, *_plugin_packages()])


def resolve(base: type | tuple[type, ...], name: str) -> str:
    """The class path behind `name` where a subclass of `base` is expected; a name that has a dot stays as it is.

    Raises `UserError` for a clash of names or a part that cannot be imported.
    """
    if "." in name and ":" not in name:
        return name
    for one in base if isinstance(base, tuple) else (base,):
        kind = _kind_of(one)
        if kind is not None:
            return _registered(kind, name)
        for found in _ours(one):
            if found.__name__ == name:
                return _path(found)
    return _native_resolve(base, name)  # type: ignore[arg-type]


def choices(base: type | tuple[type, ...]) -> list[str]:
    """Short names that fit where a subclass of `base` is expected, for an error message."""
    found: set[str] = set()
    for one in base if isinstance(base, tuple) else (base,):
        kind = _kind_of(one)
        if kind is not None:
            found.update(registry.names(kind))
            continue
        found.update(cls.__name__ for cls in _ours(one))
        others = (path for path in typehints.get_all_subclass_paths(one) if _is_allowed(path) and ".demos." not in path)
        found.update({path.rpartition(".")[2] for path in others} - {one.__name__})
    return sorted(found)


def _registered(kind: str, name: str) -> str:
    """A registered part by registry name or by its class's name (`jsonl` or `JsonlSource`)."""
    same_class = [entry for entry in registry.entries(kind) if entry.target.rpartition(":")[2] == name]
    if not same_class or name in registry.names(kind):
        return _path(registry.get(kind, name))
    if len({entry.target for entry in same_class}) > 1:
        offers = " and ".join(f"{entry.distribution}:{entry.name}" for entry in same_class)
        raise UserError(f"{kind} class {name!r} is offered as {offers}. Write one of these instead.")
    return _path(same_class[0].load())


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
    modules = [name for _, name, _ in pkgutil.walk_packages(root.__path__, f"{package}.")]
    for module in [package, *modules]:
        for name, cls in vars(importlib.import_module(module)).items():
            ours = inspect.isclass(cls) and issubclass(cls, base) and cls.__module__.startswith(f"{package}.")
            if ours and not name.startswith("_") and not inspect.isabstract(cls):
                found[name] = cls
    return list(found.values())


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_allowed(path: str) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in (*_ALLOWED, *_plugin_packages()))


def _plugin_packages() -> set[str]:
    offers = [entry for kind in registry.kinds() for entry in registry.entries(kind)]
    packages = {entry.target.partition(":")[0].partition(".")[0] for entry in offers if entry.distribution != "lnlit"}
    return {package for package in packages if package.isidentifier() and package != "jsonargparse"}

"""jsonargparse's parser as all commands with YAML use it: with lnlit's names, and strict about null and about lists."""

from __future__ import annotations

import functools
import os
import types
import typing
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI 2.6 calls what jsonargparse 5 removes

import jsonargparse._typehints as typehints
from jsonargparse import ArgumentParser, Namespace, Unset, set_parsing_settings

from lnlit.cli import names

_native_adapt = typehints.adapt_typehints


class StrictParser(ArgumentParser):
    """A parser that takes null where a type admits None, and asks for all that a signature asks for.

    Of itself jsonargparse takes null for a key that was left out, and for a group of settings whatever is in it. The
    parsers that it makes of nested classes and records are of this class too, so this holds at any depth.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _teach()
        super().__init__(*args, **{"exit_on_error": False, "allow_abbrev": False, **kwargs})

    def add_subclass_arguments(self, *args: Any, required: bool = False, **kwargs: Any) -> None:
        """As jsonargparse has it, but for its default of None, which would let null stand for what is required."""
        default = {"default": Unset} if required else {}
        super().add_subclass_arguments(*args, required=required, **default, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse has it, which gives its groups this method too, but for keys without a default that may be
        null: these it would not ask for."""
        if kwargs.get("default") is Unset:
            kwargs["required"] = True
        return super().add_argument(*args, **kwargs)

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Raises `TypeError` also for a group that is no mapping; `explain` says it in lnlit's words."""
        super().validate(namespace, *args, **kwargs)
        for name in self.groups or ():
            if not isinstance(namespace.get(name, Namespace()), Namespace | dict) and self._is_of_settings(name):
                raise TypeError(f"{name} is no mapping")

    def _is_of_settings(self, group: str) -> bool:
        """Whether a group is a mapping of settings, rather than one class or none."""
        return isinstance(self.get_defaults(skip_validation=True).get(group), Namespace)


@functools.cache
def _teach() -> None:
    """Whatever is a setting of jsonargparse, or a function in it, is so for all its parsers."""
    names.install()
    set_parsing_settings(unset_sentinel=True)  # without it, null that was written is the same as nothing written
    typehints.adapt_typehints = _adapt


def _adapt(val: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
    """What a value becomes where a type is expected, but for null, and for a list that is given again: whole.

    jsonargparse completes the items of a list from an earlier one of the same length, of a file before or a default: a
    target `{cost: latency_s, max: 0.45}` would inherit `of_parent: true` from what it replaces. It has no setting for
    it. What changes an item by design, `--key+ value` and `--key.of_last value`, still does. Of null it makes the text
    "None" where a path would do.
    """
    if val is None and _admits_none(typehint):
        return None
    if isinstance(val, list) and not kwargs.get("append"):
        kwargs["prev_val"] = None
    return _native_adapt(val, typehint, *args, **kwargs)


def _admits_none(typehint: Any) -> bool:
    union = typing.get_origin(typehint) in (typing.Union, types.UnionType)
    return union and types.NoneType in typing.get_args(typehint)

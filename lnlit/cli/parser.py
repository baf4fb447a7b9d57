"""jsonargparse's parser as all commands with YAML use it: with lnlit's names, and strict about null and about lists."""

from __future__ import annotations

import functools
import os
import types
import typing
from collections.abc import Iterator
from typing import Any, NoReturn

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI 2.6 calls what jsonargparse 5 removes

import jsonargparse._typehints as typehints
from jsonargparse import ArgumentParser, Namespace, Unset, set_parsing_settings

from lnlit.cli import names
from lnlit.errors import UserError, causes
from lnlit.interfaces import Source

_native_adapt = typehints.adapt_typehints
_native_fits_no_type = typehints.raise_union_unexpected_value


class StrictParser(ArgumentParser):
    """A parser that accepts null only where a type admits None, and requires every argument that a signature requires.

    By default, jsonargparse treats null as a key that was left out, and accepts any value for a group of settings. The
    parsers that it makes for nested classes and records are of this class too, so this holds at any depth.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _teach()
        super().__init__(*args, **{"exit_on_error": False, "allow_abbrev": False, **kwargs})

    def add_subclass_arguments(self, *args: Any, required: bool = False, **kwargs: Any) -> None:
        """Adds a class as jsonargparse does, but without its default of None for a required one, because null would
        then be accepted in its place."""
        default = {"default": Unset} if required else {}
        super().add_subclass_arguments(*args, required=required, **default, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Adds an argument as jsonargparse does, but requires it whenever it has no default. jsonargparse would make it
        optional if its type admits None. Groups of arguments get this method too."""
        if kwargs.get("default") is Unset:
            kwargs["required"] = True
        return super().add_argument(*args, **kwargs)

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Checks parsed values as jsonargparse does, and raises `TypeError` also for a group of settings that is not a
        mapping. The user reads the message of `explain` instead."""
        super().validate(namespace, *args, **kwargs)
        for name in self.groups or ():
            if not isinstance(namespace.get(name, Namespace()), Namespace | dict) and self._is_of_settings(name):
                raise TypeError(f"{name} is no mapping")

    def _is_of_settings(self, group: str) -> bool:
        """Whether a group is a mapping of settings, rather than one class or none."""
        return isinstance(self.get_defaults(skip_validation=True).get(group), Namespace)


class RowsToCome(Source):
    """Stands for a source whose files need not be there yet."""

    def rows(self, start: int = 0) -> Iterator[Any]:
        raise UserError("these rows are not there yet")


def rows_may_come(parser: ArgumentParser) -> None:
    """Lets a parser build what a configuration names without looking for the rows of its sources."""
    parser.add_instantiator(lambda *_, **__: RowsToCome(), Source)


@functools.cache
def _teach() -> None:
    """Changes jsonargparse once for the whole process: it finds lnlit's names of classes, distinguishes null from a
    missing key, and converts values by `_adapt`."""
    names.install()
    set_parsing_settings(unset_sentinel=True)  # without it, null that was written is the same as nothing written
    typehints.adapt_typehints = _adapt
    typehints.raise_union_unexpected_value = _fits_no_type


def _adapt(val: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
    """Converts a value to a type as jsonargparse does, except that null stays None where the type admits it, and that a
    list replaces an earlier one as a whole.

    jsonargparse has no settings for either. It would complete the items of a list from an earlier list of the same
    length, which is a default or comes from a previous file: a target `{cost: latency_s, max: 0.45}` would inherit
    `of_parent: true` from the target that it replaces. `--key+ value` and `--key.of_last value` still change a list
    item by item. Where a type admits a path, jsonargparse would convert null to the text "None".
    """
    if val is None and _admits_none(typehint):
        return None
    if isinstance(val, list) and not kwargs.get("append"):
        kwargs["prev_val"] = None
    return _native_adapt(val, typehint, *args, **kwargs)


def _fits_no_type(types_: Any, val: Any, exceptions: list[Exception]) -> NoReturn:
    """Says why a value fits none of several types. jsonargparse raises from what the first of them said; if a class
    that was found has said what is wrong with its arguments, that comes first."""
    spoke = {id(each) for each in exceptions if any(isinstance(cause, UserError) for cause in causes(each))}
    _native_fits_no_type(types_, val, sorted(exceptions, key=lambda each: id(each) not in spoke))


def _admits_none(typehint: Any) -> bool:
    union = typing.get_origin(typehint) in (typing.Union, types.UnionType)
    return union and types.NoneType in typing.get_args(typehint)

"""The argument parser of the commands that do not use Lightning's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from lnlit.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that accepts no abbreviated options and reports a bad argument as one line, without the
    usage. `--top_p` is `--top-p`, as keys of configurations are written on the command line of other commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._dashed(word) for word in given], namespace)

    def _dashed(self, word: str) -> str:
        option, equals, value = word.partition("=")
        dashed = option.replace("_", "-")
        return f"{dashed}{equals}{value}" if dashed in self._option_string_actions else word

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `{self.prog} --help`.")


def with_configs(argv: Sequence[str], flags: Collection[str] = ()) -> list[str]:
    """The arguments, in which the name of a YAML file stands for `--config FILE` unless it is the value of an option.
    `flags` are options without a value."""
    found: list[str] = []
    for before, word in zip(("", *argv), argv, strict=False):
        is_value = before.startswith("-") and "=" not in before and before not in flags
        is_file = word.endswith((".yaml", ".yml")) and not word.startswith("-")
        found += ["--config", word] if is_file and not is_value else [word]
    return found

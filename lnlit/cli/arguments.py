"""The argument parser of the commands that do not use Lightning's."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from lnlit.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that accepts no abbreviated options and reports a bad argument as one line, without the
    usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `{self.prog} --help`.")

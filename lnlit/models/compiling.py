"""Regional compilation: each block is compiled, equal blocks share one compilation."""

from __future__ import annotations

import os
import shutil

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder


def compile_blocks(decoder: Decoder, required: bool) -> bool:
    """Compile every block in place; returns whether it did. Without a C++ compiler: `UserError`, or False."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        if required:
            raise UserError(
                "runtime.compile: no C++ compiler found (g++ or clang++). Install one or set compile: auto."
            )
        return False
    for block in decoder.layers:
        block.compile()
    return True

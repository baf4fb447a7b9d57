"""Regional compilation: each block is compiled, equal blocks share one compilation."""

from __future__ import annotations

import os
import shutil

import torch
import torch._dynamo

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
    # Each distinct block needs a compilation for training and one for evaluation; dynamo gives up after 8 of them.
    needed = 2 * len(set(decoder.spec.layers)) + 8
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, needed)
    for block in decoder.layers:
        block.compile()
    return True

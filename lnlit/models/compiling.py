"""Regional compilation: blocks are compiled one by one, and equal blocks share a compilation."""

from __future__ import annotations

import os
import shutil

import torch
import torch._dynamo

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder

#: Graphs of one distinct block, at most: one with and one without gradients for each of up to four ways in which what
#: was a constant turns out to vary (batch, tokens, longest document, shared prompts). Beyond its limit, which is one
#: for all blocks of a process, a teacher's too, dynamo computes eagerly and says nothing.
_GRAPHS = 8


def compile_blocks(decoder: Decoder, required: bool) -> bool:
    """Compiles every block in place and returns True. Without a C++ compiler, raises `UserError` if `required`, else
    returns False."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        if required:
            raise UserError(
                "runtime.compile: no C++ compiler found (g++ or clang++). Install one or set compile: auto."
            )
        return False
    distinct = len(set(decoder.spec.layers))
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, name, getattr(torch._dynamo.config, name) + _GRAPHS * distinct)
    for block in decoder.layers:
        # Of a block in which nothing is computed dynamo makes no graph, and from then on of no block: all run the same
        # code. They would run eagerly where activations are recomputed, and in pieces elsewhere.
        if any(True for _ in block.parameters()):
            block.compile()
    return True

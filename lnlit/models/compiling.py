"""Regional compilation: blocks are compiled one by one, and equal blocks share a compilation."""

from __future__ import annotations

import os
import shutil

import torch
import torch._dynamo

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder

#: The largest number of graphs per distinct block: one with and one without gradients for each of up to four sizes that
#: turn out to vary (batch, tokens, longest document, shared prompts). Dynamo's limit holds for all blocks of a process
#: together, including a teacher's; beyond it, dynamo silently runs eagerly.
_GRAPHS = 8


def compile_blocks(decoder: Decoder, required: bool, device_type: str = "cpu") -> bool:
    """Compiles every block in place and returns True. Without the compiler that inductor needs on this device, C for
    Triton on a GPU and else C++, raises `UserError` if `required`, else returns False."""
    language, variable, *names = (
        ("C", "CC", "gcc", "clang") if device_type == "cuda" else ("C++", "CXX", "g++", "clang++")
    )
    if not any(shutil.which(name) for name in (os.environ.get(variable, names[0]), *names)):
        if required:
            raise UserError(
                f"runtime.compile: no {language} compiler found ({' or '.join(names)}). Install one or set compile: "
                "auto."
            )
        return False
    distinct = len(set(decoder.spec.layers))
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, name, getattr(torch._dynamo.config, name) + _GRAPHS * distinct)
    for block in decoder.layers:
        # A block without parameters is not compiled: dynamo would mark the code, which all blocks share, as having no
        # content. Other blocks would then run eagerly if activations are recomputed, and in pieces otherwise.
        if any(True for _ in block.parameters()):
            block.compile()
    return True

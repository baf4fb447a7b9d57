"""Regional compilation: blocks are compiled one by one, and equal blocks share a compilation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import torch
import torch._dynamo

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder
from lnlit.specs import BlockSpec

#: The largest number of graphs per distinct block: one with and one without gradients for each of up to four sizes that
#: turn out to vary (batch, tokens, longest document, shared prompts). Dynamo's limit holds for each code object; those
#: of parts are shared by all kinds of blocks and by a teacher. Beyond it, dynamo silently runs eagerly.
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
    for block, spec in zip(decoder.layers, decoder.spec.layers, strict=True):
        if any(True for _ in block.parameters()):  # the others have nothing to compile
            block.forward = MethodType(_code_of_its_own(type(block).forward, spec), block)
            block.compile()
    return True


@cache
def _code_of_its_own(function: Callable[..., Any], spec: BlockSpec) -> FunctionType:
    """The function with a code object that only equal blocks share.

    Where dynamo finds no content, as in what follows the attention of a block without FFN, or precedes a kernel that it
    cannot trace, it marks the code object, and everybody's code runs eagerly from then on. Of two kinds of blocks with
    one code, the first would be compiled in the forward pass and eager where it is recomputed in the backward pass,
    which torch refuses because the tensors that are kept are others.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)

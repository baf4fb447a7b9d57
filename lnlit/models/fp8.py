"""float8 linears by torchao. Weights stay in high precision; matrix products are computed in float8."""

from __future__ import annotations

import dataclasses
import logging
from typing import Literal

import torch
from torch import nn

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder

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

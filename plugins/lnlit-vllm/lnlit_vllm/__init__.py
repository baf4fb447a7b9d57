"""Makes vLLM run every lnlit model (`register`), and measures it (`meter`). Importing this package imports nothing
else."""

import sys
from collections.abc import Iterator
from importlib.metadata import entry_points

ARCHITECTURE = "DeciLMForCausalLM"
MODEL_TYPE = "nemotron-nas"
#: The `model_type` of folders with parts that only lnlit has.
OWN_ARCHITECTURE = "LnlitForCausalLM"
OWN_MODEL_TYPE = "lnlit"


def register() -> None:
    """Entry point `vllm.general_plugins`: replaces vLLM's config and model classes for `nemotron-nas` by ours, and adds
    those for `lnlit`, which vLLM does not know.

    vLLM calls it in each of its processes. The config class is registered where vLLM looks first, so that code in a
    model folder (`auto_map`) is neither needed nor run. The same holds for families that plugins of lnlit add.
    """
    from transformers import CONFIG_MAPPING
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]
    from vllm.transformers_utils.config import _CONFIG_REGISTRY  # pyright: ignore[reportMissingImports]

    from lnlit_vllm.config import DeciLMConfig, config_class

    _CONFIG_REGISTRY[MODEL_TYPE] = DeciLMConfig
    for model_type in (OWN_MODEL_TYPE, *_of_plugins()):
        if model_type not in _CONFIG_REGISTRY and model_type not in CONFIG_MAPPING:
            _CONFIG_REGISTRY[model_type] = config_class(model_type)
    ModelRegistry.register_model(OWN_ARCHITECTURE, "lnlit_vllm.parts:LnlitForCausalLM")
    ModelRegistry.register_model(ARCHITECTURE, "lnlit_vllm.model:DeciLMForCausalLM")


def _of_plugins() -> Iterator[str]:
    """The model types of checkpoint formats that are installed beside. One that is broken is told and keeps no other
    model from being served.
    """
    for point in entry_points(group="lnlit.checkpoint"):
        try:
            if model_type := point.load().model_type:
                yield model_type
        except Exception as error:
            print(f"lnlit-vllm: checkpoint format {point.name!r} cannot be imported: {error}", file=sys.stderr)

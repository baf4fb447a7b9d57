"""Makes vLLM run every lnlit model (`register`), and measures it (`meter`). Importing this package imports nothing
else."""

ARCHITECTURE = "DeciLMForCausalLM"
MODEL_TYPE = "nemotron-nas"
#: The `model_type` of folders with parts that only lnlit has.
OWN_ARCHITECTURE = "LnlitForCausalLM"
OWN_MODEL_TYPE = "lnlit"


def register() -> None:
    """Entry point `vllm.general_plugins`: replaces vLLM's config and model classes for `nemotron-nas` by ours, and adds
    those for `lnlit`, which vLLM does not know.

    vLLM calls it in each of its processes. The config class is registered where vLLM looks first, so that code in a
    model folder (`auto_map`) is neither needed nor run.
    """
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]
    from vllm.transformers_utils.config import _CONFIG_REGISTRY  # pyright: ignore[reportMissingImports]

    from lnlit_vllm.config import DeciLMConfig, LnlitConfig

    _CONFIG_REGISTRY[MODEL_TYPE] = DeciLMConfig
    _CONFIG_REGISTRY[OWN_MODEL_TYPE] = LnlitConfig
    ModelRegistry.register_model(OWN_ARCHITECTURE, "lnlit_vllm.parts:LnlitForCausalLM")
    ModelRegistry.register_model(ARCHITECTURE, "lnlit_vllm.model:DeciLMForCausalLM")

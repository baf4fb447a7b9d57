"""vLLM runs every lnlit model (`register`), and times it (`meter`). Importing this imports nothing else."""

ARCHITECTURE = "DeciLMForCausalLM"
MODEL_TYPE = "nemotron-nas"
#: Folders of parts that only lnlit knows.
OWN_ARCHITECTURE = "LnlitForCausalLM"
OWN_MODEL_TYPE = "lnlit"


def register() -> None:
    """Entry point `vllm.general_plugins`: our config and model classes take the place of vLLM's own for `nemotron-nas`,
    and stand for `lnlit`, which vLLM has none for.

    vLLM calls it in each of its processes. The config class is put where vLLM looks first, so that a folder's own code
    (`auto_map`) is neither needed nor run.
    """
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]
    from vllm.transformers_utils.config import _CONFIG_REGISTRY  # pyright: ignore[reportMissingImports]

    from lnlit_vllm.config import DeciLMConfig, LnlitConfig

    _CONFIG_REGISTRY[MODEL_TYPE] = DeciLMConfig
    _CONFIG_REGISTRY[OWN_MODEL_TYPE] = LnlitConfig
    ModelRegistry.register_model(OWN_ARCHITECTURE, "lnlit_vllm.parts:LnlitForCausalLM")
    ModelRegistry.register_model(ARCHITECTURE, "lnlit_vllm.model:DeciLMForCausalLM")

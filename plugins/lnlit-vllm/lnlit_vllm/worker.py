"""Mixed into each of vLLM's workers (`worker_extension_cls`): a model takes new weights from a file.

Runs where vLLM runs; needs no lnlit.
"""

from __future__ import annotations

from typing import Any


class Receiver:
    """Methods that vLLM calls by name in every worker, next to the worker's own."""

    model_runner: Any
    reload_weights: Any

    def lnlit_tensor_names(self) -> list[str]:
        """The tensors this worker's model wants, by the names they have in a checkpoint."""
        self._check_whole()
        model = self.model_runner.get_model()
        return [
            unpacked
            for name, _ in model.named_parameters()
            if name.rpartition(".")[2] in ("weight", "bias")  # the rest are scales, which quantisation makes
            for unpacked in _unpacked(name, getattr(model, "packed_modules_mapping", {}))
        ]

    def lnlit_load(self, file: str) -> None:
        """Every weight from a safetensors file. An error half-way leaves a model that no later load mends, and that
        takes none: vLLM keeps what it had read for the layers that were not complete. A file that cannot be opened
        leaves the model as it was.
        """
        from safetensors import safe_open

        self._check_whole()
        with safe_open(file, framework="pt") as tensors:
            self._lnlit_incomplete = True
            self.reload_weights(weights_iterator=((name, tensors.get_tensor(name)) for name in tensors.keys()))  # noqa: SIM118
        self._pack_heads()
        self._lnlit_incomplete = False

    def _check_whole(self) -> None:
        if getattr(self, "_lnlit_incomplete", False):
            raise RuntimeError("an earlier load of weights failed half-way; start vLLM again.")

    def _pack_heads(self) -> None:
        """On a CPU a head computes with a packed copy of its matrix. One that is tied to the embedding is sent no
        tensor of its own, so vLLM's reload leaves it with the copy of the old one.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore[reportMissingImports]
            ParallelLMHead,
            UnquantizedEmbeddingMethod,
        )

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead) and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
                module.quant_method.process_weights_after_loading(module)


def _unpacked(name: str, packed: dict[str, list[str]]) -> list[str]:
    """`layers.0.qkv_proj.weight` is `layers.0.q_proj.weight` and two more."""
    for whole, parts in packed.items():
        if f".{whole}." in name:
            return [name.replace(f".{whole}.", f".{part}.") for part in parts]
    return [name]

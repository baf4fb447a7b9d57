"""Lets vLLM's workers load new weights from a file, as their `worker_extension_cls`.

Runs where vLLM runs, and does not import lnlit.
"""

from __future__ import annotations

from typing import Any


class Receiver:
    """Methods that are added to each of vLLM's workers and called by name."""

    model_runner: Any
    reload_weights: Any

    def lnlit_tensor_names(self) -> list[str]:
        """The checkpoint names of all tensors that this worker's model needs."""
        self._check_whole()
        model = self.model_runner.get_model()
        return [
            unpacked
            for name, _ in model.named_parameters()
            if name.rpartition(".")[2] in ("weight", "bias")  # the rest are scales, which quantisation makes
            for unpacked in _unpacked(name, getattr(model, "packed_modules_mapping", {}))
        ]

    def lnlit_load(self, file: str) -> None:
        """Loads every weight from a safetensors file. If it fails half-way, vLLM keeps what it has read for incomplete
        layers, so later loads are refused. A file that cannot be opened leaves the model unchanged."""
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
        """Packs the head's matrix again. On a CPU vLLM computes the head with a packed copy, which a reload does not
        update if the head is tied to the embedding."""
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore[reportMissingImports]
            ParallelLMHead,
            UnquantizedEmbeddingMethod,
        )

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead) and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
                module.quant_method.process_weights_after_loading(module)


def _unpacked(name: str, packed: dict[str, list[str]]) -> list[str]:
    """The checkpoint names of a parameter: `layers.0.qkv_proj.weight` gives `layers.0.q_proj.weight` and two more."""
    for whole, parts in packed.items():
        if f".{whole}." in name:
            return [name.replace(f".{whole}.", f".{part}.") for part in parts]
    return [name]

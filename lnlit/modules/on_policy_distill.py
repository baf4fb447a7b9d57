"""On-policy distillation: teachers correct a model on what it says itself (generalised knowledge distillation, arXiv
2306.13649).

Shape suffixes: B rows, T positions, N completion tokens, D hidden, E a teacher's hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import frozen_decoder
from lnlit.errors import UserError
from lnlit.interfaces import IGNORE, Needs, PolicyBatch
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy
from lnlit.modules.teacher import Teacher, check_teacher
from lnlit.objectives.distill import linear_distillation
from lnlit.rl import on_policy_distill
from lnlit.specs import ModelSpec


@dataclass(frozen=True, kw_only=True)
class _Taught(on_policy_distill.OnPolicyDistill):
    """What the method has in common with the algorithm: how samples are chosen, and that rewards do not count."""

    @property
    def needs(self) -> Needs:
        return Needs(rewards=False, samples_per_prompt=1, deterministic=False)


class OnPolicyDistill(Policy):
    """Makes a model predict as its teacher does after what the model itself has said, which `PromptData` samples.

    The loss is the divergence from the teacher's predictions over the whole vocabulary, in nats, averaged over all
    tokens of a step. The data's rewards are only logged, and there may be none. A teacher may have another architecture
    and size, but the same tokens.

    Args:
        model: Folder, .gguf file or `pypi:<distribution>` to start from.
        teacher: Like `model`, the model to learn from; or several by name, of which each prompt's row names one in its
            column `teacher`.
        optimizer: AdamW and its schedule.
        beta: The divergence: 0 is KL(teacher || model), 1 is KL(model || teacher), and between lies the generalised
            Jensen-Shannon divergence.
        temperature: The temperature at which samples are drawn and all predictions compared.
        runtime: Kernels, compilation, memory.
        lora: Train low-rank adapters only; None trains every weight.
    """

    def __init__(
        self,
        model: str,
        teacher: str | dict[str, str],
        optimizer: AdamW,
        beta: float = 1.0,
        temperature: float = 1.0,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(model, optimizer, _Taught(), None, temperature, runtime, lora)
        if not 0 <= beta <= 1:
            raise UserError(f"beta: expected a number from 0 to 1, got {beta}")
        if not teacher:
            raise UserError("teacher: expected a model to learn from, or at least one by name")
        self.teacher, self.beta = {"": teacher} if isinstance(teacher, str) else dict(teacher), beta
        self._teachers: dict[str, Teacher] = {}

    @property
    def beside(self) -> dict[str, str]:
        return {f"teacher {name}".strip(): path for name, path in self.teacher.items()}

    # building

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        for path in self.teacher.values():
            check_teacher(path, read_spec(path), self.model, spec)

    def configure_model(self) -> None:
        super().configure_model()
        dtype = torch.bfloat16 if "bf16" in str(self.trainer.precision) else None
        where = {"mesh": self.mesh, "attention_kernel": self.runtime.attention_kernel}
        for name, path in self.teacher.items():
            if name not in self._teachers:
                decoder = frozen_decoder(path, self.trainer.strategy.root_device, dtype, **where)
                self._compile_blocks(decoder)
                self._teachers[name] = Teacher(decoder, [])

    def check_row(self, row: Mapping[str, Any]) -> None:
        if "" not in self.teacher and row.get("teacher") not in list(self.teacher):  # which need not be a text
            raise UserError(
                f"the row's teacher is {row.get('teacher')!r}; expected one of model.teacher: {', '.join(self.teacher)}"
            )

    def sample_settings(self) -> dict[str, Any]:
        return super().sample_settings() | {"method": type(self).__name__}

    # the step

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        self._log_rollout("train", batch.metrics)
        counts_BT = batch.tokens.labels != IGNORE
        labels_N = batch.tokens.labels[counts_BT]
        mine = {name: self._is_taught_by(name, batch) for name in self._teachers}
        # A teacher that ranks divide computes on all of them or on none, whatever the samples of this one are.
        asked = [name for name, is_mine_N in mine.items() if self.mesh is not None or is_mine_N.any()]
        targets = {name: self._teachers[name](batch.tokens, counts_BT) for name in asked or mine}

        def read_out(hidden_BTD: Tensor, head_VD: Tensor) -> Tensor:
            hidden_ND = hidden_BTD[counts_BT]
            losses = [
                linear_distillation(
                    hidden_ND[mine[name]],
                    head_VD,
                    target.hidden_NE[mine[name]],
                    target.head_VE,
                    labels_N[mine[name]],
                    temperature=self.temperature,
                    beta=self.beta,
                ).loss
                for name, target in targets.items()
            ]
            return torch.stack(losses).sum()

        tokens = batch.tokens
        loss = self.decoder(tokens.tokens, tokens.positions, tokens.lengths, tokens.gather_index, read_out=read_out)
        self._observed["train"].add({"divergence": (loss.detach() / self.temperature**2, len(labels_N))})
        return self.step_loss(loss, len(labels_N))

    def _is_taught_by(self, name: str, batch: PolicyBatch) -> Tensor:
        """True for the tokens of the samples of one teacher, bool [N]."""
        is_mine_S = torch.tensor([name in ("", teacher) for teacher in batch.teacher_S], dtype=torch.bool)
        return is_mine_S.to(batch.sample_N.device)[batch.sample_N]

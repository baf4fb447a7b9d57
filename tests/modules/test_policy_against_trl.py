"""Losses and gradients of algorithms equal TRL's own, on one model, in double precision.

TRL pads prompts on the left and completions on the right; ours are packed into one row. So agreement also says that
neither padding nor packing has a part in the result. Where TRL and lnlit differ on purpose, a test says by how much.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import cache, partial
from types import MethodType, SimpleNamespace

import pytest
import torch
import toy_llama
from transformers import LlamaForCausalLM
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import add_fused_lm_head

from lnlit.interfaces import IGNORE, Algorithm, PolicyBatch, TokenBatch
from lnlit.objectives.kl import KL
from lnlit.objectives.policy import Clip, Correction
from lnlit.rl.cispo import CISPO
from lnlit.rl.grpo import GRPO
from lnlit.rl.rloo import RLOO
from lnlit.rl.sapo import SAPO
from lnlit.rl.vespo import VESPO
from lnlit.rollout.log_probs import token_log_probs

PROMPTS, COMPLETIONS, MAX_NEW = [4, 2, 7, 5], [3, 6, 1, 5], 8
TOLERANCE = 1e-7


class Case:
    """Four samples, their advantages, and log-probs of an older policy, an engine and a reference."""

    def __init__(self, off_policy: bool, temperature: float, completions: list[int] = COMPLETIONS) -> None:
        torch.manual_seed(0)
        self.temperature, self.completions = temperature, completions
        self.theirs = toy_llama.theirs(LlamaForCausalLM)
        self.prompts = [torch.randint(0, 97, (length,)) for length in PROMPTS]
        self.answers = [torch.randint(0, 97, (length,)) for length in completions]
        self.advantages = torch.tensor([1.3, -0.7, 0.4, -1.0], dtype=torch.float64)
        now = self.by_their_model()
        noise = [torch.randn(len(answer), dtype=torch.float64) for answer in self.answers]
        self.old = [log_p + 0.3 * e if off_policy else log_p for log_p, e in zip(now, noise, strict=True)]
        self.engine = [log_p + 0.5 * e.flip(0) for log_p, e in zip(self.old, noise, strict=True)]
        self.reference = [log_p - 0.4 * e for log_p, e in zip(now, noise, strict=True)]
        self.off_policy = off_policy

    @torch.no_grad()
    def by_their_model(self) -> list[torch.Tensor]:
        """Each sample alone, without any padding."""
        found = []
        for prompt, answer in zip(self.prompts, self.answers, strict=True):
            logits = self.theirs(torch.cat([prompt, answer])[None]).logits[0] / self.temperature
            log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
            found.append(log_probs.gather(1, answer[:, None])[:, 0])
        return found

    # TRL's side

    def padded(self, values: list[torch.Tensor], left: bool = False) -> torch.Tensor:
        width = max(map(len, values))
        rows = torch.zeros(len(values), width, dtype=values[0].dtype)
        for row, value in zip(rows, values, strict=True):
            row[width - len(value) if left else 0 :][: len(value)] = value
        return rows

    def inputs(self) -> dict[str, torch.Tensor]:
        ones = [torch.ones_like(answer) for answer in self.answers]
        return {
            "prompt_ids": self.padded(self.prompts, left=True),
            "prompt_mask": self.padded([torch.ones_like(prompt) for prompt in self.prompts], left=True),
            "completion_ids": self.padded(self.answers),
            "completion_mask": self.padded(ones),
            "advantages": self.advantages,
            "num_items_in_batch": torch.tensor(float(sum(self.completions))),
            "old_per_token_logps": self.padded(self.old),
            "ref_per_token_logps": self.padded(self.reference),
            "old_logps": torch.stack([log_p.sum() for log_p in self.old]),
        }

    def plain_head(self, model, input_ids, attention_mask, labels, fused_lm_head):
        """What TRL's fused head returns, which computes it in fp32. TRL passes no positions, so that padding shifts
        them; that changes nothing but the rounding of rotary angles, which are fp32 in every model.
        """
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids, attention_mask, positions).logits[:, :-1] / self.temperature
        log_probs = logits.log_softmax(-1).gather(2, input_ids[:, 1:, None])[:, :, 0]
        log_probs = torch.nn.functional.pad(log_probs, (1, 0))  # aligned with the tokens
        return SimpleNamespace(log_probs=log_probs, entropy=torch.zeros_like(log_probs))

    def by_trl(
        self, trainer: type, fused_head: bool = False, **settings
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """TRL's own loss function with a stand-in for the trainer around it."""
        inputs = self.inputs() | settings.pop("inputs", {})
        accelerator = SimpleNamespace(
            num_processes=1,
            is_main_process=False,
            gather=lambda x: x,
            gather_for_metrics=lambda x: x,
            reduce=lambda x, reduction: x,
            autocast=nullcontext,
            sync_gradients=True,
        )
        arguments = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1}
        arguments |= {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
        arguments |= {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}
        arguments |= {key: settings.pop(key) for key in list(settings) if key in arguments}
        fields = {
            "temperature": self.temperature,
            "beta": 0.0,
            "loss_type": "grpo",
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            "importance_sampling_level": "token",
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "use_vllm": False,
            "vllm_importance_sampling_correction": False,
            "aux_loss_enabled": False,
            "_entropy_bonus_enabled": False,
            "max_completion_length": MAX_NEW,
            "current_gradient_accumulation_steps": 1,
            "model": SimpleNamespace(training=True),
            "accelerator": accelerator,
            "args": SimpleNamespace(**arguments),
            "_metrics": {"train": _Lists()},
        }
        stand_in = SimpleNamespace(**fields | settings)
        method = trainer._get_per_token_logps_and_entropies
        stand_in._get_per_token_logps_and_entropies = MethodType(method, stand_in)
        stand_in.get_gamma_weights = getattr(trainer, "get_gamma_weights", None)
        model = deepcopy(self.theirs) if fused_head else self.theirs
        model.zero_grad()
        if fused_head:
            add_fused_lm_head(model, temperature=self.temperature, outputs=("log_probs", "entropy"))
        loss = trainer._compute_loss(stand_in, model if fused_head else partial(self.plain_head, model), inputs)
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters()}

    # our side

    def by_us(self, algorithm: Algorithm) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        decoder = toy_llama.ours()
        names = dict(self.theirs.named_parameters())
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                parameter.copy_(names[f"model.{name}"])
        batch = self.packed()
        loss, count, _ = algorithm.loss(token_log_probs(decoder, batch.tokens, self.temperature).log_probs_N, batch)
        (loss / count).backward()
        return (loss / count).detach(), {f"model.{name}": p.grad for name, p in decoder.named_parameters()}

    def packed(self) -> PolicyBatch:
        """All samples in one row."""
        samples = [torch.cat(pair) for pair in zip(self.prompts, self.answers, strict=True)]
        labels = []
        for prompt, answer in zip(self.prompts, self.answers, strict=True):
            before = torch.full((len(prompt) - 1,), IGNORE)
            labels += [before, answer, torch.tensor([IGNORE])]
        lengths = [len(sample) for sample in samples]
        positions = torch.cat([torch.arange(length) for length in lengths])
        tokens = TokenBatch(torch.cat(samples)[None], torch.cat(labels)[None], positions[None], lengths)
        sample = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(self.completions))
        old, engine, reference = map(torch.cat, (self.old, self.engine, self.reference))
        return PolicyBatch(
            tokens,
            sample,
            len(samples),
            self.advantages[sample],
            old if self.off_policy else None,
            engine,
            reference,
            MAX_NEW,
        )


class _Lists(dict):
    def __missing__(self, key):
        return self.setdefault(key, [])


@cache
def known(off_policy: bool, temperature: float) -> Case:
    return Case(off_policy, temperature)


def algorithm(kind: type[Algorithm] = GRPO, **settings) -> Algorithm:
    return kind(**{"correction": None, **settings})


def check(ours, theirs, factor: float = 1.0, tolerance: float = TOLERANCE) -> float:
    """The largest difference of loss and gradients."""
    torch.testing.assert_close(ours[0], theirs[0] * factor, atol=tolerance, rtol=0)
    assert ours[1].keys() <= theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name] * factor, atol=tolerance, rtol=0, msg=name)
    assert max(gradient.abs().max() for gradient in ours[1].values()) > 1e-3
    gradients = (gradient - factor * theirs[1][name] for name, gradient in ours[1].items())
    return max(difference.abs().max().item() for difference in (ours[0] - factor * theirs[0], *gradients))


REDUCTIONS = {"grpo": "sequence_mean", "dapo": "token_mean", "bnpo": "token_mean", "dr_grpo": "constant_length"}
DIVERGENCES = {
    "none": (KL(), {}),
    "k3 in the loss": (KL(0.3, "k3", "loss"), {"beta": 0.3}),
    "k3 with score term": (KL(0.3, "k3", "score"), {"beta": 0.3, "use_bias_correction_kl": True}),
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("outside", [None, "truncate", "mask"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("loss_type", REDUCTIONS)
def test_grpo(loss_type, off_policy, divergence, outside, temperature, record_property):
    case = known(off_policy, temperature)
    kl, settings = DIVERGENCES[divergence]
    correction = None
    if outside is not None:
        correction = Correction(0.7, 1.4, outside)
        ratio = (case.padded(case.old) - case.padded(case.engine)).exp()
        kept = (ratio >= 0.7) & (ratio <= 1.4)
        weights = ratio.clamp(0.7, 1.4) if outside == "truncate" else torch.where(kept, ratio, 0.0)
        settings = settings | {
            "use_vllm": True,
            "vllm_importance_sampling_correction": True,
            "inputs": {"importance_sampling_ratio": weights},
        }
    theirs = case.by_trl(GRPOTrainer, loss_type=loss_type, **settings)
    ours = case.by_us(algorithm(reduction=REDUCTIONS[loss_type], kl=kl, correction=correction))
    record_property("difference from TRL", check(ours, theirs))


@pytest.mark.parametrize("off_policy", [False, True])
def test_the_ratio_of_whole_sequences(off_policy):
    case = known(off_policy, 1.0)
    theirs = case.by_trl(GRPOTrainer, loss_type="grpo", importance_sampling_level="sequence")
    check(case.by_us(algorithm(reduction="sequence_mean", ratio="sequence_mean")), theirs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_with_trls_own_head(temperature):
    """That one computes in fp32, and divides by the temperature itself."""
    case = known(True, temperature)
    theirs = case.by_trl(GRPOTrainer, fused_head=True)
    check(case.by_us(algorithm(reduction="sequence_mean")), theirs, tolerance=1e-5)


def test_clip_higher():
    case = known(True, 1.0)
    theirs = case.by_trl(GRPOTrainer, loss_type="dapo", epsilon_low=0.1, epsilon_high=0.28)
    check(case.by_us(algorithm(clip=Clip(0.1, 0.28))), theirs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("off_policy", [False, True])
def test_rloo(off_policy, temperature, record_property):
    case = known(off_policy, temperature)
    theirs = case.by_trl(RLOOTrainer)
    ours = case.by_us(algorithm(RLOO, ratio="sequence"))
    record_property("difference from TRL", check(ours, theirs))


def test_on_policy_rloo_is_the_same_for_either_ratio():
    case = known(False, 1.0)
    by_token, by_sequence = (case.by_us(algorithm(RLOO, ratio=ratio))[1] for ratio in ("token", "sequence"))
    for name, gradient in by_token.items():
        torch.testing.assert_close(gradient, by_sequence[name], atol=1e-12, rtol=0)


def corrected(case: Case, low: float, high: float) -> dict:
    """TRL's settings for an engine whose probabilities are not the trainer's."""
    ratio = (case.padded(case.old) - case.padded(case.engine)).exp().clamp(low, high)
    switches = {"use_vllm": True, "vllm_importance_sampling_correction": True}
    return {**switches, "inputs": {"importance_sampling_ratio": ratio}}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("is_corrected", [False, True])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize(("kind", "loss_type", "settings", "theirs"), [
    (CISPO, "cispo", {"max_ratio": 1.1}, {"epsilon_high": 1.1}),
    (SAPO, "sapo", {"positive_temperature": 1.5, "negative_temperature": 2.0},
     {"sapo_temperature_pos": 1.5, "sapo_temperature_neg": 2.0}),
])  # fmt: skip
def test_cispo_and_sapo(kind, loss_type, settings, theirs, off_policy, divergence, is_corrected, temperature):
    case = known(off_policy, temperature)
    kl, more = DIVERGENCES[divergence]
    more = more | (corrected(case, 0.7, 1.4) if is_corrected else {})
    expected = case.by_trl(GRPOTrainer, loss_type=loss_type, **theirs, **more)
    correction = Correction(0.7, 1.4) if is_corrected else None
    check(case.by_us(algorithm(kind, kl=kl, correction=correction, **settings)), expected)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("off_policy", [False, True])
def test_vespo(off_policy, divergence):
    """The engine is in its ratio, which TRL adds as an importance ratio of its own."""
    case = known(off_policy, 0.7)
    kl, more = DIVERGENCES[divergence]
    expected = case.by_trl(GRPOTrainer, loss_type="vespo", **more, **corrected(case, 1e-6, 1e6))
    check(case.by_us(VESPO(kl=kl)), expected)


# known disagreements


def test_trl_counts_samples_without_tokens_in_the_mean():
    case = Case(True, 1.0, [3, 0, 1, 5])
    case.answers[1] = case.answers[1][:0]
    theirs = case.by_trl(GRPOTrainer, loss_type="grpo")
    check(case.by_us(algorithm(reduction="sequence_mean")), theirs, factor=4 / 3)


def test_with_whole_sequences_trl_weighs_the_divergence_by_their_ratio_too():
    case = known(True, 1.0)
    kl, settings = DIVERGENCES["k3 with score term"]
    theirs = case.by_trl(GRPOTrainer, loss_type="grpo", importance_sampling_level="sequence", **settings)
    ours = case.by_us(algorithm(reduction="sequence_mean", ratio="sequence_mean", kl=kl))
    assert abs(ours[0] - theirs[0]) > 1e-4

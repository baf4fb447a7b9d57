"""Where a policy's batches come from: prompts, completions, rewards, log-probs, advantages.

Everything that happens between two sets of weights happens here, once per rollout, so that a training step is a loss
and nothing else. Shape suffixes: P prompts, G samples of each.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lnlit.data.chat import ChatEncoder
from lnlit.data.loader import count_batches
from lnlit.data.sources import where
from lnlit.data.tokenizer import load_tokenizer, pad_id
from lnlit.errors import UserError
from lnlit.interfaces import PromptOrder, Reward, RolloutEngine, Source
from lnlit.models.ranks import everyones
from lnlit.modules.experience_checks import check_judged, check_numbers, check_resumed, check_run, prompts_state
from lnlit.modules.experience_loader import ExperienceLoader, HeldOutLoader
from lnlit.modules.rollouts import Phases, Rollouts, Weighted
from lnlit.modules.sampled import SampledModel
from lnlit.objectives.advantage import without_spread
from lnlit.rewards.pool import why_not
from lnlit.rl.batch import Packed, micro_batches, pack
from lnlit.rl.metrics import describe, rewards_table
from lnlit.sampling.order import Uniform
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import Judged, Sample, request_seed
from lnlit.thinking import Thinking, on_or_off

__all__ = ["Experience", "HeldOut", "Weighted"]


@dataclass(frozen=True)
class HeldOut:
    """Prompts that nothing is learned from, answered whenever the trainer validates, each time with the same seeds."""

    prompts: Source
    samples_per_prompt: int = 1

    def __post_init__(self) -> None:
        if self.samples_per_prompt < 1:
            raise UserError(f"held_out.samples_per_prompt: expected 1 or more, got {self.samples_per_prompt}")


class Experience(L.LightningDataModule):
    """Samples `samples_per_prompt` completions of each of `prompts_per_rollout` prompts with the newest weights, and
    spreads them over `updates_per_rollout` optimizer steps of `trainer.accumulate_grad_batches` micro-batches each.

    All sizes are of the whole run: several ranks share the prompts, and what a step learns is the same on any number.

    Args:
        tokenizer: model folder whose tokenizer and chat template to use.
        prompts: rows with `messages`; a last assistant turn is left out of the prompt.
        rewards: what completions are judged by.
        engine: generates the completions.
        prompts_per_rollout: new prompts for each rollout.
        samples_per_prompt: at least 2, as a sample is judged by its siblings.
        max_new_tokens: length limit of a completion.
        updates_per_rollout: optimizer steps on one rollout's samples; each sample is used once.
        order: in which prompts come.
        resample: how often at most to draw new prompts for those whose samples are all equally good, from which nothing
            can be learned.
        truncated: "keep" learns from completions that hit the limit; "mask" does not, but counts their rewards (RPO,
            for which half a comparison is none, leaves their prompts out).
        thinking: toggle for rows that have none.
        held_out: prompts for the trainer's validation.
        reward_workers: processes that judge.
        proof: how many samples of each rollout the trainer scores again, to prove that the engine has its weights.
        max_logprob_difference: the run stops where the log-probs of more than one token in a hundred differ by more
            between engine and trainer, in nats.
        mean_logprob_difference: likewise where all tokens' differ by more on average. Another model's do by 3 nats.
        take_turns: with the accelerator's memory: the engine sleeps while the policy trains, and weights, gradients and
            optimizer state of the policy wait in host memory while the engine generates.
        seed: of the prompts' order and of every sample.
    """

    def __init__(
        self,
        tokenizer: str,
        prompts: Source,
        rewards: list[Weighted],
        engine: RolloutEngine,
        prompts_per_rollout: int,
        samples_per_prompt: int,
        max_new_tokens: int,
        updates_per_rollout: int = 1,
        order: PromptOrder | None = None,
        resample: int = 0,
        truncated: Literal["keep", "mask"] = "keep",
        thinking: Thinking | bool | None = None,
        held_out: HeldOut | None = None,
        reward_workers: int = 2,
        proof: int = 4,
        max_logprob_difference: float = 1.0,
        mean_logprob_difference: float = 0.1,
        take_turns: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        bounds = {"max_logprob_difference": max_logprob_difference, "mean_logprob_difference": mean_logprob_difference}
        sizes = {"max_new_tokens": max_new_tokens, "updates_per_rollout": updates_per_rollout, "proof": proof}
        check_numbers(sizes, {"resample": resample, "seed": seed}, bounds)
        if samples_per_prompt < 2:
            raise UserError(
                f"data.samples_per_prompt: a sample is judged by its siblings, so 2 or more; got {samples_per_prompt}"
            )
        if not isinstance(engine, RolloutEngine):
            raise UserError(f"data.engine: expected a RolloutEngine, e.g. NativeEngine(); got {engine!r}")
        if not rewards:
            raise UserError("data.rewards: a policy learns from rewards, so at least one")
        if prompts_per_rollout < updates_per_rollout:
            raise UserError(
                f"data.prompts_per_rollout: {prompts_per_rollout} prompts cannot be spread over {updates_per_rollout} "
                "updates"
            )
        self.tokenizer_name, self.source, self.engine = tokenizer, prompts, engine
        self.prompts_per_rollout, self.samples_per_prompt = prompts_per_rollout, samples_per_prompt
        self.max_new_tokens, self.updates_per_rollout = max_new_tokens, updates_per_rollout
        self.resample, self.truncated, self.seed = resample, truncated, seed
        self.rewards = [Weighted(reward) if isinstance(reward, Reward) else reward for reward in rewards]
        self.thinking: Thinking | None = None if thinking is None else on_or_off(thinking)
        self.held_out = held_out
        self.phases = Phases()
        limits = {"max_difference": max_logprob_difference, "mean_difference": mean_logprob_difference, "proof": proof}
        self._sampler = partial(Rollouts, engine, self.rewards, reward_workers, take_turns=take_turns, **limits)
        self._order = order or Uniform()
        #: Called with each rollout's samples, those of validation included, on every rank: `listener(stage, samples)`.
        self.listeners: list[Callable[[str, Sequence[Sample]], None]] = []
        self.rollouts = 0
        #: What was sampled and not yet learned from, an optimizer step's samples each.
        self.pending: deque[list[Sample]] = deque()
        #: The step under way and its samples: a checkpoint written amid an accumulation has lost its gradients.
        self.begun: tuple[int, list[Sample]] | None = None
        self._metrics: dict[str, float] = {}

    @cached_property
    def encoder(self) -> ChatEncoder:
        return ChatEncoder(load_tokenizer(self.tokenizer_name), self.thinking)

    @cached_property
    def sampler(self) -> Rollouts:
        return self._sampler(encoder=self.encoder, phases=self.phases)

    @cached_property
    def prompts(self) -> list[Prompt]:
        return self._read(self.source, "prompts")

    @cached_property
    def held_out_prompts(self) -> list[Prompt]:
        return [] if self.held_out is None else self._read(self.held_out.prompts, "held_out.prompts")

    @cached_property
    def order(self) -> PromptOrder:
        """Started: it knows the prompts, and how many rollouts there will be."""
        assert self.trainer is not None
        rollouts = -(-max(self.trainer.max_steps, 0) // self.updates_per_rollout)
        self._order.start([prompt.row for prompt in self.prompts], self.seed, rollouts)
        return self._order

    def _read(self, source: Source, key: str) -> list[Prompt]:
        """The prompts that leave the context room for a completion."""
        context, found, rows = self.policy.decoder.spec.context_length, [], 0
        judges = [judge.reward for judge in self.rewards if judge.weight]
        unjudged: dict[int, str] = {}
        room = context - self.max_new_tokens
        if room < 1:
            raise UserError(
                f"data.max_new_tokens: {self.max_new_tokens} leave no room for a prompt in a context of {context}"
            )
        for row in source.rows():
            rows += 1
            try:
                messages, token_ids = self.encoder.prompt(row)
            except UserError as error:
                raise UserError(f"data.{key}: {where(source, rows - 1)}: {error}") from error
            if why := why_not(judges, row):
                unjudged[rows - 1] = why
            elif 0 < len(token_ids) <= room:
                found.append(Prompt(messages, tuple(token_ids), row))
        named = "; ".join(f"{where(source, row)}: {why}" for row, why in list(unjudged.items())[:3])
        if unjudged:
            of = f"data.{key}: {len(unjudged)} of {rows} rows"
            if len(unjudged) == rows:
                raise UserError(f"{of} cannot be judged whatever a completion says: {named}")
            rank_zero_warn(f"{of} left out, since they cannot be judged whatever a completion says: {named}")
            self._metrics[f"{key}/unjudged"] = float(len(unjudged))
        if not found:
            raise UserError(f"data.{key}: none of {rows} rows has a prompt of at most {room} tokens before its answer")
        if left_out := rows - len(unjudged) - len(found):
            rank_zero_info(f"data.{key}: {left_out} of {rows} rows left out: no prompt, or one of over {room} tokens")
            self._metrics[f"{key}/left_out"] = float(left_out)
        return found

    @property
    def policy(self) -> SampledModel:
        module = self.trainer.lightning_module  # type: ignore[union-attr]
        if not isinstance(module, SampledModel):
            raise UserError(f"data: Experience feeds GRPO, RLOO and RPO, not {type(module).__name__}")
        return module

    # Lightning

    def setup(self, stage: str) -> None:
        """Before anything is sampled, be it for validation."""
        if stage == "fit":
            check_run(self)
            if self.policy.global_step == 0:  # what is left of another fit with this object is none of this one's
                self.rollouts, self.begun = 0, None
                self.pending.clear()
                vars(self).pop("order", None)

    def train_dataloader(self) -> ExperienceLoader:
        trainer = self.trainer
        assert trainer is not None
        # Lightning counts micro-batches; a step of the run so far may have had another number of them.
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        count_batches(trainer, trainer.global_step * trainer.accumulate_grad_batches - done)
        return ExperienceLoader(self, trainer.max_steps * trainer.accumulate_grad_batches)

    def val_dataloader(self) -> HeldOutLoader | list[Any]:
        return [] if self.held_out is None else HeldOutLoader(self)

    def teardown(self, stage: str) -> None:
        if "sampler" in vars(self):
            vars(self).pop("sampler").close()

    def on_exception(self, exception: BaseException) -> None:
        """The engine's and the rewards' processes end with the run; Lightning tears down no data after an error."""
        self.teardown("fit")

    def state_dict(self) -> dict[str, Any]:
        """Where the prompts are, and what was sampled but not yet learned from. The same on every rank."""
        begun = [self.begun[1]] if self.begun and self.begun[0] == self.policy.global_step else []
        pending = [[sample.state_dict() for sample in update] for update in (*begun, *self.pending)]
        state = {"rollouts": self.rollouts, "order": self.order.state_dict(), "pending": pending}
        return {**state, "settings": self._settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_resumed(state_dict.get("settings", {}), self._settings())
        self.rollouts = state_dict["rollouts"]
        self.order.load_state_dict(state_dict["order"])
        self.pending = deque([Sample.from_state(state) for state in update] for update in state_dict["pending"])

    def _settings(self) -> dict[str, Any]:
        """What the samples in a checkpoint, and the place in the prompts, mean nothing without."""
        return {
            **self.policy.sample_settings(),
            "samples_per_prompt": self.samples_per_prompt,
            "max_new_tokens": self.max_new_tokens,
            "thinking": self.thinking,
            "truncated": self.truncated,
            "rewards": {r.name or type(r.reward).__name__: [type(r.reward).__name__, r.weight] for r in self.rewards},
            "order": type(self._order).__name__,
            "seed": self.seed,
            "prompts": prompts_state(self.prompts),
        }

    # one rollout

    def collect(self) -> None:
        """Fills `pending` with the samples of one rollout, scored, in the order in which they are learned from."""
        self.phases.seconds.clear()
        drawn, chosen, metrics = self._draw()
        if not self.rollouts:
            check_judged(drawn)
        size = self.samples_per_prompt
        samples = [Sample(**vars(sample), learned=False) for sample in drawn]
        rows = [row for group in chosen for row in range(group * size, (group + 1) * size)]
        updates = [rows[first * size : last * size] for first, last in _ranges(len(chosen), self.updates_per_rollout)]
        for row in rows:
            samples[row] = replace(samples[row], learned=self._is_learned(samples[row]))
        with self.phases("score"):
            for number, update in enumerate(updates):
                scored = self._score([samples[row] for row in update], self.policy.wants_own_log_probs(number))
                for row, sample in zip(update, scored, strict=True):
                    samples[row] = sample
        for row, sample in zip(rows, self._compare([samples[row] for row in rows]), strict=True):
            samples[row] = sample
        self.pending.extend([samples[row] for row in update] for update in updates)
        self.rollouts += 1
        for listener in self.listeners:
            listener("train", samples)
        metrics |= describe(samples, size) | self.sampler.counts()
        metrics |= {f"time/{name}": seconds for name, seconds in self.phases.seconds.items()}
        self._metrics |= metrics

    def _is_learned(self, sample: Sample) -> bool:
        known = sample.is_finite and not math.isnan(sample.reward)
        return known and not (self.truncated == "mask" and sample.truncated)

    def _draw(self) -> tuple[list[Judged], list[int], dict[str, float]]:
        """(all samples that were drawn, the numbers of the prompts among them to learn from, what to log)."""
        size = self.samples_per_prompt
        drawn: list[Judged] = []
        useful: list[int] = []
        metrics: dict[str, float] = {}
        for _ in range(1 + self.resample):
            first = len(drawn) // size
            indices = self.order.take(self.prompts_per_rollout - len(useful), self.rollouts)
            asked = [
                (self.prompts[index], [request_seed(self.seed, self.rollouts, number, at) for at in range(size)])
                for number, index in enumerate(indices, start=first)
            ]
            samples, agreement = self.sampler.sample(self.policy, asked, self.max_new_tokens)
            metrics |= agreement
            drawn += samples
            flat = without_spread(rewards_table(samples, size)).tolist()
            spare = [number for number, is_flat in enumerate(flat, start=first) if is_flat]
            useful += [number for number, is_flat in enumerate(flat, start=first) if not is_flat]
            if not spare:
                break
        if self.resample:
            metrics["resampled"] = float(len(drawn) // size - self.prompts_per_rollout)
        metrics["sampling/nan_logprobs"] = float(sum(not sample.is_finite for sample in drawn))
        # the last flat ones fill what stayed empty
        return drawn, sorted(useful + spare[: self.prompts_per_rollout - len(useful)]), metrics

    def _score(self, samples: list[Sample], own: bool) -> list[Sample]:
        """With log-probs that must be known before the weights change: each rank its own micro-batches'. Collective."""
        policy, found = self.policy, {}
        for part in self._parts(samples):
            packed = self._packed([samples[index] for index in part], [True] * len(part))  # all are compared
            values = {"reference_log_probs": policy.reference_log_probs(packed.tokens)}
            if own:
                values["old_log_probs"] = policy.current_log_probs(packed.tokens)
            split = {name: packed.split(values_N) for name, values_N in values.items() if values_N is not None}
            found |= {index: {name: parts[at] for name, parts in split.items()} for at, index in enumerate(part)}
        everyone = {index: values for theirs in everyones(found) for index, values in theirs.items()}
        return [replace(sample, **everyone[index]) for index, sample in enumerate(samples)]

    def _compare(self, samples: Sequence[Sample]) -> list[Sample]:
        """With advantages over the whole rollout, of rewards less the divergence where that is part of the reward."""
        charged = torch.tensor([self.policy.penalty(sample) for sample in samples], dtype=torch.float64)
        table_PG = rewards_table(samples, self.samples_per_prompt)
        advantages = self.policy.advantages(table_PG - charged.view_as(table_PG)).flatten().tolist()
        return [replace(sample, advantage=value) for sample, value in zip(samples, advantages, strict=True)]

    # batches

    def batches(self, samples: list[Sample]) -> Iterator[Any]:
        """This rank's micro-batches of one optimizer step."""
        metrics, self._metrics = self._metrics, {}
        for part in self._parts(samples):
            chosen = [samples[index] for index in part]
            packed = self._packed(chosen, [sample.learned for sample in chosen])
            batch = self.policy.make_batch(packed, chosen, self.samples_per_prompt, self.max_new_tokens)
            batch.metrics, metrics = metrics, {}
            yield batch

    def _parts(self, samples: Sequence[Sample]) -> list[list[int]]:
        """The samples of each micro-batch of this rank."""
        trainer, size = self.policy.trainer, self.samples_per_prompt
        parts = trainer.accumulate_grad_batches * trainer.world_size
        found = micro_batches(samples, size, parts, self.policy.compares_samples)
        return found[trainer.global_rank :: trainer.world_size]

    def _packed(self, samples: Sequence[Sample], learned_S: Sequence[bool]) -> Packed:
        packed = pack(samples, learned_S, pad_id(self.encoder.tokenizer))
        strategy = self.policy.trainer.strategy
        tokens, sample_N = strategy.batch_to_device(packed.tokens), packed.sample_N.to(strategy.root_device)
        return Packed(tokens, sample_N, packed.samples)

    # validation

    def evaluate(self) -> Mapping[str, float]:
        """The held-out prompts, answered by the newest weights and judged. Collective."""
        assert self.held_out is not None
        size = self.held_out.samples_per_prompt
        asked = [
            (prompt, [request_seed(self.seed, -1, number, sample) for sample in range(size)])
            for number, prompt in enumerate(self.held_out_prompts)
        ]
        judged, agreement = self.sampler.sample(self.policy, asked, self.max_new_tokens)
        samples = [Sample(**vars(sample), learned=False) for sample in judged]
        for listener in self.listeners:
            listener("val", samples)
        return describe(samples, size) | agreement


def _ranges(count: int, parts: int) -> list[tuple[int, int]]:
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]

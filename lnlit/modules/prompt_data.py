"""The Lightning data module of prompts that a policy samples from: configuration and hooks only. `lnlit.rl` does the
work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lnlit.checkpoint.formats import read_spec
from lnlit.data.chat import ChatEncoder
from lnlit.data.loader import count_batches
from lnlit.data.sources import where
from lnlit.data.tokenizer import load_tokenizer, pad_id
from lnlit.errors import UserError
from lnlit.interfaces import PolicyBatch, PromptOrder, Reward, RolloutEngine, RolloutSampling, Source
from lnlit.modules.model_reward import ModelReward
from lnlit.modules.offload import offloaded
from lnlit.modules.policy import Policy
from lnlit.modules.prompt_checks import (
    check_policy,
    check_ranks,
    check_resumed,
    check_rewards,
    check_trainer,
    prompts_state,
)
from lnlit.rl.collector import Collector, RolloutConfig
from lnlit.rl.metrics import describe
from lnlit.rl.on_policy import LogprobCheck, OnPolicySampler
from lnlit.rollout.apart import EngineApart
from lnlit.sampling.history import Stage
from lnlit.sampling.order import Uniform
from lnlit.sampling.prompt import Prompt, Prompts, read_prompts
from lnlit.sampling.sample import Sample
from lnlit.sampling.sampler import Phases, Sampler, Weighted, asked, weights_by_name
from lnlit.thinking import Thinking, on_or_off

__all__ = ["HeldOut", "LogprobCheck", "PromptData", "RolloutConfig", "Weighted"]


@dataclass(frozen=True)
class HeldOut:
    """Prompts that are not learned from. They are answered at each validation, with the same seeds each time."""

    prompts: Source
    samples_per_prompt: int = 1

    def __post_init__(self) -> None:
        if self.samples_per_prompt < 1:
            raise UserError(f"held_out.samples_per_prompt: expected 1 or more, got {self.samples_per_prompt}")


class PromptData(L.LightningDataModule):
    """Samples completions with the policy's newest weights (or by `rollout.max_staleness: 1` those before the last
    rollout's updates), and provides them as batches for training.

    A rollout draws `samples_per_prompt` completions of each of `prompts_per_rollout` prompts and spreads them over
    `updates_per_rollout` optimizer steps, each of `trainer.accumulate_grad_batches` micro-batches. All sizes are of the
    whole run: the ranks share the prompts, and a step learns the same on any number of ranks.

    Args:
        tokenizer: The model folder whose tokenizer and chat template to use.
        prompts: Rows with `messages`. A last assistant turn is left out of the prompt.
        rewards: The rewards that judge completions, with their weights. There may be none for a method that does not
            learn from rewards.
        engine: The engine that generates completions.
        rollout: The number and length of completions.
        prompt_order: The order in which prompts are taken. By default each once per epoch, in random order.
        thinking: The thinking mode of rows that have none.
        held_out: The prompts that are answered when the trainer validates.
        logprob_check: The check after each weight update that engine and trainer agree.
        seed: The seed of the order of the prompts and of all samples.
    """

    def __init__(
        self,
        tokenizer: str,
        prompts: Source,
        rewards: list[Weighted],
        engine: RolloutEngine,
        rollout: RolloutConfig,
        prompt_order: PromptOrder | None = None,
        thinking: Thinking | bool | None = None,
        held_out: HeldOut | None = None,
        logprob_check: LogprobCheck = LogprobCheck(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if seed < 0:
            raise UserError(f"data.seed: expected 0 or a positive number, got {seed}")
        if not isinstance(engine, RolloutEngine):
            raise UserError(f"data.engine: expected a RolloutEngine, e.g. NativeEngine(); got {engine!r}")
        if not engine.needs_weights:
            raise UserError(
                f"data.engine: {type(engine).__name__} generates with a model of its own, and a policy learns from its "
                "own completions. Use an engine that takes weights, such as native or vllm."
            )
        self.tokenizer_name, self.source, self.engine, self.rollout = tokenizer, prompts, engine, rollout
        self.rewards = [Weighted(reward) if isinstance(reward, Reward) else reward for reward in rewards]
        weights_by_name(self.rewards)  # no two of one name
        self.thinking: Thinking | None = None if thinking is None else on_or_off(thinking)
        self.held_out, self.logprob_check, self.seed = held_out, logprob_check, seed
        self._order = prompt_order or Uniform()
        self.phases = Phases()
        #: Called with each rollout's samples, those of validation included, on every rank: `listener(stage, samples)`.
        self.listeners: list[Callable[[Stage, Sequence[Sample]], None]] = []
        self._metrics: dict[str, float] = {}

    @cached_property
    def encoder(self) -> ChatEncoder:
        return ChatEncoder(load_tokenizer(self.tokenizer_name), self.thinking)

    @cached_property
    def prompts(self) -> list[Prompt]:
        return self._read(self.source, "prompts")

    @cached_property
    def held_out_prompts(self) -> list[Prompt]:
        return [] if self.held_out is None else self._read(self.held_out.prompts, "held_out.prompts")

    @cached_property
    def sampler(self) -> OnPolicySampler:
        """A sampler that always uses the newest weights, built for each run."""
        policy = self.policy
        sampling = RolloutSampling(self.rollout.max_new_tokens, policy.temperature, tuple(self.encoder.end_ids()))
        memory = partial(offloaded, policy) if self.rollout.sleep_engine_while_training else None
        is_ahead = self.rollout.max_staleness > 0
        for judge in self.rewards:
            if isinstance(judge.reward, ModelReward):
                judge.reward.shard(policy.mesh)
        engine = EngineApart(self.engine) if is_ahead and not self.engine.runs_apart else self.engine
        parts = (engine, self.rewards, self.rollout.reward_workers, self.encoder)
        sampler = Sampler(*parts, sampling, self.phases, memory)
        return OnPolicySampler(sampler, policy, self.logprob_check, pad_id(self.encoder.tokenizer))

    @cached_property
    def collector(self) -> Collector:
        trainer = self.policy.trainer
        rollouts = -(-max(trainer.max_steps, 0) // self.rollout.updates_per_rollout)
        self._order.start([prompt.row for prompt in self.prompts], self.seed, rollouts)
        parts = trainer.accumulate_grad_batches * self.policy.data_parallel_size()
        padding_id = pad_id(self.encoder.tokenizer)
        return Collector(self.prompts, self._order, self.rollout, self.seed, parts, padding_id, rollouts)

    @property
    def policy(self) -> Policy:
        module = self.trainer.lightning_module  # type: ignore[union-attr]
        if not isinstance(module, Policy):
            raise UserError(
                f"data: PromptData feeds GRPO, RLOO, RPO, OnPolicyDistill and Policy, not {type(module).__name__}"
            )
        return module

    @property
    def rollouts(self) -> int:
        """The number of rollouts that the run has drawn."""
        return self.collector.rollouts

    def _read(self, source: Source, key: str) -> list[Prompt]:
        """The prompts that leave room for a completion in the context, and for which completions can be judged."""
        room = self.policy.decoder.spec.context_length - self.rollout.max_new_tokens
        try:
            read = read_prompts(source, self.encoder, room)
        except UserError as error:
            raise UserError(f"data.{key}: {error}") from error
        rows = len(read.found) + len(read.left_out)
        if unjudged := read.unjudged([judge.reward for judge in self.rewards if judge.weight]):
            of = f"data.{key}: {len(unjudged)} of {rows} rows"
            if len(unjudged) == len(read.found):
                raise UserError(f"{of} cannot be judged whatever a completion says: {read.named(unjudged)}")
            rank_zero_warn(
                f"{of} left out, since they cannot be judged whatever a completion says: {read.named(unjudged)}"
            )
            self._metrics[f"{key}/unjudged"] = float(len(unjudged))
        if key == "prompts":
            self._check_rows(read)
        if not read.found:
            raise UserError(f"data.{key}: none of {rows} rows has a prompt of at most {room} tokens before its answer")
        if left_out := len(read.left_out):
            rank_zero_info(f"data.{key}: {left_out} of {rows} rows left out: no prompt, or one of over {room} tokens")
            self._metrics[f"{key}/left_out"] = float(left_out)
        return [prompt for prompt, row in zip(read.found, read.rows, strict=True) if row not in unjudged]

    def _check_rows(self, read: Prompts) -> None:
        for prompt, row in zip(read.found, read.rows, strict=True):
            try:
                self.policy.check_row(prompt.row)
            except UserError as error:
                raise UserError(f"data.prompts: {where(read.source, row)}: {error}") from error

    # Lightning

    def setup(self, stage: str) -> None:
        """Checks the run before the model is loaded, for training or validation."""
        context, longest = read_spec(self.policy.model).context_length, self.rollout.max_new_tokens
        if longest >= context:
            raise UserError(
                f"data.rollout.max_new_tokens: {longest} leave no room for a prompt in a context of {context}"
            )
        assert self.trainer is not None
        check_ranks(self.trainer, self.engine)
        if stage == "fit":
            check_trainer(self.trainer)
            check_policy(self.policy, self.engine, self.rollout)
            check_rewards(self.policy, self.rewards)
            if self.policy.global_step == 0:  # what is left of another fit with this object is none of this one's
                vars(self).pop("collector", None)

    def train_dataloader(self) -> SampleLoader:
        trainer = self.trainer
        assert trainer is not None
        # Lightning counts micro-batches; a step of the run so far may have had another number of them.
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        count_batches(trainer, trainer.global_step * trainer.accumulate_grad_batches - done)
        return SampleLoader(self._batches, trainer.max_steps * trainer.accumulate_grad_batches)

    def val_dataloader(self) -> SampleLoader | list[Any]:
        return [] if self.held_out is None else SampleLoader(self._evaluate, 1)

    def teardown(self, stage: str) -> None:
        if "sampler" in vars(self):
            vars(self).pop("sampler").sampler.close()

    def on_exception(self, exception: BaseException) -> None:
        """Ends the processes of engine and rewards, because Lightning does not tear down data after an error."""
        self.teardown("fit")

    def state_dict(self) -> dict[str, Any]:
        """The position in the prompts and the samples that were not learned from yet. Equal on every rank."""
        return {**self.collector.state_dict(self.policy.version), "settings": self._settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_resumed(state_dict.get("settings", {}), self._settings())
        self.collector.load_state_dict(state_dict)

    def _settings(self) -> dict[str, Any]:
        """The settings that give the checkpoint's samples and its position in the prompts their meaning."""
        return {
            **self.policy.sample_settings(),
            "samples_per_prompt": self.rollout.samples_per_prompt,
            "max_new_tokens": self.rollout.max_new_tokens,
            "thinking": self.thinking,
            "mask_truncated": self.rollout.mask_truncated,
            "rewards": {
                name: [type(each.reward).__name__, weight]
                for (name, weight), each in zip(weights_by_name(self.rewards).items(), self.rewards, strict=True)
            },
            "prompt_order": type(self._order).__name__,
            "seed": self.seed,
            **({"max_staleness": self.rollout.max_staleness} if self.rollout.max_staleness else {}),
            "prompts": prompts_state(self.prompts),
        }

    # batches

    def _batches(self) -> Iterator[PolicyBatch]:
        """Yields this rank's micro-batches. When those of a rollout are used up, the next rollout is collected."""
        while True:
            if not self.collector.pending:
                if self.policy.reference is not None:
                    self._metrics |= self.policy.reference.begin(self.collector.rollouts)
                samples, metrics = self.collector.collect(self.sampler)
                self._metrics |= metrics
                self._tell("train", samples)
            for batch in self.collector.begin(self.policy):
                batch.metrics, self._metrics = self._metrics, {}
                yield batch

    def _evaluate(self) -> Iterator[Mapping[str, float]]:
        """Yields the metrics of the held-out prompts under the newest weights."""
        assert self.held_out is not None
        if "collector" in vars(self):
            self.collector.settle()
        size = self.held_out.samples_per_prompt
        groups, agreement = self.sampler.draw(asked(self.held_out_prompts, size, self.seed, rollout=-1))
        samples = [Sample(**vars(sample), learned=False) for group in groups for sample in group]
        self._tell("val", samples)
        yield describe(samples, size) | agreement

    def _tell(self, stage: Stage, samples: Sequence[Sample]) -> None:
        for listener in self.listeners:
            listener(stage, samples)


class SampleLoader:
    """The loader that Lightning iterates over. It makes batches when they are requested.

    It has a length, because Lightning reads one batch ahead of loaders without one: the next rollout would then use the
    weights before the last update.
    """

    def __init__(self, batches: Callable[[], Iterator[Any]], length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def state_dict(self) -> dict[str, Any]:
        """Empty, because the data module keeps the state; Lightning drops a loader's state at the end of an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing (see `state_dict`)."""

"""Where a policy's batches come from: prompts, completions, rewards, log-probs, advantages.

Everything that happens between two sets of weights happens here, once per rollout, so that a training step is a loss
and nothing else. Shape suffixes: N tokens of completions, P prompts, G samples of each.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import lightning as L
import numpy as np
import torch

from lnlit.checkpoint.folder import hf_config
from lnlit.data.chat import ChatEncoder, Document, row_messages
from lnlit.data.packing import BestFit, collate
from lnlit.data.tokenizer import load_tokenizer, pad_id
from lnlit.errors import UserError
from lnlit.interfaces import (
    PolicyBatch,
    PolicyWeights,
    Reward,
    RewardRequest,
    RolloutEngine,
    RolloutRequest,
    RolloutSampling,
    Source,
    TokenBatch,
)
from lnlit.models.weights import canonical_weights
from lnlit.modules.policy import PolicyModel
from lnlit.objectives.policy import sums
from lnlit.rewards.pool import RewardPool
from lnlit.rollout.order import PromptOrder, Uniform
from lnlit.rollout.sample import Prompt, Sample, balanced, describe, request_seed, rewards_table
from lnlit.thinking import Thinking, on_or_off


@dataclass(frozen=True)
class Weighted:
    """A reward and its share of the sum. `name` is what it is logged as, by default its class."""

    reward: Reward
    weight: float = 1.0
    name: str | None = None


class Experience(L.LightningDataModule):
    """Samples `samples_per_prompt` completions of each of `prompts_per_rollout` prompts with the newest weights, and
    spreads them over `updates_per_rollout` optimizer steps of `trainer.accumulate_grad_batches` micro-batches each.

    Args:
        tokenizer: model folder whose tokenizer and chat template to use.
        prompts: rows with `messages`; a last assistant turn is left out of the prompt.
        rewards: what completions are judged by.
        engine: generates the completions.
        prompts_per_rollout: new prompts for each rollout.
        samples_per_prompt: at least 2, as a sample is judged by its siblings.
        max_new_tokens: length limit of a completion.
        updates_per_rollout: optimizer steps on one rollout's samples; each sample is used once.
        truncated: "keep" learns from completions that hit the limit; "mask" does not, but counts their rewards.
        thinking: toggle for rows that have none.
        reward_workers: processes that judge.
        proof: how many samples of each rollout the trainer scores again, to prove that the engine has its weights.
        max_logprob_difference: the run stops where a token's log-prob differs by more between engine and trainer.
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
        truncated: Literal["keep", "mask"] = "keep",
        thinking: Thinking | bool | None = None,
        reward_workers: int = 2,
        proof: int = 4,
        max_logprob_difference: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"max_new_tokens": max_new_tokens, "updates_per_rollout": updates_per_rollout, "proof": proof}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"data.{name}: expected a positive number, got {value}")
        if samples_per_prompt < 2:
            raise UserError(
                f"data.samples_per_prompt: a sample is judged by its siblings, so 2 or more; got {samples_per_prompt}"
            )
        if prompts_per_rollout < updates_per_rollout:
            raise UserError(
                f"data.prompts_per_rollout: {prompts_per_rollout} prompts cannot be spread over {updates_per_rollout} "
                "updates"
            )
        self.tokenizer_name, self.source, self.engine = tokenizer, prompts, engine
        self.weights = {r.name or type(r.reward).__name__: r.weight for r in rewards}
        if len(self.weights) < len(rewards):
            raise UserError(f"data.rewards: two are called the same of {', '.join(self.weights)}; give them names")
        self.pool = RewardPool(dict(zip(self.weights, (r.reward for r in rewards), strict=True)), reward_workers)
        self.prompts_per_rollout, self.samples_per_prompt = prompts_per_rollout, samples_per_prompt
        self.max_new_tokens, self.updates_per_rollout = max_new_tokens, updates_per_rollout
        self.truncated, self.seed = truncated, seed
        self.thinking: Thinking | None = None if thinking is None else on_or_off(thinking)
        self.proof, self.max_logprob_difference = proof, max_logprob_difference
        self.rollouts = 0
        self.pending: deque[PolicyBatch] = deque()
        self._seconds: dict[str, float] = {}

    @cached_property
    def encoder(self) -> ChatEncoder:
        return ChatEncoder(load_tokenizer(self.tokenizer_name), self.thinking)

    @cached_property
    def prompts(self) -> list[Prompt]:
        found = []
        for row in self.source.rows():
            messages = row_messages(row, self.thinking)
            while messages and messages[-1]["role"] == "assistant":
                messages.pop()
            if messages:
                found.append(Prompt(messages, tuple(self.encoder.encode_prompt(messages)), row))
        return found

    @cached_property
    def order(self) -> PromptOrder:
        order = Uniform()
        order.start([prompt.row for prompt in self.prompts], self.seed, 0)
        return order

    @property
    def policy(self) -> PolicyModel:
        module = self.trainer.lightning_module  # type: ignore[union-attr]
        if not isinstance(module, PolicyModel):
            raise UserError(f"data: Experience feeds GRPO and RLOO, not {type(module).__name__}")
        return module

    # Lightning

    def train_dataloader(self) -> ExperienceLoader:
        trainer = self.trainer
        assert trainer is not None
        if trainer.max_steps < 0:
            raise UserError("trainer.max_steps: rollouts have no end, so say how many optimizer steps to train")
        if trainer.world_size > 1:  # every rank would sample and learn the same
            raise UserError(f"trainer: Experience runs on one process so far, not on {trainer.world_size}")
        fewest = self.prompts_per_rollout // self.updates_per_rollout * self.samples_per_prompt
        if fewest < trainer.accumulate_grad_batches:
            raise UserError(
                f"trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches} micro-batches cannot be made of "
                f"an update's {fewest} samples; lower it, or raise data.prompts_per_rollout"
            )
        return ExperienceLoader(self, trainer.max_steps * trainer.accumulate_grad_batches)

    def teardown(self, stage: str) -> None:
        self.engine.close()
        self.pool.close()

    def state_dict(self) -> dict[str, Any]:
        """Where the prompts are, and what was sampled but not yet learned from."""
        pending = [_to_state(batch) for batch in self.pending]
        return {"rollouts": self.rollouts, "order": self.order.state_dict(), "pending": pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rollouts = state_dict["rollouts"]
        self.order.load_state_dict(state_dict["order"])
        self.pending = deque(_from_state(batch) for batch in state_dict["pending"])

    # one rollout

    def collect(self) -> list[PolicyBatch]:
        """The micro-batches of one rollout, in the order in which they are learned from."""
        self._seconds = {}
        samples = self._generate([self.prompts[index] for index in self.order.take(self.prompts_per_rollout)])
        with self._phase("reward"):
            self._judge(samples)
        with self._phase("score"):
            metrics = self._prove(samples)
            parts = list(self._parts(samples))
            batches = [self._batch([samples[index] for index in part]) for part in parts]
            self._score(batches)
        metrics |= describe(samples, self.samples_per_prompt)  # of the rewards as given
        self._learn(samples, parts, batches)
        metrics |= {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        metrics |= {f"rewards/{kind}": float(count) for kind, count in self.pool.outcomes.items()}
        batches[0].metrics = metrics
        self.rollouts += 1
        return batches

    def _generate(self, prompts: Sequence[Prompt]) -> list[Sample]:
        policy = self.policy
        with self._phase("sync"):
            self.engine.wake()
            spec = policy.decoder.spec
            weights = PolicyWeights(spec, hf_config(spec), canonical_weights(policy.decoder), policy.global_step)
            self.engine.load_weights(weights)
        sampling = RolloutSampling(self.max_new_tokens, policy.temperature, tuple(self.encoder.end_ids()))
        owners = [prompt for prompt in prompts for _ in range(self.samples_per_prompt)]
        requests = [
            RolloutRequest(
                prompt.token_ids, request_seed(self.seed, self.rollouts, *divmod(at, self.samples_per_prompt))
            )
            for at, prompt in enumerate(owners)
        ]
        with self._phase("generate"):
            rollouts = self.engine.generate(requests, sampling)
            self.engine.sleep()
        texts = self.encoder.tokenizer.batch_decode([list(r.token_ids) for r in rollouts], skip_special_tokens=True)
        return [Sample(*parts) for parts in zip(owners, rollouts, texts, strict=True)]

    def _judge(self, samples: Sequence[Sample]) -> None:
        requests = [RewardRequest(s.prompt.messages, s.text, s.truncated, s.prompt.row) for s in samples]
        for sample, rewards in zip(samples, self.pool.score(requests), strict=True):
            sample.rewards = rewards
            shares = [
                math.nan if result.value is None else self.weights[name] * result.value
                for name, result in rewards.items()
            ]
            sample.reward = sum(shares)

    def _prove(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The trainer's log-probs of a few samples beside the engine's. Raises `UserError` where they disagree."""
        step = max(len(samples) // self.proof, 1)
        batch = self._batch(samples[::step][: self.proof])
        assert batch.engine_N is not None
        difference_N = (self.policy.current_log_probs(batch.tokens) - batch.engine_N).abs()
        largest = difference_N.max().item() if len(difference_N) else 0.0
        if not largest <= self.max_logprob_difference:
            raise UserError(
                f"after sync {self.rollouts}: engine and trainer disagree by {largest:.3g} nats about a token; "
                f"data.max_logprob_difference allows {self.max_logprob_difference}. Either the engine has other "
                "weights than the trainer, or it computes in too low a precision."
            )
        return {
            "sampling/logp_difference/max": largest,
            "sampling/logp_difference/mean": difference_N.mean().item(),
        }

    # batches

    def _parts(self, samples: Sequence[Sample]) -> Iterator[list[int]]:
        """The samples of each micro-batch: whole prompts to each update, then about as many tokens to each part."""
        groups = len(samples) // self.samples_per_prompt
        for update in range(self.updates_per_rollout):
            first, end = (
                groups * (update + more) // self.updates_per_rollout * self.samples_per_prompt for more in (0, 1)
            )
            sizes = [sample.tokens for sample in samples[first:end]]
            for part in balanced(sizes, self.trainer.accumulate_grad_batches):  # type: ignore[union-attr]
                yield [first + index for index in part]

    def _batch(self, samples: Sequence[Sample]) -> PolicyBatch:
        """Packed rows of the samples, without advantages yet. A masked sample's tokens have no labels."""
        documents, learned = [], []
        for sample in samples:
            answer, masked = sample.rollout.token_ids, self.truncated == "mask" and sample.truncated
            mask = [False] * len(sample.rollout.prompt_ids) + [not masked] * len(answer)
            documents.append(Document([*sample.rollout.prompt_ids, *answer], mask))
            learned.append(0 if masked else len(answer))
        lengths = [len(document) for document in documents]
        capacity = max(lengths, default=1)
        packs = BestFit(capacity).rows(np.array(lengths))
        order = [number for pack in packs for number, _, _ in pack]
        rows = [[documents[number] for number, _, _ in pack] for pack in packs]
        tokens = collate(rows, capacity, pad_id(self.encoder.tokenizer))
        sample_N = torch.repeat_interleave(torch.tensor(order), torch.tensor([learned[number] for number in order]))
        engine = [p for number in order if learned[number] for p in samples[number].rollout.logprobs]
        batch = PolicyBatch(
            tokens,
            sample_N,
            len(samples),
            advantages_N=torch.zeros(len(sample_N), dtype=torch.float64),
            engine_N=torch.tensor(engine, dtype=torch.float32),
            max_new_tokens=self.max_new_tokens,
        )
        return self.trainer.strategy.batch_to_device(batch)  # type: ignore[union-attr]

    def _score(self, batches: Sequence[PolicyBatch]) -> None:
        """Log-probs that must be known before the weights change: the policy's own for all but the first update."""
        policy = self.policy
        first = len(batches) // self.updates_per_rollout
        for index, batch in enumerate(batches):
            batch.reference_N = policy.reference_log_probs(batch.tokens)
            if index >= first or policy.kl.in_reward:
                batch.old_N = policy.current_log_probs(batch.tokens)

    def _learn(self, samples: Sequence[Sample], parts: Sequence[list[int]], batches: Sequence[PolicyBatch]) -> None:
        """Advantages, of rewards less the divergence from the reference where that is part of the reward."""
        policy = self.policy
        if policy.kl.in_reward:
            for part, batch in zip(parts, batches, strict=True):
                assert batch.old_N is not None and batch.reference_N is not None
                divergence_S = sums(batch.old_N - batch.reference_N, batch.sample_N, batch.samples)
                for index, divergence in zip(part, divergence_S.tolist(), strict=True):
                    samples[index].reward -= policy.kl.weight * divergence
        advantages = policy.advantages(rewards_table(samples, self.samples_per_prompt)).flatten()
        for part, batch in zip(parts, batches, strict=True):
            batch.advantages_N = advantages[part].to(batch.sample_N.device)[batch.sample_N]
        for sample, advantage in zip(samples, advantages.tolist(), strict=True):
            sample.advantage = advantage

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start


class ExperienceLoader:
    """Micro-batches, a rollout at a time: a new one begins when the last one is used up.

    It has a length, because Lightning reads one batch ahead of loaders without: the next rollout would come from the
    weights before the last update.
    """

    def __init__(self, data: Experience, micro_batches: int) -> None:
        self.data, self.micro_batches = data, micro_batches

    def __len__(self) -> int:
        return self.micro_batches

    def __iter__(self) -> Iterator[PolicyBatch]:
        while True:
            if not self.data.pending:
                self.data.pending.extend(self.data.collect())
            yield self.data.pending.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the state, as Lightning drops a loader's at the end of an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""


def _to_state(batch: PolicyBatch) -> dict[str, Any]:
    state = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return state | {"tokens": {f.name: getattr(batch.tokens, f.name) for f in fields(batch.tokens)}}


def _from_state(state: dict[str, Any]) -> PolicyBatch:
    tokens = TokenBatch(**state["tokens"])
    return PolicyBatch(**{**state, "tokens": tokens})  # type: ignore[arg-type]

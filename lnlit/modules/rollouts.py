"""Prompts in, judged samples out, always by the policy's newest weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from lnlit.checkpoint.folder import hf_config
from lnlit.data.chat import ChatEncoder
from lnlit.data.tokenizer import pad_id
from lnlit.errors import UserError
from lnlit.interfaces import (
    PolicyWeights,
    Reward,
    RewardRequest,
    RewardResult,
    RolloutEngine,
    RolloutRequest,
    RolloutSampling,
)
from lnlit.models.ranks import everyones
from lnlit.models.weights import canonical_weights
from lnlit.modules.offload import offloaded
from lnlit.modules.sampled import SampledModel
from lnlit.rewards.pool import RewardPool
from lnlit.rl.batch import pack
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import Drawn, Judged

#: The share of tokens about which engine and trainer may disagree by more than they are allowed to.
_OUTSIDE = 0.01


@dataclass(frozen=True)
class Weighted:
    """A reward and its share of the sum. `name` is what it is logged as, by default its class."""

    reward: Reward
    weight: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise UserError(f"data.rewards: a weight must be a finite number, got {self.weight}")


class Phases:
    """Seconds spent on "sync", "generate", "reward" and "score", and who else is told when each starts and ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.listeners: list[Callable[[str, str], None]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._tell(name, "start")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self._tell(name, "end")

    def _tell(self, name: str, when: str) -> None:
        for listener in self.listeners:
            listener(name, when)


class Rollouts:
    """One engine and the rewards, for every rank: each generates and judges its share, and all get all samples.

    Args:
        engine: generates.
        rewards: judge.
        workers: processes that judge.
        encoder: renders prompts and reads completions.
        phases: where the time goes.
        proof: how many of a rank's samples the trainer scores again after each sync.
        max_difference: the run stops where more than one in a hundred of the tokens' log-probs differ by more nats
            between engine and trainer,
        mean_difference: and where they do by more on average.
        take_turns: engine and policy do, with the accelerator's memory.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        rewards: Sequence[Weighted],
        workers: int,
        encoder: ChatEncoder,
        phases: Phases,
        proof: int,
        max_difference: float,
        mean_difference: float,
        take_turns: bool,
    ) -> None:
        self.engine, self.encoder, self.phases = engine, encoder, phases
        self.weights = {r.name or type(r.reward).__name__: r.weight for r in rewards}
        if len(self.weights) < len(rewards):
            raise UserError(f"data.rewards: two are called the same of {', '.join(self.weights)}; give them names")
        self.pool = RewardPool(dict(zip(self.weights, (r.reward for r in rewards), strict=True)), workers)
        self.proof, self.take_turns = proof, take_turns
        self.max_difference, self.mean_difference = max_difference, mean_difference
        self._version: int | None = None
        self._proven = False

    def sync(self, policy: SampledModel) -> None:
        """Hand the engine the policy's weights, unless it has these already. Collective."""
        if self._version == policy.global_step:
            return
        self._version, self._proven = None, False
        with self.phases("sync"):
            self.engine.wake()
            spec = policy.decoder.spec
            weights = PolicyWeights(spec, hf_config(spec), canonical_weights(policy.decoder), policy.global_step)
            self.engine.load_weights(weights)
        self._version = policy.global_step

    def rest(self) -> None:
        """Nothing is generated until the next sync. Where all memory is everybody's, the engine may stay awake."""
        if self.take_turns:
            self.engine.sleep()
            self._version = None

    def close(self) -> None:
        try:
            self.engine.close()
        finally:
            self.pool.close()

    def sample(
        self, policy: SampledModel, prompts: Sequence[tuple[Prompt, Sequence[int]]], max_new_tokens: int
    ) -> tuple[list[Judged], dict[str, float]]:
        """(samples, how well engine and trainer agree where that was not looked at since the last sync). Each prompt
        comes with the seeds of its samples. Collective.
        """
        rank, ranks = policy.trainer.global_rank, policy.trainer.world_size
        self.sync(policy)
        mine: list[Judged] = []
        if share := prompts[rank::ranks]:  # few prompts, as where some are replaced, leave a rank none
            drawn = self._generate(policy, share, RolloutSampling(max_new_tokens, policy.temperature, self._ends))
            with self.phases("reward"):
                mine = self._judge(drawn)
        else:
            self.rest()
        agreement = {}
        if not self._proven and len(prompts) >= ranks:
            with self.phases("score"):
                agreement = self._prove(policy, mine)
            self._proven = True
        groups: list[Sequence[Judged]] = [()] * len(prompts)
        for other, theirs in enumerate(everyones(mine)):
            at = 0
            for index in range(other, len(prompts), ranks):
                count = len(prompts[index][1])
                groups[index] = theirs[at : at + count]
                at += count
        return [sample for group in groups for sample in group], agreement

    def counts(self) -> dict[str, int]:
        """What went wrong so far and was put right or left out, over all ranks."""
        mine = {f"rewards/{kind}": count for kind, count in self.pool.outcomes.items()}
        for name, reward in self.pool.rewards.items():  # a judge knows more than that it gave none
            reasons = getattr(reward, "outcomes", {})
            mine |= {f"rewards/{name}/{reason}": count for reason, count in reasons.items()}
        mine |= {f"engine/{kind}": count for kind, count in self.engine.counts().items()}
        total: dict[str, int] = {}
        for counts in everyones(mine):
            for kind, count in counts.items():
                total[kind] = total.get(kind, 0) + count
        return total

    @property
    def _ends(self) -> tuple[int, ...]:
        return tuple(self.encoder.end_ids())

    def _generate(
        self, policy: SampledModel, prompts: Sequence[tuple[Prompt, Sequence[int]]], sampling: RolloutSampling
    ) -> list[Drawn]:
        owners = [prompt for prompt, seeds in prompts for _ in seeds]
        requests = [RolloutRequest(prompt.token_ids, seed) for prompt, seeds in prompts for seed in seeds]
        with self.phases("generate"), offloaded(policy) if self.take_turns else nullcontext():
            rollouts = self.engine.generate(requests, sampling)
            self.rest()  # before the policy comes back
        texts = [self.encoder.completion(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]
        return [Drawn(*parts) for parts in zip(owners, rollouts, texts, strict=True)]

    def _judge(self, samples: Sequence[Drawn]) -> list[Judged]:
        requests = [RewardRequest(s.prompt.messages, s.text, s.truncated, s.prompt.row) for s in samples]
        judged = zip(samples, self.pool.score(requests), strict=True)
        return [Judged(s.prompt, s.rollout, s.text, rewards, self._sum(rewards)) for s, rewards in judged]

    def _sum(self, rewards: Mapping[str, RewardResult]) -> float:
        """What is only watched decides nothing, not even by its absence."""
        return sum(
            math.nan if result.value is None else self.weights[name] * result.value
            for name, result in rewards.items()
            if self.weights[name]
        )

    def _prove(self, policy: SampledModel, samples: Sequence[Judged]) -> dict[str, float]:
        """The trainer's log-probs of a few samples beside the engine's. Raises `UserError` where they disagree, and
        where the engine has none to show: all ranks do, for all look at the largest difference.
        """
        finite = [sample for sample in samples if sample.is_finite]
        chosen = finite[:: max(len(finite) // self.proof, 1)][: self.proof] or samples[:1]
        packed = pack(chosen, [True] * len(chosen), pad_id(self.encoder.tokenizer))
        trainer_N = policy.current_log_probs(policy.trainer.strategy.batch_to_device(packed.tokens)).cpu()
        difference_N = (trainer_N - packed.join([sample.engine_log_probs for sample in chosen])).abs()
        if not finite:  # other ranks may have some
            difference_N = difference_N[:0]
        largest = difference_N.max().item() if len(difference_N) else 0.0
        everyone = everyones((largest, difference_N.double().sum().item(), len(difference_N)))
        tokens = sum(count for *_, count in everyone)
        if not tokens:
            raise UserError(
                f"after the sync at step {policy.global_step}: the engine gave no log-probs that are finite, for none "
                "of its samples, so there is nothing to learn from. Its weights or its precision are broken."
            )
        largest = max((largest for largest, _, _ in everyone), key=lambda value: (math.isnan(value), value))
        mean = sum(total for _, total, _ in everyone) / tokens
        # A token or two in a thousand may be far apart where precision is low; of another model's all are.
        outside = sum(everyones(int((~(difference_N <= self.max_difference)).sum())))
        if not mean <= self.mean_difference or outside > tokens * _OUTSIDE:
            raise UserError(
                f"after the sync at step {policy.global_step}: engine and trainer disagree by {mean:.3g} nats a token "
                f"on average (data.mean_logprob_difference allows {self.mean_difference}), and by more than "
                f"{self.max_difference} (data.max_logprob_difference) about {outside} of {tokens} tokens, where one in "
                "a hundred may be. Either the engine has other weights than the trainer, or it computes in too low a "
                "precision."
            )
        return {
            "sampling/logp_difference/max": largest,
            "sampling/logp_difference/mean": mean,
            "sampling/logp_difference/outside": outside / tokens,
        }

"""The one machine that samples: prompts in, judged completions out, the same on any number of ranks.

It does not know who asks, nor what for.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from lnlit.data.chat import ChatEncoder
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
from lnlit.journal import Journal
from lnlit.models.ranks import everyones, my_place
from lnlit.progress import track
from lnlit.rewards.pool import RewardPool
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import Drawn, Judged


@dataclass(frozen=True)
class Weighted:
    """A reward and its share of the sum. `name` is what it is logged as, by default its class."""

    reward: Reward
    weight: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise UserError(f"data.rewards: a weight must be a finite number, got {self.weight}")


@dataclass(frozen=True)
class Asked:
    """A prompt and the seeds of its completions."""

    prompt: Prompt
    seeds: Sequence[int]


def asked(prompts: Sequence[Prompt], samples: int, run: int, rollout: int, first: int = 0) -> list[Asked]:
    """Prompts with the seeds of their places: `first` is the place of the first one in its rollout."""
    return [
        Asked(prompt, [request_seed(run, rollout, place, sample) for sample in range(samples)])
        for place, prompt in enumerate(prompts, start=first)
    ]


def request_seed(run: int, rollout: int, prompt: int, sample: int) -> int:
    """Of one completion of a run: the same after a restart and whatever it is batched with, different for all others.

    63 bits, as engines take signed numbers.
    """
    name = f"{run}/{rollout}/{prompt}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


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


class Sampler:
    """One engine and the rewards, for every rank: each generates and judges its share, and all get all samples.

    Args:
        engine: Generates.
        rewards: Judge.
        workers: Processes that judge.
        encoder: Reads completions, and knows what ends them.
        sampling: How completions are drawn; its `end_ids` are the encoder's.
        phases: Where the time goes.
        memory: For who shares the accelerator with the engine: what it holds is put away inside this context while the
            engine generates, which sleeps before it comes back. None lets the engine stay awake.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        rewards: Sequence[Weighted],
        workers: int,
        encoder: ChatEncoder,
        sampling: RolloutSampling,
        phases: Phases,
        memory: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.engine, self.encoder, self.sampling, self.phases, self.memory = engine, encoder, sampling, phases, memory
        self.weights = {each.name or type(each.reward).__name__: each.weight for each in rewards}
        if len(self.weights) < len(rewards):
            raise UserError(f"data.rewards: two are called the same of {', '.join(self.weights)}; give them names")
        self.pool = RewardPool(dict(zip(self.weights, (each.reward for each in rewards), strict=True)), workers)
        #: How often weights were loaded, and of which version the engine's are: None while it has none.
        self.loads = 0
        self.version: int | None = None

    def load(self, version: int, weights: Callable[[], PolicyWeights]) -> None:
        """Hand the engine weights, unless it has these already. Collective, where the weights are spread over ranks."""
        if self.version == version:
            return
        self.version = None
        with self.phases("sync"):
            self.engine.wake()
            self.engine.load_weights(weights())
        self.version, self.loads = version, self.loads + 1

    def draw(self, asked: Sequence[Asked]) -> list[list[Judged]]:
        """The judged completions of each prompt. Collective: ranks take turns at the prompts."""
        rank, ranks = my_place()
        mine: list[list[Judged]] = []
        if share := asked[rank::ranks]:  # few prompts, as where some are replaced, leave a rank none
            drawn = self._generate(share)
            with self.phases("reward"):
                judged = iter(self._judge(drawn))
            mine = [[next(judged) for _ in each.seeds] for each in share]
        else:
            self._rest()
        found: list[list[Judged]] = [[]] * len(asked)
        for other, theirs in enumerate(everyones(mine)):
            found[other::ranks] = theirs
        return found

    def counts(self) -> dict[str, int]:
        """What went wrong so far and was put right or left out, over all ranks."""
        mine = {f"rewards/{kind}": count for kind, count in self.pool.outcomes.items()}
        for name, reward in self.pool.rewards.items():  # a judge knows more than that it gave none
            mine |= {f"rewards/{name}/{reason}": count for reason, count in reward.counts().items()}
        mine |= {f"engine/{kind}": count for kind, count in self.engine.counts().items()}
        total: dict[str, int] = {}
        for counts in everyones(mine):
            for kind, count in counts.items():
                total[kind] = total.get(kind, 0) + count
        return total

    def close(self) -> None:
        """End the engine's and the rewards' processes. The next load begins anew."""
        self.version = None
        with ExitStack() as stack:
            stack.callback(self.pool.close)
            stack.callback(self.engine.close)

    def _rest(self) -> None:
        """Nothing is generated until the next load. Where all memory is everybody's, the engine may stay awake."""
        if self.memory is not None:
            self.engine.sleep()
            self.version = None

    def _generate(self, asked: Sequence[Asked]) -> list[Drawn]:
        owners = [each.prompt for each in asked for _ in each.seeds]
        requests = [RolloutRequest(each.prompt.token_ids, seed) for each in asked for seed in each.seeds]
        with self.phases("generate"), self.memory() if self.memory else nullcontext():
            rollouts = self.engine.generate(requests, self.sampling)
            self._rest()  # before what was put away comes back
        texts = [self.encoder.completion(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]
        return [Drawn(*parts) for parts in zip(owners, rollouts, texts, strict=True)]

    def _judge(self, drawn: Sequence[Drawn]) -> list[Judged]:
        requests = [RewardRequest(each.prompt.messages, each.text, each.truncated, each.prompt.row) for each in drawn]
        verdicts = zip(drawn, self.pool.score(requests), strict=True)
        return [Judged(each.prompt, each.rollout, each.text, rewards, self._sum(rewards)) for each, rewards in verdicts]

    def _sum(self, rewards: Mapping[str, RewardResult]) -> float:
        """What is only watched decides nothing, not even by its absence."""
        return sum(
            math.nan if result.value is None else self.weights[name] * result.value
            for name, result in rewards.items()
            if self.weights[name]
        )


def first_failure(judged: Sequence[Judged]) -> tuple[str, str | None] | None:
    """Where no sample could be judged at all: the reward that did not judge the first one, and why."""
    if not all(math.isnan(sample.reward) for sample in judged):
        return None
    return next((name, result.error) for name, result in judged[0].rewards.items() if result.value is None)


def sample_into(
    journal: Journal,
    sampler: Sampler,
    asked: Sequence[Asked],
    prompts_per_round: int,
    row: Callable[[Sequence[Judged]], Mapping[str, object]],
    what: str,
) -> None:
    """Append one row for each prompt, made of its samples, round by round. What the journal holds is not sampled again;
    a round that was cut is, whole, so that it is batched as it would have been.

    Raises `UserError` where nothing in a round could be judged: that is a fault of the reward, unless the round is but
    the rest after whole ones.
    """
    if len(journal) < len(asked):
        journal.keep(len(journal) // prompts_per_round * prompts_per_round)
    done = len(journal)
    rounds = [asked[first : first + prompts_per_round] for first in range(done, len(asked), prompts_per_round)]
    for part in track(rounds, what, "prompt", total=len(asked), done=done, size=len):
        groups = sampler.draw(part)
        is_rest = len(journal) > 0 and len(part) < prompts_per_round
        judged = [sample for group in groups for sample in group]
        if len(part) > 1 and not is_rest and (failure := first_failure(judged)):
            raise UserError(
                f"reward: none of {len(judged)} completions could be judged; the first: {failure[1]}. What was done "
                "before is kept."
            )
        journal.append(*map(row, groups))

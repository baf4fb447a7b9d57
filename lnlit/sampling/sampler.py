"""The sampler: from prompts to judged completions, with the same result on any number of ranks.

It does not know what the samples are for.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from lnlit.errors import UserError
from lnlit.interfaces import (
    PolicyWeights,
    Reward,
    RewardRequest,
    RewardResult,
    Rollout,
    RolloutEngine,
    RolloutRequest,
    RolloutSampling,
)
from lnlit.journal import Journal
from lnlit.models.ranks import all_gather, my_place
from lnlit.progress import track
from lnlit.rewards.pool import RewardPool
from lnlit.rollout.shared import place_among, shared
from lnlit.sampling.prompt import Prompt, PromptEncoder, TokenEncoder
from lnlit.sampling.sample import Drawn, Judged

T = TypeVar("T")
Made = TypeVar("Made", bound=Drawn)
#: What there is of each prompt: its seeds, or its completions.
Of = TypeVar("Of", bound=Sized)

#: The largest number of fp32.
_LARGEST = 3.4e38


@dataclass(frozen=True)
class Weighted:
    """A reward with its weight in the sum. `name` is its name in logs, by default that of its class. A reward of weight
    0 is logged and not learned from."""

    reward: Reward
    weight: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise UserError(f"data.rewards: a weight must be a finite number, got {self.weight}")


def weights_by_name(rewards: Sequence[Weighted]) -> dict[str, float]:
    """The weight of each reward by its name. Raises `UserError` for two of one name."""
    names = [each.name or type(each.reward).__name__ for each in rewards]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"data.rewards: two are called {twice[0]}; give each a name of its own.")
    return {name: each.weight for name, each in zip(names, rewards, strict=True)}


@dataclass(frozen=True)
class Asked:
    """A prompt and the seeds of its completions."""

    prompt: Prompt
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)


def asked(prompts: Sequence[Prompt], samples: int, run: int, rollout: int, first: int = 0) -> list[Asked]:
    """Prompts with the seeds of their completions. `first` is the position of the first prompt in its rollout."""
    return [
        Asked(prompt, [request_seed(run, rollout, place, sample) for sample in range(samples)])
        for place, prompt in enumerate(prompts, start=first)
    ]


def request_seed(run: int, rollout: int, prompt: int, sample: int) -> int:
    """The seed of one completion of a run. It is the same after a restart and in any batch, and differs from all
    others.

    It has 63 bits, because engines take signed integers.
    """
    name = f"{run}/{rollout}/{prompt}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


class Phases:
    """Seconds spent on "sync", "generate", "reward" and "score". Listeners are called when a phase starts and ends."""

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
    """An engine with rewards, on every rank or shared by several. Each rank generates and judges its share, and then
    all ranks have all samples.

    Args:
        engine: The engine that generates completions.
        rewards: The rewards that judge them.
        workers: The number of processes that judge.
        encoder: Reads completions of tokens, and knows the tokens that end them.
        sampling: Sampling settings, whose `end_ids` are the encoder's.
        phases: Measures the time of each phase.
        memory: A context manager for a caller that shares the accelerator with the engine. Inside it, the caller's
            tensors are moved away while the engine generates, and the engine sleeps before they come back. None lets
            the engine stay awake.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        rewards: Sequence[Weighted],
        workers: int,
        encoder: PromptEncoder,
        sampling: RolloutSampling,
        phases: Phases,
        memory: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.engine = shared(engine)
        self.encoder, self.sampling, self.phases, self.memory = encoder, sampling, phases, memory
        self.weights = weights_by_name(rewards)
        self.pool = RewardPool(dict(zip(self.weights, (each.reward for each in rewards), strict=True)), workers)
        #: The number of loads, and the version of the engine's weights, None while it has none.
        self.loads = 0
        self.version: int | None = None

    def load(self, version: int, weights: Callable[[], PolicyWeights]) -> None:
        """Gives the engine new weights, unless it has them already or has a model of its own. Collective if the weights
        are sharded or the engine is shared."""
        if self.version == version:
            return
        self.version = None
        if self.engine.needs_weights:
            with self.phases("sync"):
                self.engine.wake()
                self.engine.load_weights(weights())
        self.version, self.loads = version, self.loads + 1

    def draw(self, asked: Sequence[Asked]) -> list[list[Judged]]:
        """The judged completions of each prompt. Collective: the prompts are divided among the ranks in turn."""
        return self._divided(asked, lambda share: self.judge(self._generate(share, self.sampling)))

    def complete(self, asked: Sequence[Asked], sampling: RolloutSampling | None = None) -> list[list[Drawn]]:
        """The completions of each prompt, which are not judged, by another `sampling` than the sampler's if there is
        one. Collective, as `draw` is."""
        return self._divided(asked, lambda share: self._generate(share, sampling or self.sampling))

    def begin(self, asked: Sequence[Asked]) -> Callable[[], list[list[Drawn]]]:
        """Begins to generate the completions of each prompt while the caller does something else. The engine must run
        apart, and not be used before the function that is returned has been called. It waits for the completions, and
        returns the same ones each time; the first call is collective."""
        share = self._share(asked, *my_place())
        waiting = ThreadPoolExecutor(1, "rollout")
        future = waiting.submit(self.engine.generate, _requests(share), self.sampling)
        waiting.shutdown(wait=False)

        @cache
        def finish() -> list[list[Drawn]]:
            with self.phases("generate"):
                rollouts = future.result()
            return self._divided(asked, lambda share: self._drawn(share, rollouts))

        return finish

    def judge_all(self, drawn: Sequence[Sequence[Drawn]]) -> list[list[Judged]]:
        """The completions of each prompt with their rewards. Collective, as `draw` is."""
        return self._divided(drawn, lambda share: self.judge([each for group in share for each in group]))

    def judge(self, drawn: Sequence[Drawn]) -> list[Judged]:
        """The completions with their rewards. One that the engine could not get is not judged. Collective if a reward
        is."""
        with self.phases("reward"):
            there = [each for each in drawn if each.rollout.error is None]
            verdicts = iter(
                self.pool.score(
                    [RewardRequest(each.prompt.messages, each.text, each.truncated, each.prompt.row) for each in there]
                )
            )
            judged = []
            for each in drawn:
                error = each.rollout.error
                rewards = next(verdicts) if error is None else dict.fromkeys(self.weights, RewardResult(None, error))
                judged.append(Judged(each.prompt, each.rollout, each.text, rewards, self._sum(rewards)))
            return judged

    def _divided(self, asked: Sequence[Of], work: Callable[[Sequence[Of]], Sequence[Made]]) -> list[list[Made]]:
        """What `work` makes of each prompt's completions: each rank does its share, and then all ranks have all."""
        rank, ranks = my_place()
        share = self._share(asked, rank, ranks)
        made = iter(work(share))
        mine = [[next(made) for _ in range(len(each))] for each in share]
        found: dict[int, list[Made]] = {}
        for other, theirs in enumerate(all_gather(mine)):
            found |= zip(self._share(range(len(asked)), other, ranks), theirs, strict=True)
        return [found[index] for index in range(len(asked))]

    def _share(self, asked: Sequence[T], rank: int, ranks: int) -> Sequence[T]:
        """A rank's prompts. There may be none, if there are few, as where some are replaced."""
        return asked[place_among(rank, ranks, self.engine.ranks_per_engine) :: ranks]

    def counts(self) -> dict[str, int]:
        """How often each recovered fault or missing verdict has occurred so far, over all ranks."""
        mine = {f"rewards/{kind}": count for kind, count in self.pool.outcomes.items()}
        for name, reward in self.pool.rewards.items():  # a judge knows more than that it gave none
            mine |= {f"rewards/{name}/{reason}": count for reason, count in reward.counts().items()}
        mine |= {f"engine/{kind}": count for kind, count in self.engine.counts().items()}
        total: dict[str, int] = {}
        for counts in all_gather(mine):
            for kind, count in counts.items():
                total[kind] = total.get(kind, 0) + count
        return total

    def close(self) -> None:
        """Ends the processes of engine and rewards. The next load starts them again."""
        self.version = None
        with ExitStack() as stack:
            stack.callback(self.pool.close)
            stack.callback(self.engine.close)

    def _rest(self) -> None:
        """Called when nothing is generated until the next load. The engine sleeps if its memory is shared."""
        if self.memory is not None:
            self.engine.sleep()
            self.version = None

    def _generate(self, asked: Sequence[Asked], sampling: RolloutSampling) -> list[Drawn]:
        if not asked and self.engine.ranks_per_engine == 1:  # others may need this rank's device
            self._rest()
            return []
        with self.phases("generate"), self.memory() if self.memory else nullcontext():
            rollouts = self.engine.generate(_requests(asked), sampling)
            self._rest()  # before what was put away comes back
        return self._drawn(asked, rollouts)

    def _drawn(self, asked: Sequence[Asked], rollouts: Sequence[Rollout]) -> list[Drawn]:
        owners = [each.prompt for each in asked for _ in each.seeds]
        texts = [self._text(rollout) for rollout in rollouts]
        return [Drawn(*parts) for parts in zip(owners, rollouts, texts, strict=True)]

    def _text(self, rollout: Rollout) -> str:
        if rollout.text is not None:
            return rollout.text
        if rollout.error:
            return ""
        assert isinstance(self.encoder, TokenEncoder), "an engine that is asked in messages answers in texts"
        return self.encoder.completion(rollout.prompt_ids, rollout.token_ids)

    def _sum(self, rewards: Mapping[str, RewardResult]) -> float:
        """The weighted sum of a sample's rewards, NaN without any. Rewards of weight 0 are ignored, even if they are
        missing. Raises `UserError` for a sum that fp32, in which advantages are computed, cannot hold."""
        if not rewards:
            return math.nan
        found = sum(
            math.nan if result.value is None else self.weights[name] * result.value
            for name, result in rewards.items()
            if self.weights[name]
        )
        if abs(found) > _LARGEST:
            values = ", ".join(f"{self.weights[name]:g} x {rewards[name].value} ({name})" for name in rewards)
            raise UserError(
                f"data.rewards: the sum of {values} is beyond {_LARGEST:.2g}, fp32's largest. Lower a weight."
            )
        return found


def _requests(asked: Sequence[Asked]) -> list[RolloutRequest]:
    return [RolloutRequest(each.prompt.token_ids, seed, each.prompt.messages) for each in asked for seed in each.seeds]


def first_failure(judged: Sequence[Judged]) -> tuple[str, str | None] | None:
    """(name, reason) of the reward that did not judge the first sample, if no sample could be judged at all; else
    None."""
    if not judged or not judged[0].rewards or not all(math.isnan(sample.reward) for sample in judged):
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
    """Appends one row per prompt to the journal, computed from its samples, round by round. Prompts that the journal
    already holds are not sampled again. An interrupted round is repeated as a whole, so that it is batched in the same
    way.

    Raises `UserError` if the engine got no completion in a round, or none could be judged, which is not the fault of
    single prompts, unless it is a last, incomplete round.
    """
    if len(journal) < len(asked):
        journal.keep(len(journal) // prompts_per_round * prompts_per_round)
    done = len(journal)
    rounds = [asked[first : first + prompts_per_round] for first in range(done, len(asked), prompts_per_round)]
    for part in track(rounds, what, "prompt", total=len(asked), done=done, size=len):
        groups = sampler.draw(part)
        is_rest = len(journal) > 0 and len(part) < prompts_per_round
        judged = [sample for group in groups for sample in group]
        if len(part) > 1 and not is_rest and (failure := _whole_failure(judged)):
            raise UserError(f"{failure}. What was done before is kept.")
        journal.append(*map(row, groups))


def _whole_failure(judged: Sequence[Judged]) -> str | None:
    """What went wrong with all of some samples, or None if one of them was judged."""
    if all(sample.rollout.error for sample in judged):
        return f"engine: none of {len(judged)} completions could be had; the first: {judged[0].rollout.error}"
    if failure := first_failure(judged):
        return f"reward: none of {len(judged)} completions could be judged; the first: {failure[1]}"
    return None

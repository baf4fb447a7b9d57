"""Collects rollouts: from prompts to samples that are scored and compared, in the order in which they are learned from.

Everything that happens between two sets of weights happens here, so that a training step only computes a loss.

Shape suffixes: P prompts, G samples per prompt, R reward functions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from lnlit.errors import UserError
from lnlit.interfaces import Algorithm, PolicyBatch, PromptOrder, RewardTable
from lnlit.models.ranks import all_gather
from lnlit.rl.ahead import Ahead
from lnlit.rl.batch import Packed, micro_batches, pack, policy_batch
from lnlit.rl.metrics import describe
from lnlit.rl.on_policy import Learner, OnPolicySampler
from lnlit.sampling.history import Stage
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import Judged, Sample
from lnlit.sampling.sampler import Asked, Phases, asked, first_failure

#: The format of samples in a checkpoint.
_FORMAT = 2


@dataclass(frozen=True)
class RolloutConfig:
    """How many completions a rollout draws, and how they are spread over optimizer steps.

    All sizes are of the whole run, whatever the number of ranks.

    Args:
        prompts_per_rollout: The number of new prompts in each rollout.
        samples_per_prompt: The number of completions of each prompt: at least 2 if the algorithm compares a sample with
            its siblings.
        max_new_tokens: The length limit of a completion, in tokens.
        updates_per_rollout: The number of optimizer steps on the samples of one rollout. Each sample is used once.
        dynamic_sampling: How often at most to draw new prompts in place of those that teach the algorithm nothing,
            usually because their samples all have the same reward (DAPO, arXiv 2503.14476, section 3.2).
        mask_truncated: Do not learn from completions that reached the length limit. Their rewards still count in the
            mean of their prompt. RPO leaves out their whole prompt, because it compares all samples of a prompt.
        sleep_engine_while_training: Share the accelerator's memory: the engine sleeps while the policy trains, and the
            policy's weights, gradients and optimizer state wait in host memory while the engine generates.
        reward_workers: The number of processes that judge completions.
        max_staleness: 1 generates the next rollout while this one is learned from: one step off policy. Its samples are
            of the weights before this rollout's updates, and their old log-probs are the engine's. The engine runs in a
            process of its own. 0 generates with the newest weights only.
    """

    prompts_per_rollout: int
    samples_per_prompt: int
    max_new_tokens: int
    updates_per_rollout: int = 1
    dynamic_sampling: int = 0
    mask_truncated: bool = False
    sleep_engine_while_training: bool = False
    reward_workers: int = 2
    max_staleness: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        for name in ("samples_per_prompt", "max_new_tokens", "updates_per_rollout", "reward_workers"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"data.rollout.{name}: expected a positive number, got {value}")
        if self.dynamic_sampling < 0:
            raise UserError(
                f"data.rollout.dynamic_sampling: expected 0 or a positive number, got {self.dynamic_sampling}"
            )
        if self.max_staleness not in (0, 1):
            raise UserError(f"data.rollout.max_staleness: expected 0 or 1, got {self.max_staleness}")
        if self.max_staleness and self.sleep_engine_while_training:
            raise UserError(
                "data.rollout.max_staleness: the engine generates while the policy trains, and "
                "sleep_engine_while_training has it asleep then. Choose one of the two."
            )
        if self.prompts_per_rollout < self.updates_per_rollout:
            raise UserError(
                f"data.rollout.prompts_per_rollout: {self.prompts_per_rollout} prompts cannot be spread over "
                f"{self.updates_per_rollout} updates"
            )


@runtime_checkable
class RolloutData(Protocol):
    """A data module that samples during a run. It calls `listener(stage, samples)` with the stage "train" or "val" for
    all samples drawn, and measures the time of each phase."""

    listeners: list[Callable[[Stage, Sequence[Sample]], None]]
    phases: Phases


@dataclass
class Update:
    """The samples of one optimizer step. `packed` holds those micro-batches of this rank that were already built for
    scoring."""

    samples: list[Sample]
    packed: dict[int, Packed] = field(default_factory=dict)


class Collector:
    """Draws a rollout at a time into a buffer, and provides the state of the buffer for checkpoints.

    Args:
        prompts: The prompts to choose from.
        order: The order in which to choose them. It has been started.
        config: The sizes of a rollout.
        seed: The seed of the run, from which each sample's own seed is made.
        micro_batches: The number of micro-batches of an update, over all ranks.
        padding_id: The token that fills up rows.
        most: The number of rollouts in the whole run.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        order: PromptOrder,
        config: RolloutConfig,
        seed: int,
        micro_batches: int,
        padding_id: int,
        most: int,
    ) -> None:
        self.prompts, self.order, self.config, self.seed = prompts, order, config, seed
        self.micro_batches, self.padding_id, self.most = micro_batches, padding_id, most
        self.rollouts = 0
        #: Updates that were sampled but not yet learned from.
        self.pending: deque[Update] = deque()
        #: The current step and its samples, because a checkpoint written during an accumulation lacks its gradients.
        self._begun: tuple[int, Update] | None = None
        #: The next rollout, if it was begun before this one is learned from.
        self._ahead: Ahead | None = None

    def collect(self, source: OnPolicySampler) -> tuple[list[Sample], dict[str, float]]:
        """(all samples of a new rollout, metrics to log). Collective."""
        size, steps, sampler = self.config.samples_per_prompt, self.config.updates_per_rollout, source.sampler
        sampler.phases.seconds.clear()
        samples, chosen, metrics = self._draw(source)
        if self.config.max_staleness and self.rollouts + 1 < self.most:
            self._begin_next(source)
        rows = [group * size + at for group in chosen for at in range(size)]
        for row in rows:
            samples[row] = replace(samples[row], learned=self._is_learned(samples[row], source.learner.algorithm))
        ends = [len(chosen) * number // steps * size for number in range(steps + 1)]
        updates = [Update([samples[row] for row in rows[slice(*ends[n : n + 2])]]) for n in range(steps)]
        with sampler.phases("score"):
            for number, update in enumerate(updates):
                self._score(update, source.learner, is_first=number == 0)
        scored = self._compare([s for update in updates for s in update.samples], source.learner, sampler.weights)
        for update in updates:
            update.samples = [scored.pop(0) for _ in update.samples]
        learned = [sample for update in updates for sample in update.samples]
        for row, sample in zip(rows, learned, strict=True):
            samples[row] = sample
        self.pending.extend(updates)
        self.rollouts += 1
        metrics |= describe(samples, size) | sampler.counts()
        return samples, metrics | {f"time/{name}": seconds for name, seconds in sampler.phases.seconds.items()}

    def _draw(self, source: OnPolicySampler) -> tuple[list[Sample], list[int], dict[str, float]]:
        """(all samples that were drawn, the indices of the prompts among them to learn from, metrics to log)."""
        wanted, size = self.config.prompts_per_rollout, self.config.samples_per_prompt
        drawn, useful = [], []
        metrics: dict[str, float] = {}
        for _ in range(1 + self.config.dynamic_sampling):
            first = len(drawn) // size
            if self._ahead is not None:
                groups, agreement = source.judge(self._ahead.finish())
                self._ahead = None
            else:
                chosen = self.order.take(wanted - len(useful), self.rollouts)
                groups, agreement = source.draw(self._asked(chosen, self.rollouts, first))
            metrics |= agreement
            new = [Sample(**vars(sample), learned=False) for group in groups for sample in group]
            drawn += new
            table = reward_table(new, size, source.sampler.weights)
            flat = source.learner.algorithm.teaches_nothing(table).tolist()
            spare = [number for number, is_flat in enumerate(flat, start=first) if is_flat]
            useful += [number for number, is_flat in enumerate(flat, start=first) if not is_flat]
            if not spare:
                break
        if not self.rollouts and (failure := first_failure(drawn)):
            # Later, a judge may be down for a while; one without any verdict at the start never worked.
            name, why = failure
            raise UserError(
                f"data.rewards: none of the first {len(drawn)} completions could be judged; {name} of the first one: "
                f"{why}."
            )
        if self.config.dynamic_sampling:
            metrics["resampled"] = float(len(drawn) // size - wanted)
        metrics["sampling/nan_logprobs"] = float(sum(not sample.is_finite for sample in drawn))
        steps = [source.learner.version - sample.rollout.weight_version for sample in drawn]
        metrics["sampling/staleness"] = sum(steps) / len(steps)  # in optimizer steps
        # As they were drawn; the last flat ones fill what stayed empty.
        return drawn, sorted(useful + spare[: wanted - len(useful)]), metrics

    def _asked(self, prompts: Sequence[int], rollout: int, first: int = 0) -> list[Asked]:
        found = [self.prompts[index] for index in prompts]
        return asked(found, self.config.samples_per_prompt, self.seed, rollout, first)

    def _begin_next(self, source: OnPolicySampler) -> None:
        number = self.rollouts + 1
        prompts = self.order.take(self.config.prompts_per_rollout, number)
        self._ahead = Ahead(prompts, source.begin(self._asked(prompts, number)))

    def settle(self) -> None:
        """Waits for what is being generated, after which the engine may be used for something else. Collective."""
        if self._ahead is not None:
            self._ahead.finish()

    def _is_learned(self, sample: Judged, algorithm: Algorithm) -> bool:
        known = sample.is_finite and not (algorithm.needs.rewards and math.isnan(sample.reward))
        return known and not (self.config.mask_truncated and sample.truncated)

    def _score(self, update: Update, learner: Learner, is_first: bool) -> None:
        """Adds log-probs that must be computed before the weights change. Each rank computes those of its own
        micro-batches."""
        needs, is_stale = learner.algorithm.needs, self.config.max_staleness > 0
        if is_stale:
            update.samples = [replace(sample, old_log_probs=sample.engine_log_probs) for sample in update.samples]
        wants_old = (needs.old_log_probs or not is_first) and not is_stale
        wanted = {
            "old_log_probs": learner.log_probs if wants_old else None,
            "reference_log_probs": learner.reference_log_probs if needs.reference else None,
        }
        found: dict[int, dict[str, Any]] = {}
        for number, part in enumerate(self._parts(update.samples, learner) if any(wanted.values()) else []):
            samples = [update.samples[index] for index in part]
            packed = pack(samples, [True] * len(part), self.padding_id)  # all are compared
            if all(sample.learned for sample in samples):
                update.packed[number] = packed
            split = {name: packed.split(score(packed.tokens)) for name, score in wanted.items() if score}
            found |= {index: {name: parts[at] for name, parts in split.items()} for at, index in enumerate(part)}
        for theirs in all_gather(found):
            for index, values in theirs.items():
                update.samples[index] = replace(update.samples[index], **values)

    def _compare(self, samples: list[Sample], learner: Learner, weights: Mapping[str, float]) -> list[Sample]:
        """The samples with their advantages, which depend on the whole rollout."""
        table = reward_table(samples, self.config.samples_per_prompt, weights)
        advantages = learner.algorithm.advantages(table).flatten().tolist()
        return [replace(sample, advantage=value) for sample, value in zip(samples, advantages, strict=True)]

    # batches

    def begin(self, learner: Learner) -> Iterator[PolicyBatch]:
        """Yields this rank's micro-batches of the next optimizer step."""
        update = self.pending.popleft()
        self._begun = learner.version, update
        for number, part in enumerate(self._parts(update.samples, learner)):
            samples = [update.samples[index] for index in part]
            packed = update.packed.get(number)
            if packed is None:
                packed = pack(samples, [sample.learned for sample in samples], self.padding_id)
            yield policy_batch(packed, samples, self.config.samples_per_prompt, self.config.max_new_tokens)

    def _parts(self, samples: Sequence[Sample], learner: Learner) -> list[list[int]]:
        """The indices of the samples in each micro-batch of this rank."""
        whole = learner.algorithm.needs.whole_prompts
        rank, ranks = learner.place
        return micro_batches(samples, self.config.samples_per_prompt, self.micro_batches, whole)[rank::ranks]

    # checkpoints

    def state_dict(self, version: int) -> dict[str, Any]:
        """The position in the prompts, and the samples not learned from by optimizer step `version`. Equal on every
        rank."""
        begun = [self._begun[1]] if self._begun and self._begun[0] == version else []
        pending = [[sample.state_dict() for sample in update.samples] for update in (*begun, *self.pending)]
        state = {"format": _FORMAT, "rollouts": self.rollouts, "order": self.order.state_dict(), "pending": pending}
        if self._ahead is not None:
            state["ahead"] = self._ahead.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("format") != _FORMAT:
            raise UserError(
                "ckpt_path: another version of lnlit wrote this checkpoint, whose samples this one cannot read. Begin "
                "a new run from its weights: lnlit export makes a model folder of them."
            )
        self.rollouts = state["rollouts"]
        self.order.load_state_dict(state["order"])
        updates = ([Sample.from_state(sample) for sample in update] for update in state["pending"])
        self.pending = deque(map(Update, updates))
        self._ahead = None
        if ahead := state.get("ahead"):
            if not self.config.max_staleness:
                raise UserError(
                    "data.rollout.max_staleness: the checkpoint's next samples were drawn with 1, this run has 0. "
                    "Resume with 1, or begin a new run from its weights."
                )
            self._ahead = Ahead.from_state(ahead, self.prompts)


def reward_table(samples: Sequence[Sample], samples_per_prompt: int, weights: Mapping[str, float]) -> RewardTable:
    """The table of rewards of several prompts' samples."""
    shape = (len(samples) // samples_per_prompt, samples_per_prompt)
    verdicts = [[sample.rewards[name].value for name in weights] for sample in samples]
    rewards_SR = torch.tensor([[math.nan if v is None else v for v in row] for row in verdicts], dtype=torch.float64)
    lengths_S = torch.tensor([len(sample.rollout.token_ids) * sample.learned for sample in samples])
    divergence_S = torch.tensor([_divergence(sample) for sample in samples], dtype=torch.float64)
    weights_R = torch.tensor(list(weights.values()), dtype=torch.float64)
    return RewardTable(
        rewards_SR.view(*shape, len(weights)), weights_R, lengths_S.view(shape), divergence_S.view(shape)
    )


def _divergence(sample: Sample) -> float:
    if sample.old_log_probs is None or sample.reference_log_probs is None:
        return 0.0
    return (sample.old_log_probs - sample.reference_log_probs).double().sum().item()

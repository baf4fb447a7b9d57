"""One step off policy: with `max_staleness: 1`, the next rollout is drawn while this one is learned from.

The weights before rollout k is learned from draw rollout k + 1 meanwhile:

    trainer  | judge k | begin k + 1 | score k, learn from it in U updates | judge k + 1 | begin k + 2 | ...
    engine   |         | weights     | generates k + 1                     | idle        | weights     | ...

The first rollout is drawn with nothing to learn from beside it, and none is begun that the run will not use.

- The engine has a copy of the weights in another process (`lnlit.rollout.apart`). In a thread it would compete for
  Python's lock, and see weights change.
- Samples keep the engine's log-probs, which belong to the weights that drew them, as `old_log_probs`. Importance ratios
  are taken to these. To compute them in the trainer, it would need those weights once more.
- Prompts that dynamic sampling draws in place of others are drawn when the others are judged, with the newest weights.
- A checkpoint waits for the completions that are being generated and holds them, not yet judged. So it needs no older
  weights, and a killed run learns from the same samples as one that was not. Validation waits for them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lnlit.interfaces import Rollout
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import Drawn


@dataclass(frozen=True)
class Ahead:
    """A rollout that was begun: the indices of its prompts, and a function that waits for their completions. The first
    call of that is collective, and later ones give the same."""

    prompts: Sequence[int]
    finish: Callable[[], list[list[Drawn]]]

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint. Collective, because it waits for the completions."""
        drawn = [[(dict(vars(each.rollout)), each.text) for each in group] for group in self.finish()]
        return {"prompts": list(self.prompts), "drawn": drawn}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], prompts: Sequence[Prompt]) -> Ahead:
        """The rollout that `state_dict` was called on. `prompts` are those of the run."""
        drawn = [
            [Drawn(prompts[index], Rollout(**rollout), text) for rollout, text in group]
            for index, group in zip(state["prompts"], state["drawn"], strict=True)
        ]
        return cls(state["prompts"], lambda: drawn)

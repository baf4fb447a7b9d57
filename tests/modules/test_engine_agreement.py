"""An engine with other weights than the trainer's is found out, and one of low precision is not mistaken for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from experience_run import Run

from lnlit.errors import UserError
from lnlit.modules.prompt_data import LogprobCheck
from lnlit.rollout.native import NativeEngine
from lnlit.rollout.scripted import ScriptedEngine


class Another(NativeEngine):
    """Has the weights of another model, whatever it is given."""

    def load_weights(self, weights):
        super().load_weights(weights)
        random = torch.Generator().manual_seed(1)
        for parameter in self._decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)


class Outlying(NativeEngine):
    """Is far off about one token in `every`, as low precision may be."""

    def __init__(self, every: int) -> None:
        super().__init__(64, "float32", "cpu")
        self.every, self.seen = every, 0

    def generate(self, requests, sampling):
        found = []
        for rollout in super().generate(requests, sampling):
            logprobs = list(rollout.logprobs)
            for at in range(len(logprobs)):
                self.seen += 1
                if self.seen % self.every == 0:
                    logprobs[at] -= 19.0
            found.append(replace(rollout, logprobs=tuple(logprobs)))
        return found


def test_another_model_is_told_from_low_precision(model, prompts, tmp_path):
    fp8 = LogprobCheck(4, 3.0, 0.3)  # the bounds of the FP8 recipes
    with pytest.raises(UserError, match=r"after the sync at step 0: engine and trainer disagree by .* on average"):
        Run(model, prompts, tmp_path, engine=Another(64, "float32", "cpu"), logprob_check=fp8).fit()
    sizes = {"max_new_tokens": 40, "prompts_per_rollout": 8, "samples_per_prompt": 4}
    run = Run(model, prompts, tmp_path, 1, engine=Outlying(200), logprob_check=replace(fp8, samples=32), **sizes).fit()
    assert run.metrics.of("train/sampling/logp_difference/max")[0] > 18
    assert 0 < run.metrics.of("train/sampling/logp_difference/outside")[0] <= 0.01
    with pytest.raises(UserError, match=r"and by more than 3.0 .* tokens, where one in a hundred may be"):
        Run(model, prompts, tmp_path, 1, engine=Outlying(20), logprob_check=LogprobCheck(32, 3.0, 9.0), **sizes).fit()


def test_scripted_completions_have_the_policys_probabilities(model, prompts, tmp_path):
    engine = ScriptedEngine([[65, 66, 67], [70] * 9])
    run = Run(model, prompts, tmp_path, 2, engine=engine).fit()
    assert max(run.metrics.of("train/sampling/logp_difference/max")) < 1e-4
    assert {sample.rollout.token_ids[:2] for samples in run.samples["train"] for sample in samples} == {
        (65, 66),
        (70, 70),
    }

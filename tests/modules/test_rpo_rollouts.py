"""RPO on samples of its own: what it compares with, and which prompts it leaves out."""

from __future__ import annotations

import json

import lightning as L
import pytest
from experience_run import Letters, Run, Unsure, finite

from lnlit.data.preference import PreferenceData
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.modules.optim import AdamW
from lnlit.modules.reference import OldPolicy
from lnlit.modules.rpo import RPO


def test_rpo_leaves_a_prompt_out_of_which_one_reward_is_missing(model, prompts, tmp_path):
    run = Run(
        model, prompts, tmp_path, 1, RPO, Letters(lambda number, row: number in (1, 4)), learner={"beta": 0.1}
    ).fit()
    assert run.metrics.of("train/loss_tokens") == [2]
    assert finite(run.weights)
    run = Run(model, prompts, tmp_path, 1, RPO, learner={"beta": 0.1}).fit()
    assert run.metrics.of("train/loss_tokens") == [4]


def test_rpo_leaves_a_prompt_out_of_which_one_sample_is_not_learned_from(model, prompts, tmp_path):
    """Cut ones are masked, and those of unknown probability are never learned from."""
    engine = Unsure(64, "float32", "cpu", every=7)
    run = Run(model, prompts, tmp_path, 1, RPO, engine=engine, learner={"beta": 0.1}, max_new_tokens=100).fit()
    assert run.metrics.of("train/loss_tokens") == [2]
    sizes = {"samples_per_prompt": 2, "prompts_per_rollout": 6, "max_new_tokens": 200, "mask_truncated": True}
    cut = Run(model, prompts, tmp_path, 1, RPO, learner={"beta": 0.1}, **sizes).fit()
    (samples,) = cut.samples["train"]
    whole = [not any(s.truncated for s in samples[at : at + 2]) for at in range(0, 12, 2)]
    assert 0 < sum(whole) < 6
    assert cut.metrics.of("train/loss_tokens") == [sum(whole)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rpo_by_rollout_begins_each_rollout_at_its_reference(model, prompts, tmp_path, accumulate):
    settings = {"beta": 0.1, "reference": OldPolicy()}
    run = Run(
        model,
        prompts,
        tmp_path,
        6,
        RPO,
        updates_per_rollout=2,
        learner=settings,
        trainer={"accumulate_grad_batches": accumulate},
    ).fit()
    ratios = run.metrics.of("train/log_ratio")
    assert ratios[::2] == pytest.approx([0.0] * 3, abs=1e-5)
    assert all(abs(ratio) > 1e-3 for ratio in ratios[1::2])


def test_rpo_by_rollout_is_refused_without_rollouts(model, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"{n}?", "chosen": "yes", "rejected": "no"}) + "\n" for n in range(4))
    )
    module = RPO(str(model), AdamW(1e-3), beta=0.1, reference=OldPolicy())
    data = PreferenceData(str(model), JsonlSource(str(file)), 64, 2)
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=r"model\.reference: OldPolicy needs samples of the policy's own"):
        trainer.fit(module, data)
    assert not hasattr(module, "decoder")

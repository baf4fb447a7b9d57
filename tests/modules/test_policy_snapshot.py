"""`PolicySnapshot`: a reference that is a copy of the policy, taken anew every few rollouts."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
import warm
from experience_run import Run, same
from snapshot_until_killed import STEPS, settings
from test_staleness import stale

from lnlit.callbacks.checkpoints import Checkpoint
from lnlit.checkpoint.lightning import LightningCheckpoint
from lnlit.checkpoint.load import frozen_decoder
from lnlit.data.preference import PreferenceData
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.models.lora import LoRA
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.reference import OldPolicy, PolicySnapshot
from lnlit.modules.rpo import RPO
from lnlit.objectives.kl import KL

SCRIPT = Path(__file__).with_name("snapshot_until_killed.py")


def run(files, root, steps, reference, beta=0.5, **more) -> Run:
    """A run of RPO with this reference."""
    learner = {"beta": beta, "reference": reference, **more.pop("learner", {})}
    given = {**settings(), "save": False, "learner": learner, **more}
    return Run(*files, root, steps, RPO, **given).fit()


def furthest(one: Run, other: Run) -> float:
    """The largest difference of a weight."""
    found = other.weights
    return max((weight - found[name]).abs().max().item() for name, weight in one.weights.items())


@pytest.fixture(scope="module")
def files(model, prompts) -> tuple[Path, str]:
    return model, prompts


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> Run:
    """Five rollouts of one update, in iterations of two; all checkpoints are kept."""
    root = tmp_path_factory.mktemp("whole")
    begun = Run(*files, root, STEPS, RPO, **settings())
    next(each for each in begun.trainer.callbacks if isinstance(each, Checkpoint)).keep = STEPS
    return begun.fit()


def saved(whole: Run, step: int) -> Path:
    return Path(whole.trainer.default_root_dir) / "checkpoints" / f"step-{step}.ckpt"


def state(whole: Run, step: int, prefix: str) -> dict[str, torch.Tensor]:
    found = torch.load(saved(whole, step), weights_only=True)["state_dict"]
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


# what it is


def test_a_copy_for_each_rollout_is_the_policy_that_drew_it(files, tmp_path):
    runs = [run(files, tmp_path, 4, reference, updates_per_rollout=2) for reference in (PolicySnapshot(1), OldPolicy())]
    losses = [each.metrics.of("train/loss") for each in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and len(set(losses[0])) == 4
    assert furthest(*runs) <= 1e-6


def test_a_copy_that_outlasts_the_run_is_the_model_that_it_starts_from(files, tmp_path):
    runs = [run(files, tmp_path, 3, reference) for reference in (PolicySnapshot(3), None)]
    assert same(runs[0].weights, runs[1].weights)


def test_iterations_are_what_a_loop_by_hand_makes_of_the_same_samples(files, whole):
    """One sequence at a time, with the formula of the backward loss."""
    policy = frozen_decoder(files[0], "cpu").requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    beta, losses, anchor = 0.5, [], policy
    for rollout, samples in enumerate(whole.samples["train"]):
        if rollout in (0, 2, 4):
            anchor = copy.deepcopy(policy).requires_grad_(False)
        loss = torch.zeros(())
        for group in (samples[:3], samples[3:]):
            scores = torch.stack([log_prob(policy, sample) - log_prob(anchor, sample) for sample in group])
            wanted = torch.tensor([sample.reward for sample in group]).softmax(0)
            loss = loss + (torch.special.xlogy(wanted, wanted) - wanted * (beta * scores).log_softmax(0)).sum() / beta
        losses.append(loss.item() / 2)
        optimizer.zero_grad()
        (loss / 2).backward()
        optimizer.step()
    assert whole.metrics.of("train/loss") == pytest.approx(losses, rel=1e-4, abs=1e-5)
    for name, weight in policy.named_parameters():
        assert (whole.weights[name] - weight).norm() <= 1e-4 * weight.norm(), name


def log_prob(decoder, sample) -> torch.Tensor:
    """Of a completion."""
    prompt, answer = sample.rollout.prompt_ids, sample.rollout.token_ids
    logits_TV = decoder(torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1 : -1]
    return logits_TV.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


def test_beta_counts_from_the_second_rollout_of_an_iteration_on(files, tmp_path):
    """At the reference, the gradient is the same for every beta."""
    apart = {}
    for every, reference in (
        ("drawn", OldPolicy),
        ("one", lambda: PolicySnapshot(1)),
        ("4", lambda: PolicySnapshot(4)),
    ):
        apart[every] = furthest(*(run(files, tmp_path, 3, reference(), beta) for beta in (0.1, 0.7)))
    assert apart["drawn"] <= 1e-5 and apart["one"] <= 1e-5 and apart["4"] >= 1e-3, apart


def test_its_age_is_logged_and_the_policy_leaves_it(whole):
    assert whole.metrics.of("train/reference/age") == [0, 1, 0, 1, 0]
    ratios = whole.metrics.of("train/log_ratio")
    assert ratios[::2] == pytest.approx([0.0] * 3, abs=1e-5)
    assert all(abs(ratio) > 1e-3 for ratio in ratios[1::2])


def test_a_policy_of_adapters_is_copied_with_them(files, tmp_path):
    found = run(files, tmp_path, 4, PolicySnapshot(2), learner={"lora": LoRA(4)})
    ratios = found.metrics.of("train/log_ratio")
    assert ratios[::2] == pytest.approx([0.0] * 2, abs=1e-5)
    assert all(abs(ratio) > 1e-4 for ratio in ratios[1::2])


def test_half_precision_holds_what_the_policy_computes_in(files, tmp_path):
    found = run(files, tmp_path, 3, PolicySnapshot(2), save=True, trainer={"precision": "bf16-mixed"})
    before, after = state(found, 3, "snapshot."), state(found, 3, "decoder.")
    assert {value.dtype for value in before.values()} == {torch.bfloat16}
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert not same(before, {name: value.bfloat16() for name, value in after.items()})


def test_samples_of_an_older_policy_are_compared_with_the_newest_copy(files, tmp_path):
    learner = {"beta": 0.5, "reference": PolicySnapshot(1)}
    found = stale(*files, tmp_path, 3, RPO, learner=learner).fit()
    apart = [
        max((sample.old_log_probs - sample.reference_log_probs).abs().max().item() for sample in samples)
        for samples in found.samples["train"]
    ]
    assert apart[0] <= 1e-5 and min(apart[1:]) > 1e-4, apart


def test_grpo_takes_it_as_well(files, tmp_path):
    learner = {"kl": KL(0.1), "reference": PolicySnapshot(2)}
    found = Run(*files, tmp_path, 4, GRPO, learner=learner).fit()
    near, far = found.metrics.of("train/kl")[::2], found.metrics.of("train/kl")[1::2]
    assert near == pytest.approx([0.0] * 2, abs=1e-8) and min(far) > 1e-7


@pytest.mark.parametrize("reference", [PolicySnapshot(2), "no/such/folder"])
def test_a_reference_that_nothing_would_be_compared_with_is_refused(files, reference):
    with pytest.raises(UserError, match=r"model.reference: .*, but the algorithm compares the policy with none"):
        GRPO(str(files[0]), AdamW(1e-3), reference)
    assert GRPO(str(files[0]), AdamW(1e-3)).reference is None


# checkpoints


def test_a_checkpoint_holds_the_copy_and_is_read_without_it(whole):
    before, copied = state(whole, 2, "decoder."), state(whole, 3, "snapshot.")
    assert copied.keys() == before.keys() and same(copied, before) and not same(state(whole, 3, "decoder."), before)
    weights = dict(LightningCheckpoint().weights(saved(whole, 3)))
    assert not any("snapshot" in name for name in weights)
    assert all(torch.equal(weights[f"model.{name}"], value) for name, value in state(whole, 3, "decoder.").items())


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_goes_on_with_the_copy_that_it_had(files, whole, tmp_path, stop):
    after = Run(*files, tmp_path, STEPS, RPO, ckpt_path=saved(whole, stop), **settings()).fit()
    assert after.drawn() == whole.drawn()[stop:]
    assert after.metrics.of("train/loss") == whole.metrics.of("train/loss")[stop:]
    assert same(after.weights, whole.weights)


def test_a_killed_run_ends_in_the_same_weights(files, whole, tmp_path):
    for ended in (-signal.SIGKILL, 0):
        done = warm.run(SCRIPT, tmp_path, *map(str, files), cwd=tmp_path, timeout=300)
        assert done.returncode == ended, done.stderr
    assert same(torch.load(tmp_path / "weights.pt"), whole.weights)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        (PolicySnapshot(3), "with reference: a copy of the policy every 2 rollouts, this run has .* every 3 rollouts"),
        (
            None,
            "the checkpoint holds decoder and snapshot, this run has decoder, so it is of another method or ",
        ),
    ],
)
def test_a_run_with_another_reference_does_not_go_on(files, whole, tmp_path, reference, says):
    with pytest.raises(UserError, match=says):
        run(files, tmp_path, STEPS, reference, ckpt_path=saved(whole, 3))


def test_a_run_that_had_no_copy_does_not_go_on_with_one(files, tmp_path):
    run(files, tmp_path, 1, OldPolicy(), save=True)
    with pytest.raises(UserError, match="the checkpoint holds decoder, this run has decoder and snapshot"):
        run(files, tmp_path, 2, PolicySnapshot(1), ckpt_path=tmp_path / "checkpoints" / "step-1.ckpt")


# bad input


@pytest.mark.parametrize("every", [0, -2, True, 1.5, "2", None])
def test_a_number_of_rollouts_is_a_positive_one(every):
    with pytest.raises(UserError, match=r"model\.reference\.every_n_rollouts: expected a whole number of 1 or more"):
        PolicySnapshot(every)


def test_given_completions_have_no_rollouts(model, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = RPO(str(model), AdamW(1e-3), beta=0.1, reference=PolicySnapshot(2))
    data = PreferenceData(str(model), JsonlSource(str(file)), 64, 2)
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=r"model\.reference: PolicySnapshot needs samples of the policy's own"):
        trainer.fit(module, data)
    assert not hasattr(module, "decoder")

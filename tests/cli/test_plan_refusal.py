"""What plans say of little room, on a GPU whose size is made up here, and of questions to score on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lnlit
from lnlit.cli import plan_fit
from lnlit.cli.plan import planned
from lnlit.errors import UserError
from lnlit.planning.gpus import Gpu
from lnlit.testing.tiny import tiny_folder

FLAGS = {
    "devices": 1, "num_nodes": 1, "strategy": "auto", "accelerator": "auto", "precision": None, "max_steps": 1,
    "accumulate_grad_batches": 1, "callbacks": None,
}  # fmt: skip


@pytest.fixture
def parts(tmp_path: Path):
    model = str(tiny_folder(tmp_path / "model"))
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n')
    text = lnlit.JsonlSource(str(tmp_path / "text.jsonl"))
    data = lnlit.TextData(model, train=text, sequence_length=128, micro_batch_size=64)
    return lnlit.Distill(model, None, lnlit.AdamW(1e-3), kl_weight=0, cosine_weight=0, lm_weight=1), data


def of_size(monkeypatch, room: int) -> None:
    monkeypatch.setattr(plan_fit, "here", lambda: Gpu("made-up", "", "", room))
    monkeypatch.setattr(Gpu, "overhead_bytes", 0)


@pytest.mark.parametrize(("room", "said"), [(10**5, "refused"), (2 * 10**6, "warned"), (10**10, "nothing")])
def test_sizes(parts, room: int, said: str, monkeypatch, capsys):
    of_size(monkeypatch, room)
    if said == "refused":
        with pytest.raises(UserError, match=r"train needs .* of each GPU, and a made-up has .*--check_memory false"):
            plan_fit.refuse(*parts, FLAGS)
    else:
        plan_fit.refuse(*parts, FLAGS)
    assert ("warning: this run may need more memory" in capsys.readouterr().err) == (said == "warned")


def test_nothing_is_said_of_a_cpu(parts, monkeypatch, capsys):
    of_size(monkeypatch, 1)
    plan_fit.refuse(*parts, FLAGS | {"accelerator": "cpu"})
    assert not capsys.readouterr().err


def test_scoring_on_questions_counts_a_batch(tmp_path: Path):
    model = tiny_folder(tmp_path / "model")
    stage = tmp_path / "score.yaml"
    stage.write_text(
        f"{{stage: score, model: {model}, library: none, metric: accuracy, data: {{task: {{class_path: hellaswag}}}}, "
        f"out: {tmp_path / 'scores.jsonl'}}}"
    )
    (plan,) = planned([stage], "h100-80g")
    assert plan.fits and plan.peak_bytes > 0 and "one batch is counted" in plan.notes[-1]


def test_planning_leaves_the_random_generators_as_they_are(config, monkeypatch, capfd):
    monkeypatch.chdir(config().parent)
    before = torch.get_rng_state()
    (plan,) = planned([config()], "h100-80g")
    assert plan.fits and torch.equal(torch.get_rng_state(), before)
    assert "Seed set" not in "".join(capfd.readouterr())


def test_a_copy_of_the_policy_takes_what_a_reference_takes_and_room_in_checkpoints(tmp_path: Path):
    model = str(tiny_folder(tmp_path / "model"))
    (tmp_path / "prompts.jsonl").write_text('{"messages": [{"role": "user", "content": "one"}]}\n')
    prompts = lnlit.JsonlSource(str(tmp_path / "prompts.jsonl"))
    data = lnlit.PromptData(
        *(model, prompts, [lnlit.FormatReward()], lnlit.NativeEngine()), rollout=lnlit.RolloutConfig(2, 2, 8)
    )
    flags, known = {**FLAGS, "precision": "bf16-mixed"}, plan_fit.Known()
    gpu = Gpu("made-up", "", "", 10**12)
    plans = [
        plan_fit.of_fit("", lnlit.RPO(model, lnlit.AdamW(1e-3), 0.1, reference=reference), data, flags, gpu, 1, known)
        for reference in (None, lnlit.PolicySnapshot(2), lnlit.OldPolicy())
    ]
    fixed, copied, none = plans
    parameters = copied.phases["train"]["parameters"] // 4
    assert copied.phases == fixed.phases
    assert copied.phases["train"]["reference"] == 2 * parameters and "reference" not in none.phases["train"]
    assert copied.disk["checkpoints"] - fixed.disk["checkpoints"] == 2 * 2 * parameters  # of two checkpoints

"""Log-probs of a reference that are written into rows serve as well as the model they come from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from lnlit.data.preference import PreferenceData
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.modules.optim import AdamW
from lnlit.modules.reference import StoredLogProbs
from lnlit.modules.rpo import RPO
from lnlit.stages import reference as stage
from lnlit.stages.reference import reference
from lnlit.testing.tiny import tiny_folder, tiny_spec

ROWS = [
    {"prompt": "sum " + "1+" * n, "completions": [f"it is {n}", "x" * (n + 1), "no"], "rewards": [1.0, 0.5, n / 9]}
    for n in range(7)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    """(the policy's start, another one)"""
    folder = tmp_path_factory.mktemp("models")
    return str(tiny_folder(folder / "policy")), str(tiny_folder(folder / "reference", seed=1))


def source(folder: Path, rows=ROWS) -> JsonlSource:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(str(file))


def written(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def weights(policy: str, rows: JsonlSource, **settings) -> tuple[dict[str, torch.Tensor], RPO]:
    """After two steps, and the module that did them."""
    module = RPO(policy, AdamW(1e-2, schedule="constant", warmup_ratio=0.0), beta=0.1, **settings)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, PreferenceData(policy, rows, 64, 2, completions=2))
    return {name: p.detach().clone() for name, p in module.decoder.named_parameters()}, module


def test_a_run_learns_the_same_without_a_second_model(models, tmp_path):
    policy, other = models
    expected, _ = weights(policy, source(tmp_path), reference=other)
    out = reference(other, source(tmp_path), str(tmp_path / "out.jsonl"), dtype="float32", batch_tokens=100)
    found, module = weights(policy, JsonlSource(str(out)), reference=StoredLogProbs())
    assert module.reference is None
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)
    start, _ = weights(policy, source(tmp_path), reference=None)
    assert max((start[name] - weight).abs().max() for name, weight in expected.items()) > 1e-3  # it has a say


def test_rows_keep_what_they_had_and_tell_of_every_completion(models, tmp_path):
    out = reference(models[1], source(tmp_path), str(tmp_path / "out.jsonl"))
    for row, given in zip(written(out), ROWS, strict=True):
        assert row["completions"] == given["completions"] and row["rewards"] == given["rewards"]
        assert all(nats < 0 for nats in row["reference_log_probs"]["log_probs"])
        assert row["reference_log_probs"]["temperature"] == 1.0
        assert len(set(row["reference_log_probs"]["digests"])) == len(set(given["completions"]))


def test_what_was_interrupted_ends_as_if_it_were_not(models, tmp_path, monkeypatch):
    data = source(tmp_path)
    whole = reference(models[1], data, str(tmp_path / "whole.jsonl"), rows_per_round=2)
    calls = []

    def dies(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    real = stage._log_probs
    monkeypatch.setattr(stage, "_log_probs", dies)
    with pytest.raises(KeyboardInterrupt):
        reference(models[1], data, str(tmp_path / "cut.jsonl"), rows_per_round=2)
    assert not (tmp_path / "cut.jsonl").exists()
    cut = reference(models[1], data, str(tmp_path / "cut.jsonl"), rows_per_round=2)
    assert cut.read_bytes() == whole.read_bytes()
    assert len(calls) == 5  # four rounds, of which one was begun twice


def test_a_completion_beyond_the_context_leaves_its_prompt_out(tmp_path):
    short = str(tiny_folder(tmp_path / "short", tiny_spec().replace(context_length=40)))
    out = reference(short, source(tmp_path), str(tmp_path / "out.jsonl"))
    unknown = [row["reference_log_probs"]["log_probs"].count(None) for row in written(out)]
    assert unknown[0] == 0 and unknown[-1] > 0
    policy = str(tiny_folder(tmp_path / "policy"))
    data = PreferenceData(policy, JsonlSource(str(out)), 64, 7, completions=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module = RPO(policy, AdamW(1e-3), beta=0.1, reference=StoredLogProbs())
    module._trainer = SimpleNamespace(datamodule=data, precision_plugin=None)
    from lnlit.testing.tiny import tiny_decoder

    module.decoder = tiny_decoder()
    count = module.losses(batch).count
    assert 0 < count == int((~batch.reference_PK.isnan().any(1)).sum()) < len(batch.rewards_PK)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"digests": ["0", "1", "2"]}, "about other tokens than these"),
        ({"log_probs": [1.0]}, "one of each per completion"),
        ({"log_probs": "many"}, "one of each per completion"),
    ],
)
def test_log_probs_of_other_completions_are_refused(models, tmp_path, change, told):
    rows = written(reference(models[1], source(tmp_path), str(tmp_path / "out.jsonl")))
    rows[3]["reference_log_probs"] |= change
    data = PreferenceData(models[0], source(tmp_path, rows), 64, 2)
    with pytest.raises(UserError, match=told) as error:
        data.setup("fit")
    assert "rows.jsonl:4" in str(error.value)


def test_log_probs_after_another_prompt_are_refused(models, tmp_path):
    """The toggle changes what a completion follows, not its tokens."""
    out = reference(models[1], source(tmp_path), str(tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match="about other tokens than these"):
        PreferenceData(models[0], JsonlSource(str(out)), 64, 2, thinking="on").setup("fit")


def test_log_probs_at_another_temperature_are_refused(models, tmp_path):
    out = reference(models[1], source(tmp_path), str(tmp_path / "out.jsonl"), temperature=0.7)
    with pytest.raises(UserError, match=r"model.temperature: 1.0, but the rows bring log-probs at 0\.7"):
        weights(models[0], JsonlSource(str(out)), reference=StoredLogProbs())
    weights(models[0], JsonlSource(str(out)), reference=StoredLogProbs(), temperature=0.7)


def test_a_row_that_json_cannot_hold_is_named(models, tmp_path):
    rows = source(tmp_path, [*ROWS[:2], {**ROWS[2], "margin": float("nan")}])
    with pytest.raises(UserError, match=r"rows.jsonl:3: cannot be written as JSON: Out of range float values"):
        reference(models[1], rows, str(tmp_path / "out.jsonl"))


def test_rows_without_log_probs_say_what_to_do(models, tmp_path):
    with pytest.raises(UserError, match="there are rows without log-probs of a reference"):
        weights(models[0], source(tmp_path), reference=StoredLogProbs())


def test_a_model_of_ones_own_is_not_overruled_by_rows(models, tmp_path):
    policy, other = models
    expected, _ = weights(policy, source(tmp_path))
    out = reference(other, source(tmp_path), str(tmp_path / "out.jsonl"))
    found, _ = weights(policy, JsonlSource(str(out)))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_nothing_to_do_is_an_error(models, tmp_path):
    with pytest.raises(UserError, match="has no rows"):
        reference(models[0], source(tmp_path, []), str(tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match="temperature: expected a positive number, got 0"):
        reference(models[0], source(tmp_path), str(tmp_path / "out.jsonl"), temperature=0)

"""Memory by phase: each phase's own, on every logger, and in a table, in runs with and without rollouts."""

from __future__ import annotations

import mmap
import re
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lnlit.callbacks import MemoryRecorder
from lnlit.callbacks import memory as memory_module
from lnlit.callbacks.memory import readings, render, reset_peaks

MIB = 2**20
NAMES = {"rss", "rss_peak", "shm"}


def fresh(mib: int) -> np.ndarray:
    """Memory that this process did not have before; an allocator might hand out what another test has left."""
    array = np.frombuffer(mmap.mmap(-1, mib * MIB), np.uint8)
    array.fill(1)
    return array


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Rollouts(L.LightningDataModule):
    """Announces its phases as a policy's data do: `generate` holds 300 MiB for a moment, `score` keeps 150 MiB."""

    def __init__(self, micro_batches: int = 1, fails: bool = False) -> None:
        super().__init__()
        self.phases, self.listeners = SimpleNamespace(listeners=[]), []
        self.micro_batches, self.fails = micro_batches, fails

    def train_dataloader(self):
        return self

    def __len__(self) -> int:
        return 100

    def __iter__(self):
        while True:
            self.phase("generate", lambda: fresh(300))
            self.phase("score", lambda: setattr(self, "kept", fresh(150)))
            self.kept = None
            for _ in range(self.micro_batches):
                yield torch.ones(2, 4)

    def phase(self, name: str, work) -> None:
        for call in self.phases.listeners:
            call(name, "start")
        if self.fails:
            raise RuntimeError("out of memory")
        work()
        for call in self.phases.listeners:
            call(name, "end")


def fit(root, data, recorder, steps: int = 2, **settings) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[recorder],
        default_root_dir=root,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=settings.pop("logger", False),
        **settings,
    )
    trainer.fit(Plain(), **({"datamodule": data} if isinstance(data, Rollouts) else {"train_dataloaders": data}))
    return trainer


def peaks_begin_anew() -> bool:
    held = fresh(100)
    del held
    reset_peaks()
    found = readings()
    return "rss" in found and found["rss_peak"] - found["rss"] < 50 * MIB


def test_each_phase_has_its_own_peak(tmp_path, caplog):
    if not peaks_begin_anew():
        pytest.skip("this system does not let a process reset its peak of resident memory")
    data, recorder = Rollouts(), MemoryRecorder()
    with caplog.at_level("INFO"):
        fit(tmp_path, data, recorder)
    assert list(recorder.most) == ["generate", "score", "train"]
    assert all(set(found) == NAMES for found in recorder.most.values())
    peak, rss = ({phase: found[name] / MIB for phase, found in recorder.most.items()} for name in ("rss_peak", "rss"))
    assert peak["generate"] > peak["score"] + 100 > peak["train"] + 200
    assert rss["score"] > rss["generate"] + 100
    assert all(peak[phase] >= rss[phase] - 1 for phase in peak)
    assert re.search(r"most memory, GiB\n +rss +rss_peak +shm\ngenerate +\d+\.\d\d", caplog.text)
    assert data.phases.listeners == []


def test_curves_are_logged_per_step(tmp_path):
    board, table = TensorBoardLogger(tmp_path), CSVLogger(tmp_path)
    fit(tmp_path, Rollouts(), MemoryRecorder(), steps=3, logger=[board, table])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(board.log_dir).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("memory/")}
    assert tags == {f"memory/{phase}/{name}" for phase in ("generate", "score", "train") for name in NAMES}
    assert [event.step for event in events.Scalars("memory/generate/rss")] == [0, 1, 2]
    assert [event.step for event in events.Scalars("memory/train/rss")] == [1, 2, 3]
    assert 0.01 < events.Scalars("memory/train/rss")[0].value < 100


def test_a_run_without_rollouts_has_the_training_phase(tmp_path):
    recorder = MemoryRecorder()
    fit(tmp_path, torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=2), recorder)
    assert list(recorder.most) == ["train"]


def test_a_step_of_many_micro_batches_is_one_phase(tmp_path, monkeypatch):
    seen, recorder = [], MemoryRecorder()
    original = recorder.on_phase
    monkeypatch.setattr(recorder, "on_phase", lambda *event: (seen.append(event), original(*event)))
    fit(tmp_path, Rollouts(micro_batches=3), recorder, accumulate_grad_batches=3)
    rollout = [(name, event) for name in ("generate", "score", "train") for event in ("start", "end")]
    assert seen == rollout * 2


def test_a_run_that_fails_has_its_table_too(tmp_path, caplog):
    data, recorder = Rollouts(fails=True), MemoryRecorder()
    with caplog.at_level("INFO"), pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, data, recorder)
    assert list(recorder.most) == ["generate"] and "most memory, GiB" in caplog.text
    assert data.phases.listeners == []


def test_the_gpu_is_read_where_there_is_one(monkeypatch):
    free = {"mem_get_info": (6, 10), "memory_allocated": 1, "memory_reserved": 2, "max_memory_allocated": 3}
    for name, value in free.items():
        monkeypatch.setattr(memory_module.torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(memory_module.torch.cuda, "is_initialized", lambda: True)
    found = {name: value for name, value in readings().items() if name.startswith("gpu")}
    assert found == {"gpu_allocated": 1, "gpu_reserved": 2, "gpu_peak": 3, "gpu_used": 4}


def test_the_table_has_a_row_per_phase():
    gib = 2**30
    lines = render({"generate": {"gpu_allocated": 1.5 * gib, "rss": gib}, "train": {"rss": 12.25 * gib}}).split("\n")
    assert lines[1].split() == ["gpu_allocated", "rss"]
    assert lines[2].split() == ["generate", "1.50", "1.00"] and lines[3].split() == ["train", "12.25"]
    assert len({len(line) for line in lines[1:]}) == 1

"""The bar counts what `max_steps` counts, over epochs, accumulated gradients and a resume."""

from __future__ import annotations

import lightning as L
import torch
from torch.utils.data import DataLoader

from lnlit.callbacks import Checkpoint
from lnlit.callbacks.progress import StepBar
from lnlit.data.chat import Document
from lnlit.data.packing import collate
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.testing.tiny import tiny_folder


class Watched(StepBar):
    """Keeps what the bar shows after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, int | None]] = []
        self.bars = 0

    def init_train_tqdm(self):
        self.bars += 1
        return super().init_train_tqdm()

    def on_train_batch_end(self, trainer, pl_module, *args, **kwargs) -> None:
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        self.shown.append((self.train_progress_bar.n, self.train_progress_bar.total))


def fit(model, root, steps: int, ckpt_path=None) -> Watched:
    generator = torch.Generator().manual_seed(0)
    documents = [Document(torch.randint(0, 256, (16,), generator=generator).tolist(), [True] * 16) for _ in range(6)]
    batches = [collate([[document]], 16, pad_id=0) for document in documents]
    bar = Watched()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=2,
        callbacks=[bar, Checkpoint()],
        default_root_dir=root,
        logger=False,
        enable_model_summary=False,
    )
    module = SFT(str(model), AdamW(1e-3, schedule="constant", warmup_ratio=0.0))
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)
    return bar


def test_steps_are_counted_not_batches(tmp_path, capsys):
    model = tiny_folder(tmp_path / "model")
    bar = fit(model, tmp_path / "run", steps=5)  # an epoch is three steps of two batches
    assert bar.shown == [(n, 5) for n in (0, 1, 1, 2, 2, 3, 3, 4, 4, 5)]
    assert bar.bars == 1
    assert "5/5" in capsys.readouterr().out

    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    again = fit(model, tmp_path / "run", steps=7, ckpt_path=last)
    assert again.shown[0] == (5, 7) and again.shown[-1] == (7, 7)

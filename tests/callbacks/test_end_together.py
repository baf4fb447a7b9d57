"""A rank that fails ends the others, which would wait for it for ever, and all say why."""

from __future__ import annotations

import json
import os
import time

import pytest
from warm import Process, free_port

from lnlit.testing.tiny import tiny_folder

FAILS = '''
import lightning as L
from lnlit.errors import UserError

class Fails(L.Callback):
    """Lets one rank fail while the other is on its way to a collective."""

    def __init__(self, rank: int, error: str = "user"):
        self.rank, self.error = rank, error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 1 and trainer.global_rank == self.rank:
            raise {"user": UserError, "bug": ZeroDivisionError}[self.error]("the judge of sums is ill")
'''


@pytest.mark.parametrize(("rank", "error"), [(0, "user"), (1, "user"), (1, "bug")])
def test_all_ranks_end_with_the_message_of_the_one_that_failed(tmp_path, record_property, rank, error):
    model = str(tiny_folder(tmp_path / "model"))
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "fails.py").write_text(FAILS)
    ddp = "lightning.pytorch.strategies.DDPStrategy"
    strategy = {"class_path": ddp, "init_args": {"process_group_backend": "gloo"}}
    source = {"class_path": "jsonl", "init_args": {"paths": str(tmp_path / "rows.jsonl")}}
    data = {"tokenizer": model, "train": source, "sequence_length": 96, "micro_batch_size": 1}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 2,
            "max_steps": 3,
            "strategy": strategy,
            "default_root_dir": str(tmp_path / "run"),
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "fails.py:Fails", "init_args": {"rank": rank, "error": error}}],
        },
        "model": {"class_path": "SFT", "init_args": {"model": model, "optimizer": {"learning_rate": 0.01}}},
        "data": {"class_path": "ChatData", "init_args": data},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    common |= {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    command = ("-m", "lnlit.cli.main", "fit", "--config", "run.yaml")
    started = [
        Process(*command, cwd=tmp_path, env={**common, "RANK": str(own), "LOCAL_RANK": str(own)}, server=own)
        for own in (0, 1)
    ]
    begin = time.monotonic()
    said = [process.communicate(timeout=120)[1] for process in started]
    record_property("seconds", time.monotonic() - begin)
    assert all(process.wait() for process in started)
    assert started[1 - rank].wait() == 2
    assert f"error: rank {rank}: the judge of sums is ill" in said[1 - rank], said
    assert "the judge of sums is ill" in said[rank] and "Traceback" not in said[1 - rank], said

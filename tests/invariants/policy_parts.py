"""A plugin for runs of `lnlit fit` that are killed: an engine, a reward and a callback, each deadly when told to be.

The environment says when: DIES is "generate", "reward" or "between", AFTER a number of rollouts, and JOURNAL the file
that each rollout's samples are written to.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import lightning as L
from policy_judge import is_time_to_die

from lnlit.rollout.native import NativeEngine


class DeadlyEngine(NativeEngine):
    def generate(self, requests, sampling):
        found = super().generate(requests[: len(requests) // 2], sampling)
        if is_time_to_die("generate"):
            os.kill(os.getpid(), signal.SIGKILL)
        return found + super().generate(requests[len(requests) // 2 :], sampling)


class Journal(L.Callback):
    """Writes each rollout's samples, and dies before a step that learns from what an earlier process drew."""

    def on_train_start(self, trainer, pl_module):
        trainer.datamodule.listeners.append(self.write)

    def write(self, stage, samples):
        rollout = [(s.prompt.row["answer"], s.rollout.token_ids, s.rollout.logprobs, s.reward) for s in samples]
        with Path(os.environ["JOURNAL"]).open("a") as stream:
            stream.write(json.dumps([stage, samples[0].rollout.weight_version, rollout]) + "\n")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if is_time_to_die("between") and trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

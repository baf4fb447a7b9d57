"""Distils the tiny library on two ranks, run by torch.distributed.run: two_rank_distill.py PARENT LIBRARY TEXT OUT.

One run is left alone, one is stopped with a checkpoint, one trains the layers one after another.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch.strategies import DDPStrategy
from test_block_distill import GROUPS, STEPS, Distillery, StopAt

if __name__ == "__main__":
    parent, library, text, out = map(Path, sys.argv[1:])
    distillery = Distillery(parent, library, text, out, rows=1)
    for name, callbacks in {"whole": (), "stopped": (StopAt(3),), "grouped": ()}.items():
        ranks = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2}
        if name == "grouped":
            distillery.fit(name, callbacks, GROUPS | ranks, layers_at_once=1)
        else:
            distillery.fit(name, callbacks, {"max_steps": STEPS} | ranks)

"""Distils the tiny library on two ranks, run by torch.distributed.run: two_rank_distill.py PARENT LIBRARY TEXT OUT.

One run is left alone, another is stopped with a checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch.strategies import DDPStrategy
from test_block_distill import Distillery, StopAt

if __name__ == "__main__":
    parent, library, text, out = map(Path, sys.argv[1:])
    distillery = Distillery(parent, library, text, out, rows=1)
    for name, callbacks in {"whole": (), "stopped": (StopAt(3),)}.items():
        strategy = DDPStrategy(process_group_backend="gloo")
        distillery.fit(name, callbacks, {"max_steps": 8, "strategy": strategy, "devices": 2})

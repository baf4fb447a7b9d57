"""A trainer with a fork, as one with data workers is, whose engine is at work when it is stopped.

python vllm_trainer.py WEIGHTS_FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from lnlit_vllm.rollout import VllmEngine  # pyright: ignore[reportMissingImports]
from vllm_fake_core import SLOW

from lnlit.interfaces import PolicyWeights, RolloutRequest, RolloutSampling
from lnlit.testing.tiny import tiny_spec


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
    engine = VllmEngine(weights_folder=sys.argv[1], dtype="float32")
    engine.load_weights(PolicyWeights(tiny_spec(), {"tensors": ["a"]}, [("a", torch.ones(1))], 1))
    fork = os.fork()
    if not fork:
        time.sleep(30)
        os._exit(0)
    print(engine._place._process.pid, fork, flush=True)  # type: ignore[union-attr]
    engine.generate([RolloutRequest((SLOW,), 1)], RolloutSampling(4))


if __name__ == "__main__":
    main()

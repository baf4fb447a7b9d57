"""Ends all ranks of a run when one of them fails."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta
from itertools import count
from typing import ClassVar

import lightning as L
from torch.distributed import TCPStore, is_available, is_initialized

#: Seconds between two looks at the store, until a rank that may be failing by itself is ended, and that a failed rank
#: waits for the others.
_LOOK_S, _OWN_END_S, _OTHERS_S = 1.0, 5.0, 20.0


class EndTogether(L.Callback):
    """Ends every rank, with the message of the one that failed, within seconds of the failure.

    A rank that fails leaves the others in a collective that never ends: NCCL waits for half an hour, and then says
    nothing of the cause. A failing rank therefore leaves its message in the store where the ranks of the run met, and a
    thread of each rank looks there.
    """

    #: Runs of this process, the same on every rank, so that none reads the message of an earlier one.
    _runs: ClassVar[count[int]] = count()

    def __init__(self) -> None:
        self._store: TCPStore | None = None
        self._over = threading.Event()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or not (is_available() and is_initialized()) or self._store is not None:
            return
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
        self._key, self._rank, self._others = f"lnlit/{next(self._runs)}", trainer.global_rank, trainer.world_size - 1
        self._over.clear()
        threading.Thread(target=self._watch, args=(self._store,), daemon=True).start()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        store, self._store = self._store, None
        self._over.set()
        if store is None:
            return
        try:
            said = f"rank {self._rank}: {str(exception) or type(exception).__name__}"
            is_first = store.compare_set(f"{self._key}/failed", "", said).decode() == said
            store.add(f"{self._key}/ended", 0 if is_first else 1)
            end = time.monotonic() + _OTHERS_S  # if this rank keeps the store, it must live until all have looked
            while is_first and store.add(f"{self._key}/ended", 0) < self._others and time.monotonic() < end:
                time.sleep(_LOOK_S / 10)
            if is_first:  # what ends first says why: a closed connection would give the others an error of their own
                time.sleep(2 * _LOOK_S)
        except RuntimeError:  # the rank that keeps the store has ended
            pass

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._over.set()
        self._store = None

    def _watch(self, store: TCPStore) -> None:
        try:
            while not store.check([f"{self._key}/failed"]):
                if self._over.wait(_LOOK_S):
                    return
            if self._over.wait(_OWN_END_S):  # it fails as well, and says so itself
                return
            said = store.get(f"{self._key}/failed").decode()
            print(f"error: {said}\nrank {self._rank} ends with it", file=sys.stderr, flush=True)
            store.add(f"{self._key}/ended", 1)
            time.sleep(_LOOK_S)  # the failed rank must see this, and this one may keep the store
        except RuntimeError:  # the rank that keeps the store has ended
            return
        os._exit(2)

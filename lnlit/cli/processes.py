"""`lnlit run` in all the processes that torchrun has started, on one node or several:

    torchrun --nnodes 8 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29400 --no-python lnlit run FOLDER

Rank 0 decides what runs and alone writes the record of it. The others wait until it tells them to run a stage beside
it, for as long as that takes. A stage runs on all processes if it can share its work among them: a fit that asks for
as many devices and nodes, and scoring. Any other stage is run by rank 0 as if there were no other processes; a fit on
one node then starts those that it needs by itself.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lnlit.cli.guard import guarded
from lnlit.cli.pipeline import Stage
from lnlit.errors import UserError

#: The stages of `lnlit search` that divide their work among the processes of torchrun.
_DIVIDED = ("score",)
#: How long others wait for a stage of rank 0's.
_PATIENCE = timedelta(days=30)
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


class Processes:
    """The processes that run a pipeline together, of which this is one; alone without torchrun."""

    def __init__(self) -> None:
        given = [int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1))]
        self.rank, self.count = given
        self.on_each_node = int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def check(self, stage: Stage) -> None:
        """Raises `UserError` for a fit that these processes cannot run."""
        if (asked := stage.devices) is None:
            return
        devices, nodes = asked
        if nodes > 1 and (devices or self.on_each_node) * nodes != self.count:
            each = devices or "as many as it has GPUs"
            raise UserError(
                f"{stage.file}: trainer.num_nodes is {nodes}, trainer.devices {each}, and this run has {self.count} "
                f"processes, {self.on_each_node} on a node. Start it on every node by: torchrun --nnodes {nodes} "
                f"--nproc_per_node {devices or 'GPUS'} --rdzv_backend c10d --rdzv_endpoint HOST:29400 --no-python "
                "lnlit run FOLDER; or change num_nodes."
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, all processes can talk to each other."""
        if self.count == 1:
            yield
            return
        from torch import distributed

        distributed.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def run(self, stage: Stage, command: list[str], lock: int) -> tuple[int, int]:
        """Called by rank 0: runs a stage's command on all processes that it is for. Returns what `guarded` returns, of
        the first process whose command failed."""
        if self.count == 1:
            return guarded(command, lock)
        devices, nodes = stage.devices or (1, 1)
        is_for_all = stage.kind in _DIVIDED or (
            stage.kind is None and (devices or self.on_each_node) * nodes == self.count
        )
        if not is_for_all:
            return guarded(command, lock, _without_torchrun(os.environ))
        port = _free_port()
        self._tell((command, port))
        return self._run(command, port, lock)

    def follow(self) -> int:
        """Called by the others: runs what rank 0 says until it says with what exit code to end."""
        while True:
            said = self._tell(None)
            if isinstance(said, int):
                return said
            command, port = said
            with Path(os.devnull).open("rb") as nothing:
                self._run(command, port, nothing.fileno())

    def dismiss(self, code: int) -> None:
        """Called by rank 0 at the end: the others end with this exit code."""
        if self.count > 1:
            self._tell(code)

    def _run(self, command: list[str], port: int, lock: int) -> tuple[int, int]:
        """Collective. Each stage's processes meet at a port of their own: in torchrun's store they would find what
        those of the stage before have left."""
        from torch import distributed

        environment = {**os.environ, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        codes: list[Any] = [None] * self.count
        distributed.all_gather_object(codes, guarded(command, lock, environment))
        return next((code for code in codes if any(code)), (0, 0))

    def _tell(self, message: Any) -> Any:
        from torch import distributed

        held = [message]
        distributed.broadcast_object_list(held, src=0)
        return held[0]


def _without_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_TORCHRUN)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

"""Ranks that share engines: python -m torch.distributed.run ... engines_on_ranks.py SCENARIO OUT

Each scenario is a function of this file; what it returns on a rank is in OUT.RANK.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from lnlit.checkpoint.folder import hf_config
from lnlit.errors import UserError
from lnlit.interfaces import PolicyWeights, Rollout, RolloutEngine, RolloutRequest, RolloutSampling
from lnlit.models.weights import canonical_weights
from lnlit.rollout.apart import EngineApart
from lnlit.rollout.native import NativeEngine
from lnlit.rollout.shared import SharedEngine, shared
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sampler import Asked, Phases, Sampler
from lnlit.testing.rollout_contract import check_rollout_engine
from lnlit.testing.tiny import tiny_decoder

RANK = int(os.environ.get("RANK", "0"))
SAMPLING = RolloutSampling(max_new_tokens=10, temperature=0.9, end_ids=tuple(range(0, 256, 16)))


class OneAtATime(NativeEngine):
    """Computes each completion alone, so that it rounds the same beside whatever others. Several ranks share it."""

    def __init__(self, ranks: int, batch_size: int = 1) -> None:
        super().__init__(batch_size, "float32", "cpu")
        self.ranks = ranks
        self.devices: list[Any] = []

    @property
    def ranks_per_engine(self) -> int:
        return self.ranks

    def device_name(self) -> str:
        return f"device {RANK}"

    def share(self, devices) -> None:
        self.devices = list(devices)


def weights(seed: int, version: int, tensors: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> PolicyWeights:
    decoder = tiny_decoder(seed=seed)
    return PolicyWeights(decoder.spec, hf_config(decoder.spec), tensors(canonical_weights(decoder)), version)


def requests(rank: int = RANK) -> list[RolloutRequest]:
    """Of different number and length on each rank, and none on rank 0."""
    return [RolloutRequest(tuple(range(3 * n + rank, 5 * n + rank + 2)), 10 * rank + n) for n in range(2 * rank)]


def plain(rollouts: list[Rollout]) -> list[Any]:
    return [[r.prompt_ids, r.token_ids, r.logprobs, r.finish_reason, r.weight_version, r.seed] for r in rollouts]


def drawn(engine: RolloutEngine) -> list[Any]:
    """What a rank gets of two sets of weights, one after the other."""
    found = []
    for version in (3, 4):
        engine.load_weights(weights(version, version))
        found.append(plain(engine.generate(requests(), SAMPLING)))
    return found


def same_samples() -> Any:
    ranks = distributed.get_world_size()
    found: dict[str, Any] = {"own": drawn(NativeEngine(1, "float32", "cpu"))}
    for size in {2, ranks}:
        engine = shared(OneAtATime(size))
        assert isinstance(engine, SharedEngine)
        inner: Any = engine.engine
        found[f"shared by {size}"] = drawn(engine)
        found[f"has weights {size}"] = inner._decoder is not None
        found[f"devices {size}"] = inner.devices
        engine.close()
        engine.close()
    apart: Any = shared(EngineApart(OneAtATime(2)))
    found["apart"] = drawn(apart)
    found["has a process"] = apart.engine._process is not None
    apart.close()
    return found


def contract() -> None:
    check_rollout_engine(lambda: shared(OneAtATime(2, 64)))


# What goes wrong


def said(work: Callable[[], Any]) -> list[str]:
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


class Fails(OneAtATime):
    """Fails in a way that the first prompt's first token says."""

    def generate(self, requests, sampling):
        for request in requests:
            if request.prompt_ids[0] == 250:
                raise UserError("the engine cannot answer this")
            if request.prompt_ids[0] == 251:
                raise ValueError("the engine is broken")
        return super().generate(requests, sampling)

    def load_weights(self, weights):
        if weights.version == 65:
            raise ValueError("the engine does not start")
        if weights.version == 66:
            next(iter(weights.tensors))
            raise ValueError("the engine wants no more")
        super().load_weights(weights)


def breaking_on(rank: int) -> Callable[[Iterable[Any]], Iterator[Any]]:
    def tensors(whole: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for number, pair in enumerate(whole):
            if number == 2 and rank == RANK:
                raise ValueError(f"rank {rank} cannot gather this")
            yield pair

    return tensors


def all_but_one(whole: Iterable[Any]) -> list[Any]:
    return list(whole)[:-1]


def errors() -> Any:
    """After each of them the same engine goes on."""
    engine = shared(Fails(2))
    whole = [engine.load_weights(weights(0, 1)), plain(engine.generate(requests(1), SAMPLING))][1]
    found: dict[str, Any] = {}

    def generating(*first: int) -> Callable[[], Any]:
        mine = [RolloutRequest((token, 1, 2), 0) for token in first if RANK == 1]
        return lambda: engine.generate(mine, SAMPLING)

    def goes_on(version: int) -> bool:
        engine.load_weights(weights(0, version))
        return [each[:4] for each in plain(engine.generate(requests(1), SAMPLING))] == [each[:4] for each in whole]

    gathered: list[str] = []

    def noting(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            gathered.append(name)
            yield name, tensor

    found["prompt"] = said(generating(250)), goes_on(2)
    found["bug"] = said(generating(251)), goes_on(3)
    endless = [RolloutRequest((1,) * 300, 0)] if RANK else []
    found["long"] = said(lambda: engine.generate(endless, SAMPLING)), goes_on(4)
    found["incomplete"] = said(lambda: engine.load_weights(weights(0, 5, all_but_one)))
    found["after incomplete"] = said(generating(1)), goes_on(6)
    found["no start"] = said(lambda: engine.load_weights(weights(0, 65, noting)))
    found["gathers none"] = not gathered, goes_on(7)
    found["wants no more"] = said(lambda: engine.load_weights(weights(0, 66, noting)))
    found["gathers all"] = len(gathered) == len(list(weights(0, 0).tensors)), goes_on(7)
    for rank in (0, 1):
        found[f"rank {rank} breaks"] = said(lambda: engine.load_weights(weights(0, 8, breaking_on(rank))))  # noqa: B023
        found[f"after {rank} broke"] = said(generating(1)), goes_on(9)
    both = said(lambda: engine.load_weights(weights(0, 10, breaking_on(RANK))))
    found["both break"] = both, goes_on(11)
    engine.close()
    return found


def unwilling() -> Any:
    """Groups that cannot be."""
    found = {"three": said(lambda: shared(OneAtATime(3)).load_weights(weights(0, 1)))}
    socket.gethostname = lambda: f"machine{RANK}"
    found["apart"] = said(lambda: shared(OneAtATime(2)).load_weights(weights(0, 1)))
    return found


def death() -> Any:
    """Rank 1 ends while rank 0 waits for it."""
    engine = shared(OneAtATime(2))
    engine.load_weights(weights(0, 1))
    if RANK == 1:
        time.sleep(0.5)
        os._exit(0)
    return said(lambda: engine.generate(requests(1), SAMPLING))


def death_of_the_first() -> Any:
    """Rank 0, which has the engine, ends while rank 1 waits for its answer."""

    class Dies(OneAtATime):
        def generate(self, requests, sampling):
            time.sleep(0.5)
            os._exit(0)

    engine = shared(Dies(2))
    engine.load_weights(weights(0, 1))
    return said(lambda: engine.generate(requests(1), SAMPLING))


def closing() -> Any:
    """Rank 1 closes while a thread of it waits for the engine, which answers when that thread waits no more."""
    done = Path(f"{sys.argv[2]}.done")

    class Patient(OneAtATime):
        def generate(self, requests, sampling):
            while not done.exists():
                time.sleep(0.02)
            return super().generate(requests, sampling)

    engine, found = shared(Patient(2)), []
    engine.load_weights(weights(0, 1))
    thread = threading.Thread(target=lambda: found.append(said(lambda: engine.generate(requests(1), SAMPLING))))
    thread.start()
    if RANK == 1:
        time.sleep(0.2)
        engine.close()
    thread.join()
    done.touch()
    return found[0]


# Through a sampler


class Encoder:
    """Reads nothing: prompts are tokens here, and nobody judges."""

    def prompt(self, row):
        raise NotImplementedError

    def completion(self, prompt_ids, token_ids):
        return ""

    def end_ids(self):
        return list(SAMPLING.end_ids)


class Away:
    """Stands for tensors that are moved off a device: a file for each rank that has moved its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        time.sleep(0.4 * RANK)  # a rank is late
        file = self.folder / f"away.{RANK}"
        file.touch()
        yield
        file.unlink()

    def ranks(self) -> int:
        return len(list(self.folder.glob("away.*")))


class Watching(OneAtATime):
    """Notes how many ranks have moved their tensors away when it takes memory and when it gives it back."""

    def __init__(self, away: Away) -> None:
        super().__init__(2)
        self.away, self.seen = away, []

    def generate(self, requests, sampling):
        self.seen.append(("generate", self.away.ranks(), len(requests)))
        return super().generate(requests, sampling)

    def sleep(self):
        time.sleep(0.4)
        self.seen.append(("sleep", self.away.ranks(), 0))
        super().sleep()

    def wake(self):
        self.seen.append(("wake", self.away.ranks(), 0))


def turns() -> Any:
    """Prompts for one rank alone, then for both; the engine sleeps between."""
    away = Away(Path(sys.argv[2]).parent)
    engine = Watching(away)
    sampler = Sampler(engine, [], 1, Encoder(), SAMPLING, Phases(), away)
    found = []
    for version, count in enumerate((1, 3, 2), start=1):
        time.sleep(0.3 * (1 - RANK))
        sampler.load(version, lambda: weights(version, version))  # noqa: B023
        groups = sampler.draw([Asked(Prompt([], (n, 7, 9), {}), [5, 6]) for n in range(count)])
        found.append([plain([sample.rollout for sample in group]) for group in groups])
    sampler.close()
    return {"drawn": found, "seen": engine.seen}


def dealt() -> Any:
    """Which engine answers how many prompts, if there are few."""
    asked: list[int] = []

    class Counting(OneAtATime):
        def generate(self, requests, sampling):
            asked.append(len(requests))
            return super().generate(requests, sampling)

    sampler = Sampler(Counting(2), [], 1, Encoder(), SAMPLING, Phases())
    sampler.load(1, lambda: weights(1, 1))
    for count in (2, 5, 1):
        groups = sampler.draw([Asked(Prompt([], (n, 7, 9), {}), [5]) for n in range(count)])
        assert [group[0].rollout.prompt_ids[0] for group in groups] == list(range(count))
    sampler.close()
    return asked


if __name__ == "__main__":
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(100, exit=True)  # ranks that wait for each other say where
    distributed.init_process_group("gloo")
    result = globals()[sys.argv[1]]()
    Path(f"{sys.argv[2]}.{RANK}").write_text(json.dumps(result))
    if not sys.argv[1].startswith("death"):
        distributed.barrier()

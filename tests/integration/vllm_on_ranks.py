"""Two ranks that share one vLLM: python -m torch.distributed.run ... vllm_on_ranks.py TENSOR_PARALLEL_SIZE OUT

OUT.RANK has what each rank found.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from lnlit.checkpoint.folder import hf_config
from lnlit.interfaces import PolicyWeights, RolloutRequest, RolloutSampling
from lnlit.models.decoder import Decoder
from lnlit.models.weights import canonical_weights
from lnlit.rollout.shared import SharedEngine, shared
from lnlit.specs import BlockSpec, ModelSpec, PartSpec
from lnlit.testing.tiny import tiny_decoder

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/lnlit-vllm"))  # it is installed in vLLM's environment

from lnlit_vllm.rollout import VllmEngine  # pyright: ignore[reportMissingImports]

SAMPLING = RolloutSampling(max_new_tokens=24, temperature=0.9)


class ForTwo(VllmEngine):
    """Two ranks share it, whatever its size."""

    ranks_per_engine = 2  # type: ignore[assignment]


def spec() -> ModelSpec:
    attention = PartSpec("gqa", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32})
    block = BlockSpec(attention, PartSpec("swiglu", {"intermediate_size": 96}))
    return ModelSpec(vocab_size=258, hidden_size=64, layers=(block, block), context_length=256)


@torch.no_grad()
def difference(engine: SharedEngine, decoder: Decoder, requests: list[RolloutRequest]) -> float:
    """The largest between the engine's log-probs and the decoder's, over what the engine generates."""
    found = 0.0
    for request, rollout in zip(requests, engine.generate(requests, SAMPLING), strict=True):
        assert (rollout.prompt_ids, rollout.seed) == (request.prompt_ids, request.seed)
        row = torch.tensor([rollout.prompt_ids + rollout.token_ids])
        logprobs = (decoder(row)[0] / SAMPLING.temperature).log_softmax(-1)[len(rollout.prompt_ids) - 1 : -1]
        own = logprobs.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        found = max(found, (own - torch.tensor(rollout.logprobs)).abs().max().item())
    return found


def main(size: int, rank: int) -> dict[str, Any]:
    engine = shared(ForTwo(dtype="float32", tensor_parallel_size=size, max_num_seqs=8))
    assert isinstance(engine, SharedEngine) and isinstance(engine.engine, VllmEngine)
    requests = [RolloutRequest(tuple(range(3 * n + rank, 4 * n + rank + 5)), seed=10 * rank + n) for n in range(4)]
    found: dict[str, Any] = {"differences": [], "seconds": []}
    for version in range(2):
        decoder = tiny_decoder(spec(), seed=version)
        start = time.monotonic()
        engine.load_weights(PolicyWeights(decoder.spec, hf_config(decoder.spec), canonical_weights(decoder), version))
        found["differences"].append(difference(engine, decoder, requests))
        found["seconds"].append(time.monotonic() - start)
    found["of older weights"] = difference(engine, tiny_decoder(spec(), seed=0), requests)
    found["has vLLM"] = engine.engine._place is not None
    engine.close()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(380, exit=True)
    distributed.init_process_group("gloo")
    result = main(int(sys.argv[1]), distributed.get_rank())
    Path(f"{sys.argv[2]}.{os.environ['RANK']}").write_text(json.dumps(result))
    distributed.barrier()

"""Run inside vLLM's environment: the contract of rollout engines, with vLLM in this process.

python vllm_in_process.py < SPEC
"""

from __future__ import annotations

import json
import sys
from unittest.mock import MagicMock

# lnlit is here without its dependencies, and what is tested reads no GGUF.
sys.modules["gguf"] = MagicMock()


def main() -> None:
    from lnlit_vllm.rollout import VllmEngine  # pyright: ignore[reportMissingImports]

    from lnlit.specs import ModelSpec
    from lnlit.testing.rollout_contract import check_rollout_engine

    spec = ModelSpec.from_json(json.load(sys.stdin))
    check_rollout_engine(lambda: VllmEngine("in_process", dtype="float32"), spec)


if __name__ == "__main__":
    main()

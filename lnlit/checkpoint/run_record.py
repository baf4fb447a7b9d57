"""What a run leaves in what it writes, so that a checkpoint and the folders made of it say how they came about."""

from __future__ import annotations

import hashlib
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from lnlit import __version__
from lnlit.checkpoint.fingerprint import fingerprint, model_source
from lnlit.files import expanded

#: Keys whose values no folder should hold, since folders are given to others.
_SECRET = re.compile(r"(api_key|token|password|secret|headers)$")


class Run(Protocol):
    """What is asked of Lightning's trainer. `log_dir` is a collective operation."""

    @property
    def default_root_dir(self) -> str: ...

    @property
    def log_dir(self) -> str | None: ...

    @property
    def global_step(self) -> int: ...


def run_record(run: Run, method: object) -> dict[str, Any]:
    """The record of a run that trains a model: the method's name, the optimizer steps that the weights have taken, the
    fingerprint of the rows, the model and data of the configuration that the command line saved beside the logs,
    without secrets, and its SHA-256. Adapters that training went on from are named. Every rank must call this.
    """
    adapter = getattr(getattr(method, "lora", None), "adapter", None)
    begun = {} if adapter is None else {"from_adapter": {"adapter": model_source(adapter), **_digest_of(adapter)}}
    return {
        "method": type(method).__name__,
        "steps": run.global_step,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        **_recipe(Path(run.log_dir or run.default_root_dir) / "config.yaml"),
        "data": getattr(getattr(getattr(run, "datamodule", None), "train_plan", None), "fingerprint", None),
        **begun,
        "versions": {"lnlit": __version__, "lightning": version("lightning"), "torch": str(torch.__version__)},
    }


def _digest_of(adapter: str) -> dict[str, str]:
    return {"fingerprint": fingerprint(adapter)} if expanded(adapter).exists() else {}


def _recipe(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {"config_sha256": None}
    config = yaml.safe_load(file.read_bytes())
    return {
        "config_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "recipe": {part: _without_secrets(config[part]) for part in ("model", "data") if part in config},
    }


def _without_secrets(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: "(left out)" if value and _SECRET.search(str(key)) else _without_secrets(value)
            for key, value in node.items()
        }
    return [_without_secrets(each) for each in node] if isinstance(node, list) else node

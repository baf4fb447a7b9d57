"""The model that completions are sampled from, and what makes it the same one another time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.checkpoint.fingerprint import weights_digest
from lnlit.checkpoint.folder import hf_config
from lnlit.checkpoint.formats import open_checkpoint, read_spec, resolve
from lnlit.data.chat import ChatEncoder
from lnlit.data.rows import asked
from lnlit.data.tokenizer import load_tokenizer
from lnlit.errors import UserError
from lnlit.interfaces import PolicyWeights, RolloutEngine
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.prompt import PromptEncoder
from lnlit.thinking import Thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lnlit.sampling.sampler import Sampler


class SampledModel:
    """A model folder with the engine that runs it, or an engine with a model of its own.

    Args:
        folder: Model folder with a tokenizer and a chat template, or None for an engine with a model of its own.
        engine: The engine that generates completions. None is lnlit's own decoder.
    """

    def __init__(self, folder: str | None, engine: RolloutEngine | None = None) -> None:
        self.engine = engine or NativeEngine()
        name = type(self.engine).__name__
        if folder is None and self.engine.needs_weights:
            raise UserError(f"model: {name} generates with the weights of a model folder; got none. Give one.")
        if folder is not None and not self.engine.needs_weights:
            raise UserError(f"model: {name} generates with a model of its own, so {folder!r} would not be used.")
        self.folder = folder

    def encoder(self, thinking: Thinking | None) -> PromptEncoder:
        """Renders prompts, with the toggle in those that have none."""
        return MessageEncoder(thinking) if self.folder is None else ChatEncoder(self.tokenizer, thinking)

    def room(self, max_new_tokens: int) -> int | None:
        """The maximum length of a prompt in tokens, or None if it is not known."""
        return None if self.folder is None else read_spec(self._path).context_length - max_new_tokens

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that completions depend on besides prompts, sampling settings and seeds, as JSON data."""
        found: dict[str, Any] = {"model": None, "tokenizer": None, "engine": settings_of(self.engine)}
        if self.folder is not None:
            found |= {"model": weights_digest(self.folder), "tokenizer": _tokenizer_digest(self.tokenizer)}
        return found

    def load(self, sampler: Sampler) -> None:
        """Gives the sampler's engine the folder's weights, unless it has a model of its own."""
        sampler.load(0, lambda: _weights(self._path))

    @cached_property
    def _path(self) -> Path:
        assert self.folder is not None, "an engine with a model of its own has no folder"
        return resolve(self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._path)


class MessageEncoder:
    """Passes conversations on as they are, for an engine with a template of its own."""

    def __init__(self, thinking: Thinking | None = None) -> None:
        self.thinking: Thinking | None = thinking

    def prompt(self, row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[int]]:
        said = asked(row, self.thinking)
        if said.tools or said.template_arguments:
            raise UserError("the row has tools or template variables, which an engine of messages does not pass on")
        if all(message["role"] == "system" for message in said.messages):
            return [], []
        return said.messages, []

    def end_ids(self) -> list[int]:
        return []


def settings_of(part: object) -> dict[str, Any]:
    """The class and the plain settings of a part as JSON data. Other attributes may differ from process to process and
    are left out."""
    public = {name: _plain(value) for name, value in vars(part).items() if not name.startswith("_")}
    plain = {name: value for name, value in public.items() if value is not _NOT_PLAIN}
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", **plain}


def _weights(path: Path) -> PolicyWeights:
    spec = read_spec(path)
    return PolicyWeights(spec, hf_config(spec), open_checkpoint(path).weights(path), version=0)


def _tokenizer_digest(tokenizer: Any) -> str:
    """A digest of the vocabulary and of the chat template."""
    parts = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """The value as JSON data, or `_NOT_PLAIN`."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return _NOT_PLAIN

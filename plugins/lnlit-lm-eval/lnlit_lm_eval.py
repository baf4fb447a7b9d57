"""EleutherAI's harness (lm-eval) on any model that lnlit reads, also those that transformers has no words for.

lnlit-lm-eval run --model lnlit --model_args pretrained=runs/child --tasks hellaswag
lm_eval.simple_evaluate(model=LnlitLM("runs/child"), tasks=["hellaswag"])
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

import lnlit
from lnlit.errors import UserError
from lnlit.interfaces import Continuations, Windows

_LOG = logging.getLogger(__name__)
#: Settings of generation that change nothing at these values. Others of their names are refused.
_NEUTRAL: Mapping[str, Sequence[Any]] = {
    "num_beams": (1,),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "repetition_penalty": (None, 1),
    "num_return_sequences": (1,),
    "use_cache": (True,),
}


@register_model("lnlit")
class LnlitLM(TemplateLM):
    """A model folder as a model of the harness.

    Args:
        pretrained: A model folder, of any architecture that lnlit reads.
        dtype: The dtype of its weights, bfloat16 or float32.
        thinking: The reasoning toggle in the system prompt of chats, on or off; none if null.
        batch_size: Texts that are continued together.
        batch_tokens: Tokens whose likelihoods are computed together.
        seed: What samples are drawn by, with their prompt and the number of times that it came before.
        max_gen_toks: The length limit of tasks that have none.
        device: The device to compute on. Null is the GPU if there is one.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        thinking: Literal["on", "off"] | None = None,
        batch_size: int | str = 32,
        batch_tokens: int = 2048,
        seed: int = 0,
        max_gen_toks: int = 256,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit():
            raise UserError(f"batch_size: expected a number, got {batch_size!r}. lnlit does not choose one.")
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = None  # the command line names it by default
        self.model = lnlit.TextModel(pretrained, dtype, thinking, batch_tokens, int(batch_size), device)
        self.tokenizer = self.model.tokenizer
        self.pretrained, self.seed, self.max_gen_toks = str(pretrained), seed, max_gen_toks
        self.batch_size, self.max_length = int(batch_size), self.model.context_length

    @property
    def eot_token_id(self) -> int:
        return self.model.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.model.prefix_id

    @property
    def tokenizer_name(self) -> str:
        return f"{self.pretrained}-thinking-{self.model.thinking}".replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_settings: Any) -> list[int]:
        return self.model.encode([string], add_special_tokens)[0]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.model.chat(chat_history, add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_settings: Any
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = []
        shortened = 0
        found = self.model.pair_likelihoods((context, continuation) for _, context, continuation in requests)
        shown = tqdm(found, "Log-likelihoods", len(requests), disable=disable_tqdm)
        for (texts, _, _), one in zip(requests, shown, strict=True):
            answers.append((one.log_prob, one.is_greedy))
            shortened += one.left_out > 0
            self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        if shortened:
            _LOG.warning(
                "%d of %d contexts were too long for the model and lost their beginning.", shortened, len(answers)
            )
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        questions = [
            Continuations(f"text {number}", "", [text], {}, windows=Windows())
            for number, text in enumerate(texts, start=1)
            if text
        ]
        shown = tqdm(self.model.log_likelihoods(questions), "Texts", len(questions), disable=disable_tqdm)
        found = iter([whole.log_prob for (whole,) in shown])
        answers = [next(found) if text else 0.0 for text in texts]
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """How the model goes on from each context. Repeats of a context have seeds of their own: the harness gives the
        same request for all of them."""
        groups: dict[_Generation, list[int]] = defaultdict(list)
        seeds, before = [], Counter()
        for number, request in enumerate(requests):
            context, settings = request.args[:2]
            groups[_generation(settings, self.max_gen_toks)].append(number)
            name = json.dumps([self.seed, context, settings], sort_keys=True, default=str)
            seeds.append(_seed(name, before[name]))
            before[name] += 1
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="Generations", disable=disable_tqdm) as shown:
            for how, members in groups.items():
                contexts = [requests[number].args[0] for number in members]
                own_seeds = [seeds[number] for number in members]
                for place, text in self.model.continued(
                    contexts, own_seeds, how.max_new_tokens, how.temperature, how.top_p, how.stop
                ):
                    answers[members[place]] = text
                    self.cache_hook.add_partial("generate_until", requests[members[place]].args, text)
                    shown.update()
        return answers


@dataclass(frozen=True)
class _Generation:
    max_new_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]


def _generation(given: Mapping[str, Any], max_gen_toks: int) -> _Generation:
    """A task's settings of generation. Raises `UserError` for one that lnlit has not."""
    settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), max_gen_toks))
    stop = settings.pop("until") or []
    sampled = settings.pop("do_sample")
    temperature = float(settings.pop("temperature", 1.0)) if sampled else 0.0
    found = _Generation(
        settings.pop("max_gen_toks"),
        temperature,
        float(settings.pop("top_p", None) or 1.0) if sampled else 1.0,
        tuple([stop] if isinstance(stop, str) else stop),
    )
    for name, value in settings.items():
        if name not in ("top_p", "temperature") and value not in _NEUTRAL.get(name, ()):
            raise UserError(
                f"the task generates with {name}={value!r}, which lnlit has not. Leave it out, as by "
                f"`--gen_kwargs` or the task's generation_kwargs; lnlit has temperature, top_p and max_gen_toks."
            )
    return found


def _seed(name: str, occurrence: int) -> int:
    digest = hashlib.blake2b(f"{name}/{occurrence}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def main() -> None:
    """The harness' command line, which knows `--model lnlit`."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None

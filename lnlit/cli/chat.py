"""`lnlit chat MODEL`: chat with a model folder in the terminal."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from shlex import quote
from typing import Any, Literal

from lnlit.cli.arguments import CommandParser
from lnlit.errors import UserError
from lnlit.files import expanded
from lnlit.thinking import TOGGLE, Thinking

_MOST_NEW_TOKENS = 512


def main(argv: list[str]) -> int:
    """Chat until an empty line or end of input; with --prompt, answer once. Returns 0."""
    options = vars(_parser().parse_args(argv))
    prompt = options.pop("prompt")
    for text in (prompt, options["system"]):
        check_text(text or "")
    chat = Chat(**options)
    if prompt is not None:
        _say(chat, prompt)
        return 0
    print("An empty line ends the chat.", file=sys.stderr)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is told, line by line
    while text := _read():
        try:
            check_text(text)
            _say(chat, text)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="lnlit chat", description="Chat with a model folder.")
    parser.add_argument("model", help="model folder")
    parser.add_argument(
        "--thinking",
        choices=("on", "off", "none"),
        help="the reasoning toggle in the system prompt (default: on where the model's folder says that lnlit trained "
        "it with the toggle, or its chat template speaks of it; else none)",
    )
    parser.add_argument("--system", help="a system prompt, after the toggle")
    parser.add_argument("--prompt", help="answer this one message and exit")
    parser.add_argument(
        "--max-new-tokens", type=int, help=f"default: what fits into the context, at most {_MOST_NEW_TOKENS}"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _say(chat: Chat, text: str) -> None:
    chat.answer(text, lambda piece: print(piece, end="", flush=True))
    print(flush=True)


def _read() -> str:
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


def check_text(text: str) -> None:
    """Raises `UserError` for bytes that are not UTF-8, which Python reads as unpaired surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = ascii(text[error.start : error.end])
        raise UserError(
            f"chat: character {error.start} is no UTF-8 text ({got}); the message was not sent. Set the terminal to "
            "UTF-8, or convert what you paste."
        ) from error


class Chat:
    """A loaded model and the conversation so far, with the options of `lnlit chat`."""

    def __init__(
        self,
        model: str,
        thinking: Literal["on", "off", "none"] | None,
        system: str | None,
        max_new_tokens: int | None,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> None:
        import torch

        from lnlit.checkpoint.formats import read_spec
        from lnlit.checkpoint.load import load_weights
        from lnlit.data.chat import ChatEncoder
        from lnlit.data.tokenizer import load_tokenizer
        from lnlit.models.build import build_decoder
        from lnlit.models.device import torch_device
        from lnlit.models.generate import Sampling

        _check_folder(model)
        tokenizer = load_tokenizer(model)
        toggle = _thinking(thinking, model, str(tokenizer.chat_template))
        self.encoder = ChatEncoder(tokenizer, toggle, date.today())
        self.decoder = build_decoder(read_spec(model), torch_device(), torch.bfloat16)
        load_weights(self.decoder, model)
        self.beginning: list[Any] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self.beginning)
        self.max_new_tokens = max_new_tokens
        self.sampling = Sampling(0, temperature, top_p, seed)

    def answer(self, text: str, show: Callable[[str], None]) -> str:
        """Shows the answer piece by piece as it is generated, remembers it and returns it. If the conversation exceeds
        the context, it is forgotten and `UserError` is raised."""
        from lnlit.models.generate import generate

        self.messages.append({"role": "user", "content": text})
        prompt = self.encoder.encode_prompt(self.messages)
        tokens: list[int] = []
        shown = ""

        def heard(_row: int, token: int) -> None:
            nonlocal shown
            tokens.append(token)
            text = self.encoder.completion(prompt, tokens)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character may take several tokens
                show(text[len(shown) :])
                shown = text

        try:
            generate(self.decoder, [prompt], self._sampling(len(prompt)), self.encoder.end_ids(), heard)
        except UserError:
            self.messages = list(self.beginning)
            raise
        self.messages.append({"role": "assistant", "content": shown})
        return shown

    def _sampling(self, prompt_tokens: int) -> Any:
        context = self.decoder.spec.context_length
        if prompt_tokens >= context:
            raise UserError(
                f"the conversation is {prompt_tokens} tokens, the model's context {context}; it is forgotten. Ask anew."
            )
        fitting = min(_MOST_NEW_TOKENS, context - prompt_tokens)
        wanted = fitting if self.max_new_tokens is None else self.max_new_tokens
        return replace(self.sampling, max_new_tokens=wanted)


def _check_folder(model: str) -> None:
    """Raises `UserError` for a training checkpoint and for the folder of a run, of which a model folder can be made."""
    from lnlit.checkpoint.lightning import checkpoint_folder, list_checkpoints

    path = expanded(model)
    saved = list_checkpoints(checkpoint_folder(path)) if path.is_dir() else [path] if path.suffix == ".ckpt" else []
    if saved and path.exists() and not (path / "tokenizer.json").exists():
        raise UserError(
            f"chat: {model} is a training run, no model folder. Make one: lnlit export {quote(str(saved[-1]))} DIR."
        )


def _thinking(wanted: Literal["on", "off", "none"] | None, model: str, template: str) -> Thinking | None:
    """The toggle to send, or None. Prints a note if it was not asked for."""
    if wanted is not None:
        return None if wanted == "none" else wanted
    from lnlit.checkpoint.folder import knows_thinking

    if TOGGLE in template or knows_thinking(model):
        print("thinking: on, for the model knows the toggle; --thinking off switches it", file=sys.stderr)
        return "on"
    return None

"""`lnlit chat MODEL --thinking on|off`: talk to a model folder in the terminal."""

from __future__ import annotations

import argparse
import sys
from datetime import date
from typing import Any

from lnlit.cli.arguments import CommandParser
from lnlit.errors import UserError


def main(argv: list[str]) -> int:
    """Chat until an empty line or end of input; with --prompt, answer once. Returns 0."""
    arguments = _parser().parse_args(argv)
    chat = _Chat(arguments)
    if arguments.prompt is not None:
        chat.answer(arguments.prompt)
        return 0
    print("An empty line ends the chat.", file=sys.stderr)
    while text := _read():
        try:
            chat.answer(text)
        except UserError as error:  # the conversation has outgrown the context
            print(f"error: {error}", file=sys.stderr)
            chat.messages.clear()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="lnlit chat", description="Chat with a model folder.")
    parser.add_argument("model", help="model folder")
    parser.add_argument("--thinking", choices=("on", "off"), default="on", help="the reasoning toggle (default: on)")
    parser.add_argument("--prompt", help="answer this one message and exit")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _read() -> str:
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


class _Chat:
    """A loaded model and the conversation so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        from lnlit.checkpoint.formats import read_spec
        from lnlit.checkpoint.load import load_weights
        from lnlit.data.chat import ChatEncoder
        from lnlit.data.tokenizer import load_tokenizer
        from lnlit.models.build import build_decoder
        from lnlit.models.device import torch_device
        from lnlit.models.generate import Sampling

        self.encoder = ChatEncoder(load_tokenizer(arguments.model), arguments.thinking, date.today())
        self.decoder = build_decoder(read_spec(arguments.model), torch_device(), torch.bfloat16)
        load_weights(self.decoder, arguments.model)
        self.messages: list[Any] = []
        self.sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.seed)

    def answer(self, text: str) -> None:
        """Print the answer as it is generated and remember it."""
        from lnlit.models.generate import generate

        self.messages.append({"role": "user", "content": text})
        prompt = self.encoder.encode_prompt(self.messages)
        tokens: list[int] = []
        shown = ""

        def show(_row: int, token: int) -> None:
            nonlocal shown
            tokens.append(token)
            text = self.encoder.completion(prompt, tokens)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character may take several tokens
                print(text[len(shown) :], end="", flush=True)
                shown = text

        generate(self.decoder, [prompt], self.sampling, self.encoder.end_ids(), show)
        print(flush=True)
        self.messages.append({"role": "assistant", "content": shown})

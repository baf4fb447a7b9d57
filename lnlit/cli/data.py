"""`lnlit data show CONFIG`: shows packed rows with their loss mask, and which rows are left out."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from lnlit.cli.arguments import CommandParser
from lnlit.errors import UserError

if TYPE_CHECKING:
    from lnlit.data.chat import Document
    from lnlit.data.corpus import Reader
    from lnlit.data.planned import PlannedData
    from lnlit.modules.prompt_data import PromptData

#: Marks around learned text: green on a terminal, the marks of a word diff elsewhere.
_COLOUR, _MARKS = ("\x1b[32m", "\x1b[0m"), ("{+", "+}")
#: Characters that could move a terminal's cursor or change its colours, such as escape codes in a row.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def main(argv: list[str]) -> int:
    """Show how the data of a configuration is learned from."""
    parser = CommandParser(
        prog="lnlit data show",
        usage="lnlit data show CONFIG [--rows N] [--data.init_args.KEY VALUE ...]",
        description="Print the first packed rows of a configuration's training data as the model is given them. What "
        "is learned is green on a terminal and between {+ and +} elsewhere. Then: what was read, truncated, left out, "
        "and which keys of the rows nobody reads.",
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file for lnlit fit")
    parser.add_argument("--rows", type=int, default=1, help="how many packed rows to print (default: 1)")
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    if argv[0] != "show":
        raise UserError(f"data: unknown command {argv[0]!r}. Write lnlit data show CONFIG.")
    options, others = parser.parse_known_args(argv[1:])
    allowed = ("--data.", "--config")
    if wrong := [option for option in others if option.startswith("-") and not option.startswith(allowed)]:
        raise UserError(
            f"data show: unknown option {wrong[0]!r}. Allowed: --rows, and as in lnlit fit --config and --data.KEY."
        )
    if options.rows < 0:
        raise UserError(f"--rows: expected a number of rows, got {options.rows}")
    data = _data(["--config", options.config, *others])
    with _quiet("lightning.pytorch"):  # what it would tell is printed here
        for line in _shown(data, options.rows, _COLOUR if _has_colours() else _MARKS):
            print(line)
    return 0


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """A context in which a logger only reports warnings."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _data(options: list[str]) -> Any:
    """The data module of a configuration, without building model and trainer."""
    from lnlit.cli.written import Written

    written = Written(options)  # a missing file is reported before seconds of imports
    if "data" not in written.tree or "stage" in written.tree:
        raise UserError(f"{options[1]}: has no data for lnlit fit. Give a configuration with the keys model and data.")
    written.tree = {"data": written.tree["data"]}
    from lightning.pytorch import LightningDataModule

    from lnlit.cli.blame import built
    from lnlit.cli.explain import explained
    from lnlit.cli.parser import StrictParser

    parser = StrictParser(prog="lnlit data show")
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False, required=True)
    with explained(parser, written):
        config = parser.parse_object(written.tree)
    return built(parser, config)["data"]


def _shown(data: Any, count: int, marks: tuple[str, str]) -> Iterator[str]:
    from lnlit.data.planned import PlannedData
    from lnlit.modules.prompt_data import PromptData

    if isinstance(data, PlannedData):
        yield from _rows(data, count, marks)
    elif isinstance(data, PromptData):
        yield from _prompts(data, count)
    else:
        raise UserError(f"data: {type(data).__name__} is none of lnlit's, so its rows cannot be shown")


def _rows(data: PlannedData, count: int, marks: tuple[str, str]) -> Iterator[str]:
    data.prepare_data()
    data.setup("fit")
    plan, tokenizer = data.train_plan, data.encoder.tokenizer
    of = "" if plan.num_rows is None else f" of {plan.num_rows:,}"
    for number, (row, _) in enumerate(islice(plan.rows(plan.start()), count), start=1):
        documents = [part for document in row for part in _parts(document)]
        learned = sum(sum(document.loss_mask) for _, document in documents)
        tokens = sum(len(document) for _, document in documents)
        parts = _count(len(documents), "document")
        yield f"=== row {number}{of}: {parts}, {tokens:,} tokens, {learned:,} of them learned"
        for name, document in documents:
            yield f"--- {name}, {len(document):,} tokens"
            yield _marked(tokenizer, document, marks)
    yield "==="
    yield from _told("train", data.train_reader, " so far" if plan.num_rows is None else "")
    if data.val is not None:
        yield from _told("val", data.val_reader, "")


def _parts(document: Document) -> list[tuple[str, Document]]:
    """The document, or the completions of a prompt, each with its name."""
    from lnlit.data.preference import Group

    if not isinstance(document, Group):
        return [("document", document)]
    rewarded = enumerate(zip(document.completions(), document.rewards, strict=True), start=1)
    return [(f"completion {number}, reward {reward:g}", part) for number, (part, reward) in rewarded]


def _marked(tokenizer: Any, document: Document, marks: tuple[str, str]) -> str:
    parts = []
    pairs = zip(map(int, document.tokens), map(bool, document.loss_mask), strict=True)
    for learned, run in groupby(pairs, key=lambda pair: pair[1]):
        text = _decoded(tokenizer, [token for token, _ in run])
        parts.append(f"{marks[0]}{text}{marks[1]}" if learned else text)
    return "".join(parts)


def _told(name: str, reader: Reader, when: str) -> Iterator[str]:
    yield f"{name}{when}: {reader.tally}"
    for line in reader.unread.lines():
        yield f"{name}{when}: {line}"


def _prompts(data: PromptData, count: int) -> Iterator[str]:
    """Prompts as the engine sees them, and the rest of their rows, which rewards can read."""
    from lnlit.data.rows import asked
    from lnlit.data.sources import where

    for index, row in enumerate(islice(data.source.rows(), count)):
        try:
            _, tokens = data.encoder.prompt(row)
            keys = ", ".join(asked(row).unread) or "none"
        except UserError as error:
            raise UserError(f"{where(data.source, index)}: {error}") from error
        yield f"=== prompt {index + 1}: {len(tokens):,} tokens; keys for rewards: {keys}"
        yield _decoded(data.encoder.tokenizer, tokens)
    yield "==="
    yield f"prompts: {_count(sum(1 for _ in data.source.rows()), 'row')} of {data.source}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _decoded(tokenizer: Any, tokens: list[int]) -> str:
    text = str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _has_colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ

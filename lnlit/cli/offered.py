"""What a configuration may name in one place, with a sentence each: what `--model.help` prints without a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import lightning as L

from lnlit.cli import names
from lnlit.errors import UserError

#: The places whose classes `lnlit fit --PLACE.help` lists, each with the class that all of them are subclasses of.
PLACES: dict[str, type] = {
    "model": L.LightningModule,
    "data": L.LightningDataModule,
    "trainer.callbacks": L.Callback,
}


def asked(argv: Sequence[str]) -> str | None:
    """The place whose help is asked for without the name of a class, or None."""
    for word, after in zip(argv, (*argv[1:], "-"), strict=True):
        place = word.removeprefix("--").removesuffix(".help")
        if word == f"--{place}.help" and place in PLACES and after.startswith("-"):
            return place
    return None


def lines(place: str) -> Iterator[str]:
    """One line for each class that `place` may name. A part that cannot be used has the reason in its line."""
    offered = names.choices(PLACES[place])
    width = max(map(len, offered))
    for name in offered:
        yield f"{name:<{width}}  {_sentence(place, name)}".rstrip()
    yield f"`--{place}.help NAME` explains one of them."


def _sentence(place: str, name: str) -> str:
    try:
        text = names.imported(names.resolve(PLACES[place], name)).__doc__ or ""
    except UserError as error:
        return f"(cannot be used: {error})"
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")

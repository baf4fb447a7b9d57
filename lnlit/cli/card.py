"""`lnlit card` and `lnlit push`."""

from __future__ import annotations

from lnlit.cli.arguments import CommandParser


def card_command(argv: list[str]) -> int:
    """Write a model folder's card, README.md, from its lnlit.json."""
    parser = CommandParser(prog="lnlit card", description=card_command.__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="a model folder")
    parser.add_argument("--evaluation", metavar="DIR", help="keep and show what `lnlit eval` wrote there")
    parser.add_argument("--measured", metavar="FILE", help="keep and show what `lnlit search verify` wrote")
    parser.add_argument("--title", help="the heading (default: the folder's name)")
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md that somebody else wrote")
    options = parser.parse_args(argv)
    from lnlit.stages.card import card

    print(card(**vars(options)))
    return 0


def push_command(argv: list[str]) -> int:
    """Upload a model folder to the Hugging Face hub, with its card."""
    parser = CommandParser(prog="lnlit push", description=push_command.__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="a model folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="is made if there is none")
    parser.add_argument(
        "--private", action="store_true", help="make a new repository private; one that is there and public is refused"
    )
    parser.add_argument("--revision", help="the branch (default: main)")
    parser.add_argument("--message", help="the commit's message")
    options = parser.parse_args(argv)
    from lnlit.stages.card import push

    print(push(**vars(options)))
    return 0

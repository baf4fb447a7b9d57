"""`lnlit fit|validate`: prints a short help immediately, and imports Lightning only when there is work for it."""

from __future__ import annotations

from lnlit.cli.arguments import with_configs
from lnlit.cli.written import Written
from lnlit.errors import UserError

_HELP = """\
usage: lnlit {command} FILE.yaml [MORE.yaml ...] [--KEY VALUE ...]

{purpose}
A configuration has three parts: trainer, model and data. Files are merged in order, then options; the last one wins.

  --config FILE             a YAML file, as FILE without --config; may be given several times
  --model NAME              another training method, e.g. --model SFT
  --model.KEY VALUE         one of its arguments; --data.KEY and --trainer.KEY likewise
  --ckpt_path last|FILE     {checkpoint}
{own}  --print_config            print the merged configuration with every default, check it, and stop
  --debug                   show the traceback of an error
  --model.help [NAME]       the training methods, or the arguments of one (also --data.help, --trainer.callbacks.help)
  --help_all                every option of the trainer
"""

#: Options that take no value.
_FLAGS = ("--print_config", "--help", "-h", "--help_all")
_CHECK = "  --check_memory false      start a run even if this machine's GPUs are too small for it\n"
_RESUME, _LOAD = "go on from a checkpoint of an earlier run", "the weights to use"
_PURPOSES = {
    "fit": ("Train a model. Logs, checkpoints and the configuration go to runs/ unless it says otherwise.", _RESUME),
    "validate": ("Run the validation loop of a configuration once.", _LOAD),
}


def fit(argv: list[str]) -> int:
    """Train. Returns 0, 130 after Ctrl-C or 143 after SIGTERM; both have saved a checkpoint."""
    return _stage("fit", argv)


def validate(argv: list[str]) -> int:
    """Run the validation loop."""
    return _stage("validate", argv)


def _stage(command: str, argv: list[str]) -> int:
    if not argv:
        raise UserError(f"{command} needs a configuration: FILE.yaml. See `lnlit {command} --help`.")
    if argv[0] in ("-h", "--help"):
        purpose, checkpoint = _PURPOSES[command]
        own = _CHECK if command == "fit" else ""
        print(_HELP.format(command=command, purpose=purpose, checkpoint=checkpoint, own=own), end="")
        return 0
    if any(argument.endswith(".help") for argument in argv):
        from lnlit.cli import offered  # imports Lightning

        if place := offered.asked(argv):
            print("\n".join(offered.lines(place)))
            return 0
    argv = with_configs(argv, _FLAGS)
    written = Written(argv)  # a missing file is reported before Lightning's seconds of imports
    from lnlit.cli.train import run

    return run(command, ["--help" if argument == "--help_all" else argument for argument in argv], written)

"""A command whose stages are functions of `lnlit.stages`. Their arguments are options or keys of a YAML file."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lnlit.cli.arguments import with_configs
from lnlit.errors import UserError, did_you_mean


@dataclass(frozen=True)
class StageCommand:
    """`lnlit NAME STAGE`. `stages` maps each to ("module:function", one line of help), in the order of use.

    `default` is the stage that is meant when none is named, and `words` its list of texts to which words without `--`
    go: `lnlit merge A B --out C` is `lnlit merge merge --out C --models '["A", "B"]'`.
    """

    name: str
    purpose: str
    stages: Mapping[str, tuple[str, str]]
    default: str | None = None
    words: str | None = None

    def __call__(self, argv: list[str]) -> int:
        """Run one stage; prints the path it wrote."""
        if not argv or (argv[0] in ("-h", "--help") and len(self.stages) > 1):
            print(self._help())
            return 0
        is_named = self.default is None or argv[0] in self.stages
        name, rest = (argv[0], argv[1:]) if is_named else (self.default or "", argv)
        flags = {"-h", "--help", "--print_config", *self._flags(name)}
        print(self.result(name, self._with_words(with_configs(rest, flags), flags)))
        return 0

    def _with_words(self, argv: list[str], flags: Collection[str]) -> list[str]:
        """The options, with the words that are no option's value as one option behind all files. A flag's value is
        `true` or `false`, in any letters."""
        if self.words is None:
            return argv
        words, options = [], []
        for index, word in enumerate(argv):
            before = argv[index - 1] if index else ""
            takes_it = before not in flags or word.lower() in ("true", "false")
            is_value = before.startswith("-") and "=" not in before and takes_it
            (options if word.startswith("-") or is_value else words).append(word)
        return [*options, f"--{self.words}={json.dumps(words)}"] if words else argv

    def result(self, name: str, options: list[str]) -> Path:
        """Run one stage; returns the path it wrote."""
        stage, parser, config = self.parsed(name, options)
        from lnlit.cli.blame import built

        arguments = built(parser, config)
        return stage(**{key: value for key, value in arguments.items() if key not in ("config", "stage")})

    def parsed(self, name: str, options: list[str]) -> tuple[Callable[..., Path], Any, Any]:
        """(the stage's function, its parser, its checked configuration); nothing is built yet.

        Raises `UserError` for an unknown stage, and names the first key or value that does not fit.
        """
        if name not in self.stages:
            allowed = ", ".join(self.stages)
            raise UserError(
                f"{self.name}: unknown stage {name!r}.{did_you_mean(name, self.stages)} Allowed: {allowed}."
            )
        from lnlit.cli.explain import explained
        from lnlit.cli.parser import StrictParser
        from lnlit.cli.written import Written

        stage = self._function(name)
        flags = self._flags(name)
        options = [
            f"{option}=true" if option in flags and after.startswith("-") else option
            for option, after in zip(options, [*options[1:], "--"], strict=False)  # there may be none
        ]
        written = Written(options)
        summary = (inspect.getdoc(stage) or "").partition("\n\n")[0]
        words = dict.fromkeys(("lnlit", self.name, name))  # a command may be one stage alone
        parser = StrictParser(prog=" ".join(words), description=summary)
        parser.add_argument("--config", action="config", help="a YAML file with the arguments; later options win")
        parser.add_argument("--stage", type=Literal[name], default=name, help="which stage a YAML file is for")
        parser.add_function_arguments(stage, fail_untyped=True, sub_configs=True)
        with explained(parser, written, stage):
            return stage, parser, parser.parse_args(options)

    def _function(self, name: str) -> Callable[..., Path]:
        module, _, function = self.stages[name][0].partition(":")
        return getattr(importlib.import_module(module), function)

    def _flags(self, name: str) -> set[str]:
        """Options of a stage that are true or false, which without a value are true: `--strict`."""
        if name not in self.stages:
            return set()
        parameters = inspect.signature(self._function(name)).parameters.items()
        return {f"--{option}" for option, parameter in parameters if parameter.annotation in (bool, "bool")}

    def _help(self) -> str:
        width = max(map(len, self.stages))
        stages = [f"  {name:<{width}}  {text}" for name, (_, text) in self.stages.items()]
        options = "[--config FILE.yaml] [--KEY VALUE ...]"
        words = f"[{self.words.upper()} ...] " if self.words else ""
        plain = [] if self.default is None else [f"       lnlit {self.name} {words}{options}, which is {self.default}"]
        return "\n".join(
            [
                f"usage: lnlit {self.name} STAGE {options}",
                *plain,
                "",
                self.purpose,
                "",
                "stages:",
                *stages,
                "",
                f"`lnlit {self.name} STAGE --help` explains a stage. `lnlit run FOLDER` runs a folder of numbered "
                "stages.",
            ]
        )

"""`lnlit completion SHELL`: what a shell has to know to complete commands, stages, names of recipes and files."""

from __future__ import annotations

from lnlit.cli.arguments import CommandParser

_BASH = """\
_lnlit() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} first=${{COMP_WORDS[1]}} words=
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
    case "$first" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [ "$COMP_CWORD" -gt 1 ]; then COMPREPLY+=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _lnlit lnlit
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n" + _BASH
_SHELLS = {"bash": _BASH, "zsh": _ZSH}


def main(argv: list[str]) -> int:
    """Print a script that makes a shell complete lnlit's commands: eval "$(lnlit completion bash)"."""
    parser = CommandParser(prog="lnlit completion", description=main.__doc__)
    parser.add_argument("shell", choices=list(_SHELLS))
    print(script(parser.parse_args(argv).shell), end="")
    return 0


def script(shell: str) -> str:
    from lnlit.cli.main import COMMANDS
    from lnlit.cli.recipes import listed
    from lnlit.cli.stage_commands import ALL

    second = {command.name: " ".join(command.stages) for command in ALL if len(command.stages) > 1}
    second |= {"plugins": "find new --check", "recipes": "show copy", "data": "show", "completion": " ".join(_SHELLS)}
    cases = [f'      {name}) [ "$COMP_CWORD" -eq 2 ] && words="{words}";;' for name, words in second.items()]
    recipes = " ".join(listed())
    cases[list(second).index("recipes")] = (
        f'      recipes) if [ "$COMP_CWORD" -eq 2 ]; then words="{second["recipes"]}"; else words="{recipes}"; fi;;'
    )
    return _SHELLS[shell].format(commands=" ".join([*COMMANDS, "--help", "--version"]), cases="\n".join(cases))

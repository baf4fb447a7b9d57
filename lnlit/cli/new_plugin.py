"""`lnlit plugins new KIND NAME`: a package with a part that works, its entry point and its contract test."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from importlib.metadata import distributions
from importlib.resources import files
from pathlib import Path

from lnlit import __version__, registry
from lnlit.builtins import OF_OUR_PLUGINS
from lnlit.cli.main import told
from lnlit.errors import UserError
from lnlit.files import expanded, replaced_folder

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{kind} {name!r} for lnlit"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["lnlit>={major}.{minor},<{major}.{next_minor}"]

[project.entry-points."lnlit.{kind}"]
{name} = "{module}:{cls}"

[tool.setuptools]
py-modules = ["{module}"]
"""

_README = """\
# {distribution}

`{module}.py` holds `{cls}`, a part of kind `{kind}` that works; put yours in its place. Its constructor's arguments are
the keys that a configuration or a model's spec may give it. The entry point in `pyproject.toml` gives it its name.

1. `pip install -e .`, then `lnlit plugins` lists it, `lnlit plugins --check` imports it, and
   `lnlit plugins find {kind} {name}` prints where it lives.
2. `pytest` tries what lnlit promises of every {kind} (`lnlit.testing`).
3. {use}

Installing it changes no run. A name that two installed distributions offer is written `{distribution}:{name}` by
whoever uses it.
"""

_LAYER = 'A model folder\'s `lnlit.json` names the part of each slot: `{{"type": "{name}", "args": {{...}}}}`.'
_LAYERS = ("attention", "ffn")
_USES = {
    **dict.fromkeys(_LAYERS, _LAYER),
    "attention_kernel": "`--model.runtime.attention_kernel {name}` runs a model with it.",
    "checkpoint": "`lnlit import PATH OUT` reads what it recognises.",
    "method": "`lnlit fit --model {name}`, or `model: {{class_path: {name}}}` in YAML.",
    "meter": "`lnlit search measure --engine {name}`.",
    "solver": "`lnlit search solve --solver {name}`.",
    "task": "`lnlit eval MODEL --tasks {name}`.",
}
#: Distributions of lnlit's own.
_OURS = {*OF_OUR_PLUGINS.values(), "lnlit-lm-eval"}
_CLASS_PATH = "In YAML: `class_path: {name}`, with its arguments under `init_args`."


@told
def write_plugin(kind: str, name: str, folder: str | Path | None = None) -> Path:
    """Writes a package with a part of that kind, as `lnlit plugins new` does, by default into a new folder with the
    name of its distribution. Returns the folder.

    Raises `UserError` for a name that is not an identifier or is taken, and for a folder that is not empty.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii() or not name.strip("_"):
        raise UserError(f"name: got {name!r}; expected letters, digits and underscores, as in my_{kind}.")
    if name in registry.names(kind):
        raise UserError(f"{kind} {name!r} exists already; choose another name. `lnlit plugins` lists them.")
    major, minor = (*__version__.partition("+")[0].split("."), "0")[:2]
    words = {
        "kind": kind,
        "name": name,
        "cls": "".join(word[:1].upper() + word[1:] for word in name.split("_")),
        "distribution": f"lnlit-{name.lower().strip('_').replace('_', '-')}",
        "module": f"lnlit_{name.lower()}",
        "major": major,
        "minor": minor,
        "next_minor": int(minor) + 1,
    }
    words["use"] = _USES.get(kind, _CLASS_PATH).format(**words)
    out = (expanded(folder) if folder is not None else Path(str(words["distribution"]))).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already and not empty. Give another folder.")
    examples = files("lnlit.testing.plugin")
    part, test = ((examples / file).read_text(encoding="utf-8") for file in (f"{kind}.py", f"{kind}_test.py"))
    _check_free(name, words, part)
    with replaced_folder(out) as scratch:
        (scratch / "tests").mkdir()
        for text, file in ((part, f"{words['module']}.py"), (test, f"tests/test_{name}.py")):
            text = re.sub(r"\bExample\b", str(words["cls"]), re.sub(r"\bexample\b", name, text))
            (scratch / file).write_text(text, encoding="utf-8")
        (scratch / "pyproject.toml").write_text(_PYPROJECT.format(**words), encoding="utf-8")
        told = (examples / "layer.md").read_text(encoding="utf-8") if kind in _LAYERS else ""
        (scratch / "README.md").write_text("\n".join(filter(None, [_README.format(**words), told])), encoding="utf-8")
    return out


def _check_free(name: str, words: Mapping[str, str | int], part: str) -> None:
    """Raises `UserError` for a name whose distribution would replace another one, or whose class would hide what the
    text of the `part` uses.
    """
    theirs = {re.sub(r"[-_.]+", "-", found.name).lower() for found in distributions() if found.name}
    if words["distribution"] in {*theirs, *_OURS}:
        raise UserError(
            f"name: {name!r} makes the distribution {words['distribution']}, which exists already and which this one "
            "would replace. Choose another name."
        )
    if words["cls"] in re.findall(r"\w+", part):
        raise UserError(
            f"name: {name!r} makes the class {words['cls']}, a name that its file uses. Choose another name."
        )

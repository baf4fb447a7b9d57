"""The user's input: the files and options of a command line as one tree, and where each key came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lnlit import own
from lnlit.errors import UserError

#: A place in the tree: keys of mappings and indices of lists.
Place = tuple[str | int, ...]

#: The tag of `<<`, which may be there several times.
_MERGE = "tag:yaml.org,2002:merge"
_SPEC_KEYS = {"class_path", "init_args", "dict_kwargs"}


class Written:
    """Files and options merged in order, later ones taking precedence, as in LightningCLI.

    Raises `UserError` for a file that is missing, is not YAML or is not a mapping, and for an option before a file that
    would override it.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.tree: dict[str, Any] = {}
        self._files: list[tuple[str, yaml.Node]] = []
        self._options: list[Place] = []
        for option, value in options_of(arguments):
            if option in ("-c", "--config"):
                self._add_file(value)
                self._check_order(value)
            elif option.startswith("--"):
                self._add_option(option, value)

    def where(self, place: Place) -> str:
        """`"file.yaml:12: "` or `"command line: "` for the last mention of `place`; empty if there is none."""
        if any(option[: len(place)] == place or place[: len(option)] == option for option in self._options):
            return "command line: "
        for name, root in reversed(self._files):
            line = _line(root, place)
            if line is not None:
                return f"{name}:{line}: "
        return ""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the files, in order."""
        return tuple(Path(name).parent for name, _ in self._files)

    def _add_file(self, value: str | None) -> None:
        if value is None:
            raise UserError("--config: expected a file name. Write --config FILE.yaml.")
        path = Path(value)
        if not path.is_file():
            raise UserError(f"--config: there is no file {value!r}{_neighbour(path)}.")
        tree, root = read_yaml(value)
        if tree is None or root is None:
            return
        if not isinstance(tree, dict):
            raise UserError(f"{value}: expected a mapping of keys such as trainer, model, data; got {tree!r:.60}.")
        if not _is_small(tree):
            raise UserError(f"{value}: its anchors (&name) and aliases (*name) go round in a circle, or on for ever.")
        _check_keys(root, value)
        self.tree = _merged(self.tree, own.anchored(tree, path.parent))
        self._files.append((value, root))

    def _check_order(self, file: str | None) -> None:
        """Raises `UserError` if the file just added sets anything below the same first key as an option before it."""
        name, root = self._files[-1] if self._files else (None, None)
        if name != file or not isinstance(root, yaml.MappingNode):
            return
        keys = {str(key.value).partition(".")[0].removesuffix("+") for key, _ in root.value}
        if early := next((option for option in self._options if option[0] in keys), None):
            raise UserError(
                f"--{'.'.join(map(str, early))} stands before --config {file}, which has {early[0]} too and would win "
                "over it. Write options behind the last --config."
            )

    def _add_option(self, option: str, value: str | None) -> None:
        try:
            parsed = None if value is None else yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        parts = option.removeprefix("--").removesuffix("+").split(".")
        if parts[-1] == "help" or parts == ["print_config"]:
            return
        node, place = self.tree, ()
        for part in parts[:-1]:
            node, place = _into_init_args(node, place, part)
            child = node.get(part)
            if not isinstance(child, dict):
                child = {"class_path": child} if isinstance(child, str) else {}
            node[part] = child
            node, place = child, (*place, part)
        node, place = _into_init_args(node, place, parts[-1])
        old = node.get(parts[-1])
        if option.endswith("+"):  # one more item, or several, behind those before
            before = listed(old)
            node[parts[-1]] = [*before, *(parsed if isinstance(parsed, list) else [parsed])]
            self._options += [(*place, parts[-1], index) for index in range(len(before), len(node[parts[-1]]))]
            return
        replaces_class = isinstance(old, dict) and "class_path" in old and isinstance(parsed, str)
        node[parts[-1]] = _merged(old, {"class_path": parsed}) if replaces_class else parsed
        self._options.append((*place, parts[-1], "class_path") if replaces_class else (*place, parts[-1]))


def texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a tree; those in a list have the list's key."""
    if isinstance(node, str):
        yield key, node
    for name, value in node.items() if isinstance(node, dict) else ():
        yield from texts(value, str(name))
    for value in node if isinstance(node, list) else ():
        yield from texts(value, key)


def listed(value: Any) -> list[Any]:
    """A setting that may be one item, several or none, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def read_yaml(file: str | Path) -> tuple[Any, yaml.Node | None]:
    """The content of a YAML file, and its nodes, which know their lines. Raises `UserError` if it is no YAML."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        return yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not text; expected a YAML file.") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise UserError(f"{file}: is nested too deeply; expected a YAML file of a configuration.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{file}{line}: is not valid YAML: {problem}.") from None


def _check_keys(root: yaml.Node, file: str) -> None:
    """Raises `UserError` for a key that a mapping has twice: PyYAML silently drops the first."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != _MERGE and (first := lines.setdefault((key.tag, str(key.value)), line)) != line:
                raise UserError(f"{file}:{line}: the key {key.value!r} is in line {first} already. Join the two.")
            waiting.append(value)


def _is_small(tree: Any, most: int = 100_000) -> bool:
    """True if a tree has fewer than `most` values when its aliases are expanded."""
    waiting, seen = [tree], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if seen + len(waiting) > most:
            return False
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return True


def _into_init_args(node: dict[str, Any], place: Place, key: str) -> tuple[dict[str, Any], Place]:
    """Expands `--model.lr`, which is short for `--model.init_args.lr` on the command line."""
    if "class_path" not in node or key in _SPEC_KEYS:
        return node, place
    if not isinstance(node.get("init_args"), dict):
        node["init_args"] = {}
    return node["init_args"], (*place, "init_args")


def options_of(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """(option, value) pairs: `--key value`, `--key=value`, or `--key` alone."""
    pairs: list[tuple[str, str | None]] = []
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            pairs.append((option, rest.pop(0)))
        else:
            pairs.append((option, value if equals else None))
    return pairs


def _merged(old: Any, new: Any) -> Any:
    """`new` merged over `old`. Another class drops the arguments of the class before."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if new.get("class_path", old.get("class_path")) != old.get("class_path"):
        old = {key: value for key, value in old.items() if key != "init_args"}
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _line(node: yaml.Node, place: Place) -> int | None:
    """The line of `place` in a composed YAML file, counted from 1."""
    parts = [one for part in place for one in (part.removesuffix("+").split(".") if isinstance(part, str) else [part])]
    return _line_of(node, parts)


def _line_of(node: yaml.Node, parts: Sequence[str | int]) -> int | None:
    for key, value in _entries(node, parts[0]) if parts else ():
        line = _line_of(value, parts[1:]) if parts[1:] else key.start_mark.line + 1
        if line is not None:
            return line
    return None


def _entries(node: yaml.Node, part: str | int) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Yields (key, value) of each mention of `part` in a node. A key may be dotted; `key+` adds to the list `key`."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        yield node.value[part], node.value[part]
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        first, _, rest = str(key.value).partition(".")
        if first.removesuffix("+") != str(part):
            continue
        if rest:
            below = yaml.ScalarNode(key.tag, rest, key.start_mark)
            yield key, yaml.MappingNode("", [(below, value)])
        elif first.endswith("+") and not isinstance(value, yaml.SequenceNode):
            yield key, yaml.SequenceNode("", [value])
        else:
            yield key, value


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {str(path.parent)!r} either"
    others = sorted(item.name for item in path.parent.iterdir() if item.match("[!.]*.y*ml"))
    return f"; the folder holds {', '.join(others[:8])}" if others else ""

"""What a user may get wrong: a word of the command line, a key or value of a configuration, a file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

#: Values of any kind, for any option or key.
VALUES: list[Any] = [
    "", " ", "0", "-1", "1", "2", "3", "1.5", "1e-3", "1e400", "-inf", "nan", ".nan", ".inf", "true", "false", "null", "None", "on", "off",
    "yes", "~", "[]", "{}", "[1, 2]", "[a, b]", "{a: 1}", "{class_path: jsonl}", "{class_path: Nothing}", "[[1], [2]]", "{", "'", "- a", "a: b",
    "99999999999999999999", "-99999999999", "0x10", "1_000", "٣", "½", "é", "日本", "a\x00b", "a\nb", "x" * 3000, "*", "**", "!!python/object:os.system",
    "&a [*a]", "last", "best", "auto", "bf16-mixed", "float32", "gqa", "noop", "kv1", "a+b", "a[1]", "latency_s", "memory_mib",
    "greedy", "highs", "native", "vllm", "format", "math_answer", "jsonl", "parquet", "text", "os.system", "builtins.eval", "torch.load",
    "lnlit.modules.sft.SFT", "SFT", "GRPO", "Distill", "ChatData", "PromptData", "reasoning_gym", "preference", "split",
]  # fmt: skip
#: Paths that a user may name for any other.
PATHS = [
    "model", "model/config.json", "model/model.safetensors", "model/tokenizer.json", "model.gguf", "child", "library", "library/library.json",
    "scores.jsonl", "costs.json", "solution.json", "rows.jsonl", "texts.jsonl", "pairs.jsonl", "prompts.jsonl", "rated.jsonl", "run",
    "run/checkpoints", "run/checkpoints/step-1.ckpt", "fit.yaml", "solve.yaml", "grpo.yaml", "pipeline", "problem.json", "bad/empty",
    "bad/empty_folder", "bad/binary", "bad/latin1.jsonl", "bad/half.safetensors", "bad/half.ckpt", "bad/half.gguf", "bad/loop", "bad/list.json",
    "bad/deep.json", "bad/nan.json", "bad/pickle.ckpt", "bad/no_tensors.safetensors", "bad/zip.ckpt", "nowhere", "nowhere/at/all", ".", "..",
    "/", "/dev/null", "/dev/full", "/proc/self/mem", "~", "~no-such-user/x", "file:///etc/passwd", "http://localhost:1/v1", "owner/name", "pypi:", "pypi:nothing-here", "x" * 300,
    "new", "new/x/y/z", "model/", "./model", "mo*el", "bad/dangling", "bad/folder.ckpt", "bad/folder.safetensors", "bad/cycle.yaml",
]  # fmt: skip


def bad_files(root: Path) -> None:
    """Files that nothing can be read from, beside a world that works."""
    bad = root / "bad"
    bad.mkdir()
    (bad / "empty").write_bytes(b"")
    (bad / "empty_folder").mkdir()
    (bad / "binary").write_bytes(bytes(range(256)) * 9)
    (bad / "latin1.jsonl").write_bytes('{"messages": [{"role": "user", "content": "\xe9"}]}\n'.encode("latin-1"))
    for kind, whole in (
        ("safetensors", "model/model.safetensors"),
        ("ckpt", "run/checkpoints/step-1.ckpt"),
        ("gguf", "model.gguf"),
    ):
        data = (root / whole).read_bytes()
        (bad / f"half.{kind}").write_bytes(data[: len(data) // 2])
        (bad / f"folder.{kind}").mkdir()
    (bad / "loop").symlink_to("loop")
    (bad / "dangling").symlink_to("gone")
    (bad / "list.json").write_text("[1, 2, 3]")
    (bad / "deep.json").write_text("[" * 5000 + "]" * 5000)
    (bad / "nan.json").write_text('{"layers": NaN, "a": Infinity}')
    (bad / "pickle.ckpt").write_bytes(
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06getpid\x94\x93\x94)R\x94."
    )
    (bad / "zip.ckpt").write_bytes(b"PK\x05\x06" + bytes(18))
    (bad / "no_tensors.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (bad / "cycle.yaml").write_text("a: &a\n  b: *a\n")


def mutate(rng: random.Random, words: list[str], root: Path) -> tuple[list[str], str]:
    """(another command line, what was done). May change copies of files in `root`."""
    done = []
    words = list(words)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(
            (_value, _path, _path, _drop, _twice, _unknown, _misspelt, _key, _key, _key, _bytes, _bytes, _option)
        )
        if not words:  # the last word was taken away
            break
        words, what = change(rng, words, root)
        done.append(what)
    return words, "; ".join(done)


def _place(rng: random.Random, words: list[str]) -> int:
    return rng.randrange(1, len(words)) if len(words) > 1 else 0


def _value(rng, words, root):
    at, value = _place(rng, words), rng.choice(VALUES)
    return [*words[:at], value, *words[at + 1 :]] if at else [*words, value], f"word {at} = {value!r:.40}"


def _path(rng, words, root):
    at, value = _place(rng, words), rng.choice(PATHS)
    return [*words[:at], value, *words[at + 1 :]] if at else [*words, value], f"word {at} = {value!r:.40}"


def _drop(rng, words, root):
    at = rng.randrange(len(words))
    return words[:at] + words[at + 1 :], f"without word {at}"


def _twice(rng, words, root):
    at = rng.randrange(len(words))
    return [*words, words[at]], f"word {at} again at the end"


def _unknown(rng, words, root):
    name = rng.choice(
        (
            "--nonsense",
            "--trainer.nonsense",
            "--model.init_args.nonsense",
            "-x",
            "--",
            "-",
            "--help",
            "--config",
            "--debugg",
            "--overwrite",
            "--out",
        )
    )
    return [*words, name, *([] if rng.random() < 0.5 else [str(rng.choice(VALUES))])], f"{name} added"


def _misspelt(rng, words, root):
    at = rng.randrange(len(words))
    word = words[at]
    if len(word) < 3:
        return words, "nothing"
    cut = rng.randrange(len(word) - 1)
    return [
        *words[:at],
        word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :],
        *words[at + 1 :],
    ], f"word {at} misspelt"


def _option(rng, words, root):
    """An option for a key that a configuration of this command line has, with another value."""
    leaves = [leaf for name in _configs(words, root) for leaf in _leaves(_read(root / name))]
    if not leaves:
        return _value(rng, words, root)
    place, _ = rng.choice(leaves)
    keys = [str(key) for key in place]
    value = str(rng.choice(VALUES + PATHS))
    return [*words, f"--{'.'.join(keys)}", value], f"--{'.'.join(keys)} {value!r:.40}"


def _key(rng, words, root):
    """Change a key or a value in one of the configurations that the command line names."""
    names = _configs(words, root)
    if not names:
        return _value(rng, words, root)
    name = rng.choice(names)
    tree = _read(root / name)
    leaves = _leaves(tree)
    if not leaves:
        return words, "nothing"
    place, old = rng.choice(leaves)
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    how = rng.choice(("value", "value", "path", "number", "gone", "renamed", "nested", "upper"))
    if how == "gone":
        del parent[place[-1]]
    elif how == "renamed" and isinstance(parent, dict):
        parent[f"{place[-1]}x"] = parent.pop(place[-1])
    elif how == "nested":
        parent[place[-1]] = {place[-1]: old} if rng.random() < 0.5 else [old]
    elif how == "number":
        parent[place[-1]] = rng.choice(
            (0, -1, 1, 2, 3, 7, 1e-9, 1e9, 10**12, 2**63, 0.5, float("nan"), float("inf"), True, None)
        )
    elif how == "upper":
        owner = place[: rng.randrange(len(place))]
        if owner:
            holder = tree
            for key in owner[:-1]:
                holder = holder[key]
            holder[owner[-1]] = rng.choice((None, 3, "text", [], {}, [None]))
    else:
        text = rng.choice(VALUES if how == "value" else PATHS)
        try:
            parent[place[-1]] = yaml.safe_load(text) if rng.random() < 0.5 else text
        except (yaml.YAMLError, ValueError):
            parent[place[-1]] = text
    try:
        (root / name).write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="replace")
    except yaml.YAMLError:
        return words, "nothing"
    return words, f"{name}: {'.'.join(map(str, place))} {how}"


def _bytes(rng, words, root):
    """Damage one of the files: cut it, flip bytes, put something in its middle, or take it away."""
    named = " ".join([*words, *((root / name).read_text(errors="replace") for name in _configs(words, root))])
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    files = [path for path in files if path.relative_to(root).parts[0] in named]
    if not files:
        return words, "nothing"
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    how = rng.choice(("cut", "flip", "insert", "gone", "empty", "line twice"))
    at = rng.randrange(len(data) + 1)
    if how == "cut":
        del data[at:]
    elif how == "flip":
        for _ in range(rng.choice((1, 5))):
            if data:
                data[rng.randrange(len(data))] ^= rng.choice((1, 32, 255))
    elif how == "insert":
        data[at:at] = rng.choice(
            (b"\x00", b"\xff\xfe", b"{", b'"', b"\n", b"NaN", b",", b"\xed\xa0\x80", b"9999999999")
        )
    elif how == "line twice":
        lines = bytes(data).split(b"\n")
        spot = rng.randrange(len(lines))
        data = bytearray(b"\n".join([*lines[: spot + 1], *lines[spot:]]))
    else:
        data = bytearray()
    path.unlink() if how == "gone" else path.write_bytes(bytes(data))
    return words, f"{path.relative_to(root)}: {how}"


def _configs(words: list[str], root: Path) -> list[str]:
    named = [word for word in words if word.endswith(".yaml") and (root / word).is_file()]
    if "pipeline" in words:
        named += sorted(str(path.relative_to(root)) for path in (root / "pipeline").glob("*.yaml"))
    return named


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None


def _leaves(node: Any, place: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    if len(place) > 20:  # a file whose aliases go round in a circle
        return []
    if isinstance(node, dict) and node:
        return [leaf for key, value in node.items() for leaf in _leaves(value, (*place, key))]
    if isinstance(node, list) and node:
        return [leaf for index, value in enumerate(node) for leaf in _leaves(value, (*place, index))]
    return [(place, node)] if place else []

"""A model card, rebuilt from a folder's lnlit.json alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from lnlit.models.build import build_decoder, parameter_count
from lnlit.models.parts import short_name
from lnlit.report.theme import plain
from lnlit.specs import ModelSpec

#: What packages and licence files call a licence, word for word -> what the hub calls it.
_HUB_LICENCES = {
    r"apache([ -]licen[cs]e)?,?[ -]?(version )?2(\.0)?": "apache-2.0",
    r"(the )?mit( licen[cs]e)?": "mit",
    r"(the )?bsd[ -]3[ -]clause( licen[cs]e)?": "bsd-3-clause",
    r"llama[ -]?3\.1( community licen[cs]e( agreement)?)?": "llama3.1",
    r"llama[ -]?3\.3( community licen[cs]e( agreement)?)?": "llama3.3",
}
#: Further names of the hub, which a card of the hub states.
_HUB_NAMES = (
    "gpl-3.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "llama2",
    "llama3",
    "llama3.2",
    "gemma",
    "openrail",
)
#: A folder of the hub's cache, by owner and name.
_CACHED = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/[0-9a-f]+/?$")
#: An absolute path below the root; a text of one such word alone may be a command or a control token.
_PATH = re.compile(r"(?:~|/[^/\n]+)/[^\n]*")
_READERS = {"transformers": "transformers", "vLLM": "vllm", "llama.cpp": "llama.cpp", "mlx-lm": "mlx"}


def model_card(title: str, record: Mapping[str, Any]) -> str:
    """The card in the hub's Markdown, of the content of lnlit.json. What that does not say, the card does not, and what
    lies where on this machine neither."""
    record = without_folders(record)
    spec, provenance = ModelSpec.from_json(record["spec"]), record.get("provenance", {})
    parts = [
        "---",
        yaml.safe_dump(_front_matter(record, provenance), sort_keys=False).rstrip(),
        "---",
        "",
        f"# {title}",
        "",
    ]
    for heading, lines in (
        ("", _what(spec, provenance)),
        ("Architecture", _architecture(spec)),
        ("Evaluation", _evaluation(provenance.get("evaluation"))),
        ("Measured speed", _speed(provenance.get("measured"))),
        ("Budget", _budget(provenance)),
        ("Quantisation", _quantised(record.get("quantization"))),
        ("How it was made", _history(provenance)),
        ("Programs that load it", _readers(record.get("obstacles", {}))),
        ("Licence", _licence(provenance)),
    ):
        found = list(lines)
        if found:
            parts += [*([f"## {heading}", ""] if heading else []), *found, ""]
    return "\n".join(parts).rstrip() + "\n"


def _named(parent: str) -> str:
    """A parent without the folders of the machine it lay on; of the hub's cache, its name there."""
    if cached := _CACHED.search(parent):
        return "/".join(cached.groups())
    return parent.rstrip("/").rpartition("/")[2] if _PATH.fullmatch(parent) else parent


def without_folders(node: Any) -> Any:
    """A record whose absolute paths are the names that are shown for them, so that it may leave the machine."""
    if isinstance(node, Mapping):
        return {key: without_folders(each) for key, each in node.items()}
    if isinstance(node, list):
        return [without_folders(each) for each in node]
    return _named(node) if isinstance(node, str) else node


def _steps(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The provenance and those of its ancestors, the youngest first."""
    record = provenance
    while record:
        yield record
        record = record.get("parent_provenance", {})


def _parents(provenance: Mapping[str, Any]) -> list[str]:
    return [step["parent"] for step in _steps(provenance) if "parent" in step]


def _said_licence(provenance: Mapping[str, Any]) -> str | None:
    return next((step["parent_licence"] for step in _steps(provenance) if step.get("parent_licence")), None)


def _front_matter(record: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    licence, found = _said_licence(provenance), {}
    if licence:
        said = (name for pattern, name in _HUB_LICENCES.items() if re.fullmatch(pattern, licence, re.IGNORECASE))
        known = next(said, licence if licence in _HUB_NAMES else None)
        found |= {"license": known} if known else {"license": "other", "license_name": licence}
    if on_hub := next((parent for parent in _parents(provenance) if parent.count("/") == 1), None):
        found["base_model"] = on_hub
    obstacles = record.get("obstacles", {})
    readers = [tag for name, tag in _READERS.items() if name in obstacles and not obstacles[name]]
    found["library_name"] = "transformers" if "transformers" in readers else "lnlit"
    found["pipeline_tag"] = "text-generation"
    return found | {"tags": ["lnlit", *readers]}


def _what(spec: ModelSpec, provenance: Mapping[str, Any]) -> Iterator[str]:
    parents = _parents(provenance)
    count = parameter_count(build_decoder(spec, "meta"))
    made_of = f", made of {parents[-1]}" if parents else ""
    yield (
        f"A model of {count / 1e6:,.1f} million parameters{made_of} with lnlit {provenance.get('lnlit', '')}, "
        f"{len(spec.layers)} layers, a hidden size of {spec.hidden_size}, a vocabulary of {spec.vocab_size:,} tokens "
        f"and a context of {spec.context_length:,}."
    )
    if any(step.get("thinking") for step in _steps(provenance)):
        yield ""
        yield "It was taught to think before it answers if the system prompt is `detailed thinking on`."


def _architecture(spec: ModelSpec) -> Iterator[str]:
    """Runs of equal layers."""
    named = [(short_name("attention", block.attention), short_name("ffn", block.ffn)) for block in spec.layers]
    yield from _table(("layers", "attention", "FFN"), _runs(named))


def _runs(named: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    start = 0
    for at in range(1, len(named) + 1):
        if at == len(named) or named[at] != named[start]:
            yield (str(start) if at == start + 1 else f"{start} to {at - 1}", *named[start])
            start = at


def _evaluation(found: Mapping[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    rows = [
        (each["task"], each["thinking"] or "", each["figure"], *_interval(each), each["questions"])
        for each in found["results"]
    ]
    yield from _table(("task", "thinking", "figure", "value", "95 % interval", "questions"), rows)
    if found.get("differences"):
        yield ""
        yield f"Against {found['against']}, question by question:"
        yield ""
        rows = [
            (each["task"], each["thinking"] or "", each["figure"], *_interval(each), each["better"], each["worse"])
            for each in found["differences"]
        ]
        yield from _table(("task", "thinking", "figure", "difference", "95 % interval", "better", "worse"), rows)


def _interval(found: Mapping[str, Any]) -> tuple[str, str]:
    value, low, high = (found.get(key) for key in ("value", "low", "high"))
    around = "" if low is None or high is None else f"{plain(low)} to {plain(high)}"
    return "" if value is None else plain(value), around


def _speed(found: Mapping[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    own, parent = found["measured"], found.get("parent", {})
    rows = [
        (cost, plain(value), *([plain(parent[cost]), f"{value / parent[cost]:.2f}"] if parent.get(cost) else ["", ""]))
        for cost, value in own.items()
    ]
    yield from _table(("cost", "this model", found.get("parent_name", "parent").rpartition("/")[2], "ratio"), rows)
    yield ""
    yield f"Measured with the meter `{found['engine']}` in {found['dtype']}."


def _budget(provenance: Mapping[str, Any]) -> Iterator[str]:
    """What the search was asked for, of the youngest ancestor that came out of one."""
    solution = next((step["solution"] for step in _steps(provenance) if "solution" in step), None)
    if solution is None:
        return
    costs = solution.get("costs", {})
    yield f"Chosen by a search over block libraries (Puzzle) with a score of {plain(solution['score'])}."
    if costs:
        yield ""
        yield from _table(("cost", "of the choice"), [(name, plain(value)) for name, value in costs.items()])


def _quantised(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found:
        yield f"The layers' matrices are stored in {found.get('scheme', 'eight bits')} (compressed-tensors)."


def _history(provenance: Mapping[str, Any]) -> Iterator[str]:
    """One line for each step from the first parent on, and the recipes of those that were trained."""
    steps = list(_steps(provenance))[::-1]
    for number, step in enumerate(steps, 1):
        yield f"{number}. {_step(step)}"
    for step in steps:
        if recipe := step.get("recipe"):
            yield from ("", f"<details><summary>The recipe of {step['method']}</summary>", "", "```yaml")
            yield yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).rstrip()
            yield from ("```", "", "</details>")


def _step(step: Mapping[str, Any]) -> str:
    parent = f" from {step['parent']}" if "parent" in step else ""
    if "steps" in step:
        data = f", data {str(step['data'])[:12]}" if step.get("data") else ""
        begun = f", going on from the adapter {step['from_adapter']['adapter']}," if "from_adapter" in step else ""
        return f"Trained by {step['method']}{parent}{begun} for {step['steps']:,} steps{data}."
    if "solution" in step:
        return f"Assembled{parent} by a search over a block library."
    if "merged" in step:
        return f"Merged ({step['method']}) of {', '.join(each['model'] for each in step['merged'])}."
    if step.get("stage") == "fuse":
        return f"FFNs fused{parent}."
    if "adapter" in step:
        return f"The adapter {step['adapter']} merged into {step['parent']}."
    return f"Imported{parent}." if parent else "Written."


def _readers(obstacles: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for name, reasons in obstacles.items():
        yield f"- {name}: {'yes' if not reasons else 'no; ' + '; '.join(reasons)}"


def _licence(provenance: Mapping[str, Any]) -> Iterator[str]:
    parents, licence = _parents(provenance), _said_licence(provenance)
    if licence:
        yield f"The licence of {parents[-1]}: {licence}."
    elif parents:
        yield f"Not known: nothing beside {parents[-1]} said what its licence is. Ask its authors."


def _table(head: Sequence[str], rows: Sequence[Sequence[object]] | Iterator[Sequence[object]]) -> Iterator[str]:
    def line(cells: Sequence[object]) -> str:
        return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    yield line(head)
    yield line(["---"] * len(head))
    yield from map(line, rows)

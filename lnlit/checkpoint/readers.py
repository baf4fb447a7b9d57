"""Which programs load a folder that lnlit writes, and what keeps the others from it.

Each rule was found in the program's own code. Those of nemotron-nas are checked by tests/integration/test_readers.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lnlit.checkpoint.blocks import SINGLE_LINEAR, WIDTH_MULTIPLE, multiplier_of_width
from lnlit.checkpoint.formats import written
from lnlit.files import read_json
from lnlit.models.parts import kv_elements
from lnlit.specs import NOOP, ModelSpec

_Finding = tuple[str, str]
"""What keeps a reader from a model, and where: "layers[3].ffn", or "" for all of it."""
_LLAMA3_VOCABULARY = 128_256
_PLACES = 3


def obstacles(spec: ModelSpec, folder: Path | None = None, like: str = "") -> dict[str, list[str]]:
    """What keeps each program from loading the folder of `spec` or from computing the same as lnlit; an empty list if
    nothing does. `folder` is where the tokenizer lies, which one of them depends on; `like` as in `formats.written`.

    vLLM, mlx-lm and llama.cpp are meant as released, and transformers with the folder's own code.
    """
    chosen = written(spec, like)
    found = chosen.format.obstacles(chosen.spec, folder)
    return {reader: list(found.get(reader, ())) for reader in _RULES}


def of_decilm(spec: ModelSpec, folder: Path | None) -> dict[str, list[str]]:
    """What keeps programs from loading a `nemotron-nas` folder."""
    found = {reader: grouped(rule(spec)) for reader, rule in _RULES.items()}
    if folder is not None:
        found["llama.cpp"] += _vocabulary(spec, folder)
    return found


def of_lnlit(spec: ModelSpec) -> dict[str, list[str]]:
    """Maps each program to the reasons why it cannot load a folder that only lnlit's own format can express. The reason
    given is why `nemotron-nas` cannot express it, because that is the most general of the other formats.
    """
    reason = written(spec).refusals["nemotron-nas"]
    return {reader: [reason] for reader in _RULES} | {
        "vLLM with lnlit-vllm": grouped(_vllm_with_plugin(spec)),
    }


def sentences(found: Mapping[str, list[str]]) -> list[str]:
    """The `obstacles` as text: one line with the programs that load the folder, and one for each that does not."""
    able = [reader for reader, reasons in found.items() if not reasons]
    return [
        f"{', '.join(able)} can run this architecture",
        *(f"{reader} cannot: {'; '.join(reasons)}" for reader, reasons in found.items() if reasons),
    ]


def grouped(findings: Iterable[_Finding]) -> list[str]:
    """One line per reason, with the first few places."""
    places: dict[str, list[str]] = defaultdict(list)
    for reason, place in findings:
        places[reason].append(place)
    return [f"{reason}{_among(where)}" for reason, where in places.items()]


def _among(places: list[str]) -> str:
    more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
    return f" ({', '.join(places[:_PLACES])}{more})" if any(places) else ""


def _nothing(spec: ModelSpec) -> Iterator[_Finding]:
    yield from ()


def _vllm(spec: ModelSpec) -> Iterator[_Finding]:
    """(reason, place) of whatever keeps vLLM's class `nemotron_nas` from loading the model; FFN widths never do."""
    yield from _parts(spec, SINGLE_LINEAR, "it knows no single linear")
    first = next((index for index, block in enumerate(spec.layers) if (block.attention, block.ffn) != (NOOP, NOOP)), -1)
    if first < 0:
        yield "it needs a layer with weights", ""
    elif spec.layers[first].attention == NOOP:
        yield "it needs attention in the first layer that has any weights", f"layers[{first}]"


def _vllm_with_plugin(spec: ModelSpec) -> Iterator[_Finding]:
    if not _has_attention(spec):
        yield "it serves no model without attention", ""


def _mlx(spec: ModelSpec) -> Iterator[_Finding]:
    """Obstacles of mlx-lm's module `nemotron-nas`."""
    yield from _widths(spec)
    yield from _parts(spec, SINGLE_LINEAR, "it looks for a single linear under another name")
    if not _has_attention(spec):
        yield "it needs a layer with attention", ""
    for path, _, part in spec.parts():
        if part.type == "gqa" and part.args["num_heads"] * part.args["head_dim"] != spec.hidden_size:
            yield "it takes hidden_size / num_attention_heads for the size of a head", path


def _llama_cpp(spec: ModelSpec) -> Iterator[_Finding]:
    """Obstacles of llama.cpp's converter for `DeciLMForCausalLM` and its graph `deci`."""
    yield from _widths(spec)
    last = len(spec.layers) - 1
    for index, block in enumerate(spec.layers):
        if block.ffn == SINGLE_LINEAR:
            yield "it knows no single linear in place of an FFN", f"layers[{index}].ffn"
        if block.ffn == NOOP and block.attention != NOOP:
            yield "it drops what attention adds in a layer without FFN, and says nothing", f"layers[{index}]"
        if block.ffn == NOOP and index == last:
            yield "it needs an FFN in the last layer", f"layers[{index}]"
        if block.attention.type == "gqa" and block.attention.args["head_dim"] != (
            spec.hidden_size // block.attention.args["num_heads"]
        ):
            yield "it takes hidden_size / num_attention_heads for the size of a head", f"layers[{index}].attention"
    if spec.layers[0].attention == NOOP:
        yield "it needs attention in the first layer", "layers[0]"
    if spec.rope.scaling is not None and spec.rope.scaling.type == "linear":
        yield "its converter drops the linear scaling of the rotary embedding, and says nothing", ""
    if not _has_attention(spec):
        yield "it needs a layer with attention", ""


def _vocabulary(spec: ModelSpec, folder: Path) -> list[str]:
    tokenizer = folder / "tokenizer.json"
    if spec.vocab_size == _LLAMA3_VOCABULARY or not tokenizer.is_file():
        return []
    if read_json(tokenizer).get("model", {}).get("byte_fallback"):
        return []
    return [
        f"its converter reads a byte-level vocabulary in this architecture only if it has {_LLAMA3_VOCABULARY} tokens"
    ]


def _widths(spec: ModelSpec) -> Iterator[_Finding]:
    for path, _, part in spec.parts():
        if part.type == "swiglu" and multiplier_of_width(part.args["intermediate_size"], spec.hidden_size) is None:
            yield f"it knows FFN widths as ffn_mult only, and that says multiples of {WIDTH_MULTIPLE}", path


def windows(spec: ModelSpec) -> Iterator[_Finding]:
    for path, _, part in spec.parts():
        if part.args.get("window"):
            yield "it lets every token see all those before it, and these layers have a window", path


def _parts(spec: ModelSpec, part: object, reason: str) -> Iterator[_Finding]:
    yield from ((reason, path) for path, _, found in spec.parts() if found == part)


def _has_attention(spec: ModelSpec) -> bool:
    return kv_elements(spec) > 0


_RULES: dict[str, Callable[[ModelSpec], Iterator[_Finding]]] = {
    "transformers": _nothing,
    "vLLM": _vllm,
    "vLLM with lnlit-vllm": _vllm_with_plugin,
    "mlx-lm": _mlx,
    "llama.cpp": _llama_cpp,
}

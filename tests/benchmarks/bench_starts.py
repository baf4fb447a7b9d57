"""What candidates of SmolLM2-135M start from, and where equal block distillation takes them from there.

    python tests/benchmarks/bench_starts.py MODEL TEXT.jsonl [--layers 1 12 22] [--steps 24]

Two starts: as the Puzzle paper has them (averaged heads, channels by their contribution, products of matrices) and as
`lnlit search library` makes them. Errors are those of whole blocks on text that nothing has seen. Block distillation is
AdamW on the same rows in the same order for both. `--steps 0` measures starts only; `--libraries FOLDER ...` those of
libraries that are there, as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.checkpoint.load import layerwise_decoder
from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.models.build import block_weights, build_block, load_block
from lnlit.models.surgery import narrow_ffn, pool_kv_heads
from lnlit.modules.optim import AdamW
from lnlit.objectives.block_error import squared_difference, sum_of_squares
from lnlit.search.choice import SLOTS, At, alone
from lnlit.search.library import NORMS, Library, slot_weights
from lnlit.search.space import Candidates
from lnlit.search.starts import initialise_layer
from lnlit.search.walk import Step, Walk
from lnlit.specs import ModelSpec, PartSpec

#: (rows of 512 tokens, documents to skip)
CALIBRATION, TRAIN, HELD_OUT = (16, 0), (96, 100), (8, 400)
Made = Mapping[At, Mapping[str, Tensor]]


def contributions(steps: list[Step]) -> Tensor:
    """By channel, the mean norm of what the FFN's output loses without it (Puzzle, appendix A)."""
    ffn: Any = steps[0].block.mlp
    seen: list[Tensor] = []
    hook = ffn.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().flatten(0, 1)))
    for step in steps:
        step.block.add_ffn(step.h_BTD)
    hook.remove()
    return torch.cat(seen).mean(0) * ffn.down_proj.weight.norm(dim=0)


def of_the_paper(
    part: PartSpec, own: Mapping[str, Tensor], scores_F: Tensor, heads: tuple[int, int]
) -> dict[str, Tensor]:
    """A candidate's weights without its norm, as the paper makes them."""
    if "num_kv_heads" in part.args:
        return pool_kv_heads(own, heads[1], part.args["num_kv_heads"])
    if "intermediate_size" in part.args:
        return narrow_ffn(own, scores_F, part.args["intermediate_size"])
    if "mlp.up_proj.weight" in own:
        return {"mlp.linear_mlp.weight": own["mlp.down_proj.weight"] @ own["mlp.up_proj.weight"]}
    value = own["self_attn.v_proj.weight"].unflatten(0, (heads[1], -1)).repeat_interleave(heads[0] // heads[1], 0)
    return {"self_attn.linear_attn.weight": own["self_attn.o_proj.weight"] @ value.flatten(0, 1)}


@torch.no_grad()
def both(spec: ModelSpec, walk: Walk, layer: int) -> dict[str, Made]:
    """The candidates' weights by start."""
    with walk.parent.layer(layer) as block:
        own = block_weights(block)
        before = Walk(walk.parent, walk.streams, walk.block_inputs, walk.position)
        scores_F = contributions(before.steps())
        variants, made = initialise_layer(walk, own, Candidates())
    args = spec.layers[layer].attention.args
    heads = args["num_heads"], args["num_kv_heads"]
    paper: dict[At, Mapping[str, Tensor]] = {}
    for at in made:
        half = slot_weights(at.slot, own)  # type: ignore[arg-type]
        norm = {name: tensor for name, tensor in half.items() if name in NORMS.values()}
        rest = {name: tensor for name, tensor in half.items() if name not in norm}
        part = variants.of(at.slot)[at.name].part  # type: ignore[union-attr]
        paper[at] = of_the_paper(part, rest, scores_F, heads) | norm if made[at] else {}
    return {"paper": paper, "library": made}


def error(block: Any, at: At, steps: Sequence[Step]) -> float:
    with torch.no_grad():
        away = sum(squared_difference(step.output(block, at.slot), step.out_BTD) for step in steps)
        return float(away / sum_of_squares(step.out_BTD for step in steps))


def distilled(block: Any, at: At, steps: Sequence[Step], number: int) -> None:
    """Trains a candidate for so many steps of four rows, as the recipe does."""
    settings = AdamW(3e-4, warmup_ratio=0.05, final_learning_rate=3e-5)
    optimizer = settings.build(block.requires_grad_(True).parameters())
    for step in range(number):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * settings.factor(step, number)
        rows = steps[2 * step : 2 * step + 2]
        square = sum_of_squares(row.out_BTD for row in rows)
        for row in rows:
            (squared_difference(row.output(block, at.slot), row.out_BTD) / square).backward()
        torch.nn.utils.clip_grad_norm_(block.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def stored(folder: str, walk: Walk, layers: Sequence[int]) -> dict[str, float]:
    """The mean error of each candidate of a library over some layers."""
    library, errors = Library.open(folder), {}
    for layer in layers:
        walk.seek(2 * layer)
        with walk.parent.layer(layer) as block:
            own, steps = block_weights(block), walk.steps()
            for slot in SLOTS:
                for name, variant in getattr(library.layers[layer], slot).items():
                    if variant.parent:
                        continue
                    at = At(layer, slot, name)
                    spec, weights = library.replacement(at, own)
                    child = build_block(library.spec, layer, spec)
                    load_block(child, {key: tensor.float() for key, tensor in weights.items()})
                    errors.setdefault(f"{slot} {name}", []).append(error(child, at, steps))
                    print(f"{folder} {at}: {errors[f'{slot} {name}'][-1]:.5f}", flush=True)
    return {name: mean(each) for name, each in errors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--layers", type=int, nargs="*")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--libraries", nargs="*", default=[])
    given = parser.parse_args()
    source = resolve(given.model)
    spec = read_spec(source)
    parent = layerwise_decoder(source, torch.device("cpu"), torch.float32)
    walks = []
    for rows, skip in (CALIBRATION, HELD_OUT, *([TRAIN] if given.steps else [])):
        tokens_RT = TextSample(JsonlSource(given.text), rows, 512, skip).tokens(str(source))
        walks.append(Walk.of_rows(parent, tokens_RT.split(2)))
    calibration, held_out, *train = walks
    found: dict[tuple[str, str], list[float]] = {}
    layers = range(len(spec.layers)) if given.layers is None else given.layers
    if given.libraries:
        for folder in given.libraries:
            walk = Walk(parent, held_out.streams, held_out.block_inputs)
            print(
                f"{folder}: " + ", ".join(f"{name} {each:.5f}" for name, each in stored(folder, walk, layers).items())
            )
        return
    for layer in layers:
        for walk in walks:
            walk.seek(2 * layer)
        made, seen = both(spec, calibration, layer), held_out.steps()
        steps = [step for walk in train for step in walk.steps()]
        for start, weights in made.items():
            for at, tensors in sorted(weights.items()):
                block = build_block(spec, layer, alone(at.slot, part_of(spec, layer, at)))  # type: ignore[arg-type]
                load_block(block, {name: tensor.clone() for name, tensor in tensors.items()})
                errors = [error(block, at, seen)]
                if tensors and given.steps:
                    distilled(block, at, steps, given.steps)
                    errors.append(error(block, at, seen))
                print(f"{at} {start}: " + " -> ".join(f"{each:.5f}" for each in errors), flush=True)
                name = f"{at.slot} {at.name}"
                for stage, value in zip(("start", "distilled"), errors, strict=False):
                    found.setdefault((name, f"{start}, {stage}"), []).append(value)
    columns = list(dict.fromkeys(column for _, column in found))
    print("| candidate | " + " | ".join(columns) + " |\n" + "|---" * (1 + len(columns)) + "|")
    for name in dict.fromkeys(name for name, _ in found):
        cells = [found.get((name, column)) for column in columns]
        print(f"| {name} | " + " | ".join("" if cell is None else f"{mean(cell):.5f}" for cell in cells) + " |")


def part_of(spec: ModelSpec, layer: int, at: At) -> PartSpec:
    parent = getattr(spec.layers[layer], at.slot)
    return Candidates().of(at.slot, parent)[at.name]  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

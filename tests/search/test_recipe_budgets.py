"""The budgets of the paper's recipes: a child of the published size keeps them, its parent does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lnlit.checkpoint.formats import read_spec
from lnlit.interfaces import Workload
from lnlit.search.costs import MIB
from lnlit.search.measure import Plan, checked_workloads
from lnlit.search.targets import Target
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.stages.measure import untimed

RECIPES = Path(__file__).parents[2] / "yaml"
RELEASED = Path(__file__).parents[2].parent / "shared" / "data" / "nemotron_configs"


def spec(hidden: int, heads: int, widths: list[int], attends: int) -> ModelSpec:
    """Llama 3 with attention in the first `attends` layers."""
    attention = PartSpec("gqa", {"num_heads": heads, "num_kv_heads": 8, "head_dim": 128})
    blocks = (
        BlockSpec(attention if layer < attends else NOOP, PartSpec("swiglu", {"intermediate_size": width}))
        for layer, width in enumerate(widths)
    )
    return ModelSpec(128256, hidden, tuple(blocks), 131072, tie_embeddings=False)


@pytest.mark.parametrize(
    ("recipe", "hidden", "heads", "width", "child_width", "layers", "attends", "billions"),
    [("ln-super", 8192, 64, 28672, 19968, 80, 50, 49), ("ln-ultra", 16384, 128, 53248, 34304, 126, 62, 253)],
)
def test_the_published_size_fits_and_the_parent_does_not(
    recipe, hidden, heads, width, child_width, layers, attends, billions
):
    parent = spec(hidden, heads, [width] * layers, layers)
    child = spec(hidden, heads, [child_width] * layers, attends)
    target, parameters, cached_tokens = budget(recipe, parent, child)
    assert parameters(child) == pytest.approx(billions * 1e9, rel=0.01)
    assert cached_tokens(child) == pytest.approx(target.min, rel=0.06) and cached_tokens(child) >= target.min
    assert cached_tokens(parent) < 0.5 * target.min


@pytest.mark.data
@pytest.mark.skipif(not RELEASED.is_dir(), reason="needs ../shared/data/nemotron_configs")
@pytest.mark.parametrize(("recipe", "released"), [("ln-super", "super-49b"), ("ln-ultra", "ultra-253b")])
def test_the_released_model_keeps_the_budget(recipe, released, tmp_path, record_property):
    (tmp_path / "config.json").write_bytes((RELEASED / f"{released}.config.json").read_bytes())
    model = read_spec(tmp_path)
    target, _, cached_tokens = budget(recipe, model, model)
    record_property(f"cached tokens of {released}", cached_tokens(model))
    assert cached_tokens(model) == pytest.approx(target.min, rel=0.04) and cached_tokens(model) >= target.min


def budget(recipe: str, parent: ModelSpec, child: ModelSpec):
    """(the recipe's budget of cached tokens, what a model has of parameters, and of that)."""
    measure = yaml.safe_load((RECIPES / recipe / "2b_measure.yaml").read_text())
    workload, *_ = checked_workloads([Workload(**each) for each in measure["workloads"]], parent.context_length)
    parts = [[getattr(block, slot) for block in child.layers] for slot in ("attention", "ffn")]
    table = untimed(Plan.of(parent, *parts), [workload], measure["dtype"])
    asked = yaml.safe_load((RECIPES / recipe / "3_solve.yaml").read_text())["deployment"]["targets"]
    (target,) = (Target(**each) for each in asked if each["cost"] == "cached_tokens")

    def parameters(model: ModelSpec) -> float:
        return table.predict(model, workload)["parameters"]

    def cached_tokens(model: ModelSpec) -> float:
        costs = table.predict(model, workload)
        return (target.room_mib - costs["weight_mib"]) * MIB / costs["kv_bytes_per_token"]

    return target, parameters, cached_tokens

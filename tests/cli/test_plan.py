"""The paper's recipes fit the hardware that their headers name, and as they were before, they are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from llama_configs import RELEASED, write_configs

from lnlit.cli.plan import planned

YAML = Path(__file__).parents[2] / "yaml"
pytestmark = [
    pytest.mark.data,
    pytest.mark.timeout(1800),  # thousands of operators on fake tensors
    pytest.mark.usefixtures("vllm_plugin"),
    pytest.mark.skipif(not RELEASED.is_dir(), reason="needs ../shared/data/nemotron_configs"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_configs(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


#: The stage whose header names a node of other GPUs than the rest: an H100 has no room for its part of the parent.
OTHER_GPUS = {"ln-ultra/9_eval": "h200-141g"}
TP_1 = ("--trainer.strategy.init_args.tensor_parallel_size", "1", "--trainer.strategy.init_args.data_parallel_size")
#: Settings that recipes had, as options, and what was too large.
BEFORE = {
    "ln-ultra/4_distill": (
        [*TP_1, "256", "--trainer.num_nodes", "32", "--data.init_args.sequence_length", "8192"],
        "reduction",
    ),
    "ln-ultra/4b_cpt": ([*TP_1, "256", "--trainer.num_nodes", "32"], "reduction"),
    "ln-ultra/5_sft": ([*TP_1, "256", "--trainer.num_nodes", "32"], "reduction"),
}


@pytest.mark.parametrize("recipe", ["ln-nano", "ln-super", "ln-ultra"])
def test_every_stage_fits(recipe: str, here: Path, record_property):
    plans = planned(YAML / recipe, "h100-80g")
    assert len(plans) == len(list((YAML / recipe).glob("*.yaml")))
    refused = {f"{recipe}/{plan.stage}": plan for plan in plans if not plan.fits}
    assert refused.keys() == {stage for stage in OTHER_GPUS if stage.startswith(recipe)}
    for plan in refused.values():
        assert "the engine may take" in plan.obstacles[0]
    record_property(
        f"largest share of a GPU in {recipe}", max(plan.peak_bytes / plan.room for plan in plans if plan.fits)
    )


def test_a_stage_with_other_gpus_fits_these(here: Path):
    for name in ("sft", "aligned"):  # models of the stages before
        shutil.copytree("runs/ln-ultra/healed", f"runs/ln-ultra/{name}")
    for stage, gpu in OTHER_GPUS.items():
        (plan,) = planned([YAML / f"{stage}.yaml"], gpu)
        assert plan.fits and plan.mesh.nodes == 1
        assert sum(plan.phases["rollout"].values()) > 0.7 * plan.room, "the parent is not counted"


@pytest.mark.parametrize("stage", BEFORE)
def test_what_recipes_asked_for_before_is_refused(stage: str, here: Path):
    options, reason = BEFORE[stage]
    (plan,) = planned([YAML / f"{stage}.yaml"], "h100-80g", None, options)
    assert not plan.fits and reason in plan.obstacles[0]
    assert "tensor_parallel_size" in plan.advice

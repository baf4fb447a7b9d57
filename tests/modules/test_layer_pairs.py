"""Which teacher layers a fused, padded, reordered or realized child imitates, as its provenance tells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch

from lnlit.callbacks.export import ExportModel
from lnlit.checkpoint.convert import export_model, import_model
from lnlit.checkpoint.formats import read_spec
from lnlit.data.sources import TextFileSource
from lnlit.data.text_data import TextData
from lnlit.errors import UserError
from lnlit.models.lineage import EMPTY
from lnlit.modules.distill import Distill
from lnlit.modules.layer_pairs import layer_pairs
from lnlit.modules.optim import AdamW
from lnlit.specs import NOOP, BlockSpec
from lnlit.stages.fuse import fuse
from lnlit.stages.realize import realize
from lnlit.testing.tiny import attention, swiglu, tiny_decoder, tiny_folder, tiny_spec

FULL, LONE = BlockSpec(attention(), swiglu()), BlockSpec(NOOP, swiglu())
#: What 8 layers become when layers 2 and 3 are fused and the 7 that are left padded to 8.
FUSED = {0: 0, 1: 1, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7}
PADDED = {1: 0, 2: 1, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    layers = (FULL, FULL, LONE, LONE, FULL, FULL, FULL, FULL)
    return str(tiny_folder(tmp_path_factory.mktemp("pairs") / "teacher", tiny_spec().replace(layers=layers)))


@pytest.fixture(scope="module")
def fused(teacher) -> str:
    return str(fuse(teacher, str(Path(teacher).with_name("fused")), leave_out=0))


def pairs_of(model: str | Path, teacher: str | Path) -> dict[int, int]:
    specs = read_spec(model), read_spec(teacher)
    return dict(layer_pairs(None, str(model), specs[0], str(teacher), specs[1]))


def without_record(folder: str | Path, out: Path) -> Path:
    """A copy that does not say where it comes from."""
    shutil.copytree(folder, out)
    file = out / "lnlit.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "provenance": {}}))
    return out


def test_a_fused_child_distils_one_step_and_what_it_exports_still_knows(teacher, fused, tmp_path, text_file):
    work = tmp_path / "work"
    model = shutil.copytree(fused, work / "fused")
    method = Distill(str(model), teacher, AdamW(1e-3, schedule="constant", warmup_ratio=0.0))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        default_root_dir=tmp_path,
        callbacks=[ExportModel(str(tmp_path / "healed"))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(method, TextData(teacher, TextFileSource(str(text_file)), 32, 2))
    assert method._pairs == FUSED and trainer.callback_metrics["train/cosine"] > 0
    shutil.rmtree(work)
    assert pairs_of(tmp_path / "healed", teacher) == FUSED
    export_model(tmp_path / "healed", tmp_path / "served", dtype="bfloat16")
    assert pairs_of(tmp_path / "served", teacher) == FUSED


def test_padding_to_the_teachers_depth_moves_the_pairs_or_is_refused(teacher, fused, tmp_path):
    export_model(fused, tmp_path / "padded", pipeline_stages=2)
    padded = read_spec(tmp_path / "padded").layers
    assert len(padded) == 8 and [index for index, block in enumerate(padded) if block == EMPTY] == [0]
    assert pairs_of(tmp_path / "padded", teacher) == PADDED
    assert pairs_of(tmp_path / "padded", fused) == {layer + 1: layer for layer in range(7)}
    lost = without_record(tmp_path / "padded", tmp_path / "lost")
    with pytest.raises(
        UserError, match=r"layers without weights are \[0\] in the model and none in the teacher"
    ) as told:
        pairs_of(lost, teacher)
    assert "\n" not in str(told.value) and "hidden_layers: [[" in str(told.value)


def test_layers_in_reverse_order_have_no_counterpart_inside_the_run(teacher, tmp_path):
    turned = fuse(teacher, str(tmp_path / "turned"), method="reverse", leave_out=0)
    assert pairs_of(turned, teacher) == {0: 0, 1: 1, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7}
    with pytest.raises(UserError, match=r"layers were moved or fused .* does not record that it was made from"):
        pairs_of(turned, without_record(teacher, tmp_path / "elsewhere"))


def test_models_with_an_ancestor_in_common_are_paired_through_it(teacher, fused, tmp_path):
    copy = import_model(teacher, tmp_path / "copy", dtype="bfloat16")
    export_model(fused, tmp_path / "padded", pipeline_stages=2)
    assert pairs_of(tmp_path / "padded", copy) == PADDED


def test_a_training_checkpoint_knows_what_it_was_trained_from(teacher, fused, tmp_path):
    decoder = tiny_decoder(read_spec(fused))
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    lnlit = {"spec": decoder.spec.to_json(), "model": fused}
    torch.save({"state_dict": state, "lnlit": lnlit}, tmp_path / "last.ckpt")
    export_model(tmp_path / "last.ckpt", tmp_path / "padded", pipeline_stages=2)
    assert pairs_of(tmp_path / "padded", teacher) == PADDED


def test_a_realized_child_keeps_its_parents_places_even_of_layers_that_hold_nothing(
    tiny_parent, built_library, tmp_path
):
    choice = {"choice": ["kv2+i48", "noop+noop"], "score": 0.5, "costs": {}}
    (tmp_path / "solution.json").write_text(json.dumps({"status": "optimal", "solutions": [choice]}))
    child = realize(str(tmp_path / "solution.json"), str(built_library), str(tmp_path / "child"))
    assert pairs_of(child, tiny_parent) == {0: 0, 1: 1}
    with pytest.raises(UserError, match=r"layers without weights are \[1\] in the model"):
        pairs_of(without_record(child, tmp_path / "lost"), tiny_parent)


def test_a_record_that_contradicts_its_model_is_one_line(teacher, fused, tmp_path):
    broken = shutil.copytree(fused, tmp_path / "broken")
    data = json.loads((broken / "lnlit.json").read_text())
    data["provenance"]["layers"] = [[0]]
    (broken / "lnlit.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="provenance says other layers than it has"):
        pairs_of(broken, teacher)

"""What `BlockDistill` refuses, each in one line and before hours are spent."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from distillery import GROUPS

from lnlit.callbacks import ExportModel
from lnlit.errors import UserError
from lnlit.interfaces import TokenBatch
from lnlit.testing.tiny import tiny_folder


def test_groups_of_layers_need_an_epoch_each(distillery):
    with pytest.raises(UserError, match=r"makes 2 groups .* Set trainer.max_epochs: 2"):
        distillery.fit("out", layers_at_once=1)


def test_a_group_that_was_cut_short_is_not_taken_for_trained(distillery):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            trainer.should_stop = trainer.global_step == 3  # saved after the epoch's end only

    assert distillery.fit("out", (Stop(),), GROUPS, layers_at_once=1) is None
    with pytest.raises(UserError, match="was cut short"):
        distillery.fit("out", (), GROUPS, layers_at_once=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"only": ("layer_07/*",)}, "'layer_07/.*' fits no candidate"),
        ({"only": ("*/noop",)}, "fits no candidate"),
        ({"gradient_clip_val": 0.0}, "must be positive"),
        ({"batch_tokens": 0}, "must be positive"),
        ({"layers_at_once": 0}, "must be positive"),
        ({"replicas": 0}, "must be positive"),
    ],
)
def test_bad_settings_end_in_one_line(distillery, settings, message):
    with pytest.raises(UserError, match=message):
        distillery.fit("out", **settings)


def test_a_model_that_is_not_the_librarys_parent_is_refused(distillery):
    parent, distillery.parent = distillery.parent, tiny_folder(distillery.folder / "other", seed=1)
    with pytest.raises(UserError, match=rf"model: {distillery.parent} is not the parent of .* made from {parent}"):
        distillery.fit("out")


def test_it_only_trains(distillery):
    with pytest.raises(UserError, match="BlockDistill only trains: `lnlit fit`, not `lnlit validate`"):
        L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).validate(
            distillery.module("out"), [TokenBatch(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), [2])]
        )


def test_replicas_without_a_mesh_are_refused(distillery):
    with pytest.raises(UserError, match=r"^replicas: only sharded models have some; set trainer\.strategy"):
        distillery.fit("out", replicas=2)


def test_a_group_with_fewer_candidates_than_ranks_is_refused_by_every_rank(two_ranks):
    said = {(two_ranks / f"refused-{rank}.txt").read_text() for rank in (0, 1)}
    (line,) = said
    assert "layers 1 to 1 have 1 candidates to train together, fewer than the 2 ranks" in line


def test_exporting_a_model_is_refused_at_once(distillery):
    with pytest.raises(UserError, match="ExportModel has nothing to write after BlockDistill"):
        distillery.fit("out", (ExportModel(str(distillery.folder / "model")),))

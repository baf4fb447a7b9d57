"""`ChatData` under a real Trainer and from YAML-like configuration."""

import lightning as L
import pytest
import torch
from chat_samples import toggle_rows, write_jsonl
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint

from lnlit.data.blend import BlendEntry
from lnlit.data.datamodule import ChatData
from lnlit.data.reasoning_gym import ReasoningGymSource
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import IGNORE


class Recorder(L.LightningModule):
    """Notes which tokens each training step saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.tokens.flatten().tolist())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        assert (batch.labels != IGNORE).any()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def files(tmp_path):
    return write_jsonl(tmp_path / "a.jsonl", toggle_rows(40)), write_jsonl(tmp_path / "b.jsonl", toggle_rows(9, 100))


def data(tokenizer_folder, files, **changes) -> ChatData:
    train, val = (JsonlSource(str(file)) for file in files)
    settings = {"sequence_length": 128, "micro_batch_size": 2, "val": val, "train": train, **changes}
    return ChatData(str(tokenizer_folder), **settings)


def trainer(tmp_path, **settings) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    ends = {} if {"max_steps", "max_epochs"} & settings.keys() else {"max_epochs": 3}
    defaults = {"enable_checkpointing": False, "use_distributed_sampler": False, "log_every_n_steps": 1}
    return L.Trainer(default_root_dir=tmp_path, **{**quiet, **defaults, **ends, **settings})


VARIANTS = {
    "packed": {},
    "unpacked": {"packing": False},
    "stream": {"streaming": True, "shuffle_buffer_size": 16},
    "stream, unpacked": {"streaming": True, "shuffle_buffer_size": 16, "packing": False},
}
STEPS = 26  # more than two epochs of every variant


@pytest.mark.parametrize("when", ["each step", "after the run"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("accumulate", "precision"), [(1, "32-true"), (2, "32-true"), (1, "bf16-mixed")])
def test_a_resumed_run_sees_exactly_the_remaining_batches(
    tokenizer_folder, files, tmp_path, variant, accumulate, precision, when
):
    """Stopped mid-epoch and behind an epoch's end; Lightning fetches ahead from a stream, not from the others."""
    settings = {"accumulate_grad_batches": accumulate, "precision": precision, "num_sanity_val_steps": 1}
    whole = Recorder()
    trainer(tmp_path, max_steps=STEPS // accumulate, **settings).fit(
        whole, data(tokenizer_folder, files, **VARIANTS[variant])
    )
    per_epoch = 20 if "unpacked" in variant else 11
    for stop in (1, 3, per_epoch // accumulate - 1, per_epoch // accumulate + 1):
        first, second = Recorder(), Recorder()
        checkpoint = tmp_path / f"{stop}.ckpt"
        saving = ModelCheckpoint(tmp_path, f"{stop}", every_n_train_steps=stop)
        begun = trainer(tmp_path, max_steps=stop, callbacks=[saving], enable_checkpointing=True, **settings)
        begun.fit(first, data(tokenizer_folder, files, **VARIANTS[variant]))
        if when == "after the run":
            begun.save_checkpoint(checkpoint)
        resumed = data(tokenizer_folder, files, **VARIANTS[variant])
        trainer(tmp_path, max_steps=STEPS // accumulate, **settings).fit(second, resumed, ckpt_path=checkpoint)
        assert len(first.seen) == stop * accumulate or per_epoch < stop * accumulate
        assert first.seen + second.seen == whole.seen, (stop, len(first.seen), len(second.seen), len(whole.seen))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_checkpoint_of_a_run_in_epochs_resumes(tokenizer_folder, files, tmp_path, accumulate):
    """Also the ones at an epoch's end, with validation between."""
    settings = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    epochs = ModelCheckpoint(tmp_path, "end-{step}", save_top_k=-1)
    whole = Recorder()
    begun = trainer(tmp_path, callbacks=[every, epochs], enable_checkpointing=True, **settings)
    begun.fit(whole, data(tokenizer_folder, files, packing=False, micro_batch_size=4))
    assert len(whole.seen) == 20
    checkpoints = sorted(tmp_path.glob("*step=*.ckpt"))
    assert len(checkpoints) == 20 // accumulate + 2
    for checkpoint in checkpoints:
        seen = int(checkpoint.stem.split("=")[1]) * accumulate
        rest = Recorder()
        resumed = data(tokenizer_folder, files, packing=False, micro_batch_size=4)
        trainer(tmp_path, **settings).fit(rest, resumed, ckpt_path=checkpoint)
        assert rest.seen == whole.seen[seen:], checkpoint


class SaveEach(L.Callback):
    """A checkpoint after every micro-batch, as a time limit may write one; its name tells how many made whole steps."""

    steps = stepped = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step > self.steps:
            self.steps, self.stepped = trainer.global_step, len(module.seen)
        trainer.save_checkpoint(f"{trainer.default_root_dir}/{len(module.seen)}-{self.stepped}.ckpt")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_that_was_half_done_is_done_again(tokenizer_folder, files, tmp_path, variant):
    """With all of its micro-batches; an epoch's last step may have fewer."""
    settings = {"max_steps": 11, "accumulate_grad_batches": 3, "limit_val_batches": 0}
    whole = Recorder()
    trainer(tmp_path, callbacks=[SaveEach()], **settings).fit(whole, data(tokenizer_folder, files, **VARIANTS[variant]))
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == len(whole.seen)
    for checkpoint in checkpoints:
        rest = Recorder()
        resumed = data(tokenizer_folder, files, **VARIANTS[variant])
        trainer(tmp_path, **settings).fit(rest, resumed, ckpt_path=checkpoint)
        assert rest.seen == whole.seen[int(checkpoint.stem.split("-")[1]) :], checkpoint
        assert torch.equal(rest.weight, whole.weight), checkpoint


def test_a_stream_needs_to_know_when_to_stop(tokenizer_folder, files, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), data(tokenizer_folder, files, streaming=True))


def test_limited_batches_of_a_stream_resume_too(tokenizer_folder, files, tmp_path):
    """With `limit_train_batches` Lightning knows a length and stops fetching ahead."""
    settings = {"limit_train_batches": 4, "limit_val_batches": 0}
    whole, first, second = Recorder(), Recorder(), Recorder()
    saving = ModelCheckpoint(tmp_path, "stop", every_n_train_steps=3)
    trainer(tmp_path, max_steps=11, **settings).fit(whole, data(tokenizer_folder, files, streaming=True))
    begun = trainer(tmp_path, max_steps=3, callbacks=[saving], enable_checkpointing=True, **settings)
    begun.fit(first, data(tokenizer_folder, files, streaming=True))
    resumed = data(tokenizer_folder, files, streaming=True)
    trainer(tmp_path, max_steps=11, **settings).fit(second, resumed, ckpt_path=tmp_path / "stop.ckpt")
    assert first.seen + second.seen == whole.seen and len(whole.seen) == 11


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(ChatData, "data")
    return made


def test_builds_from_configuration_by_short_names(tokenizer_folder, files):
    gym = {"class_path": "ReasoningGymSource", "init_args": {"split": "train", "size": 20, "thinking": True}}
    jsonl = {"class_path": "JsonlSource", "init_args": {"paths": str(files[0])}}
    train = [{"source": gym, "weight": 0.5}, {"source": jsonl, "weight": 0.5}]
    shared = {"tokenizer": str(tokenizer_folder), "sequence_length": 512, "micro_batch_size": 2, "val": jsonl}
    for blend, rows in ((train, 60), (gym, 20), (jsonl, 40)):
        config = {"data": {"class_path": "ChatData", "init_args": {**shared, "train": blend}}}
        made = parser()
        module = made.instantiate(made.parse_object(config)).data
        module.setup("fit")
        assert module.train_plan.num_tokens > 0 and len(list(module.train_dataloader())) > 0
        assert sum(len(corpus) for corpus in module.train_plan.corpora) == rows, blend


def test_summary_counts_everything(tokenizer_folder, files, capsys):
    module = data(tokenizer_folder, files, sequence_length=84)
    module.setup("fit")
    encoder = module.encoder
    lengths = [len(encoder.encode(row)) for row in toggle_rows(40)]
    tally = module.train_reader.tally
    assert tally.truncated == sum(length > 84 for length in lengths) > 0
    assert tally.rows + tally.unlearnable == 40 and tally.tokens == sum(min(length, 84) for length in lengths)
    dropping = data(tokenizer_folder, files, sequence_length=84, too_long="drop")
    dropping.setup("fit")
    assert dropping.train_reader.tally.dropped == tally.truncated
    assert f"{tally.truncated} truncated" in str(tally) and f"{tally.truncated} dropped" in str(
        dropping.train_reader.tally
    )


def test_a_row_cut_before_its_reply_is_counted_and_left_out(tokenizer_folder, files):
    module = data(tokenizer_folder, files, sequence_length=20, too_long="truncate")
    with pytest.raises(UserError, match="no usable row"):
        module.setup("fit")
    assert module.train_reader.tally.unlearnable == 40


def test_unpacked_rows_are_padded_to_the_longest_rounded_up(tokenizer_folder, files):
    module = data(tokenizer_folder, files, packing=False, padding_side="left", sequence_length=100)
    for batch in module.train_dataloader():
        length = batch.tokens.shape[1]
        assert length % 16 == 0 or length == 100
        padding = sum((row == IGNORE).all() for row in batch.labels)
        assert padding == 0 and batch.tokens.shape[0] == 2


def test_validation_covers_each_row_in_order(tokenizer_folder, files):
    module = data(tokenizer_folder, files, packing=False)
    decoded = [module.encoder.tokenizer.decode(row) for batch in module.val_dataloader() for row in batch.tokens]
    assert [f"question {100 + i}<" in text for i, text in enumerate(decoded)] == [True] * 9 + [False]


def test_validate_alone_does_not_read_the_training_data(tokenizer_folder, files, tmp_path):
    module = data(tokenizer_folder, files)
    trainer(tmp_path).validate(Recorder(), module, verbose=False)
    assert module.train_reader.tally.rows == 0 and module.val_reader.tally.rows == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 1024}, "longer than the model's context of 512"),
        ({"sequence_length": 64, "too_long": "error"}, r"a\.jsonl:\d+: \d+ tokens, and sequence_length is 64"),
        ({"micro_batch_size": 0}, "micro_batch_size: expected a positive number"),
        ({"train": []}, "the blend is empty"),
        ({"train": ReasoningGymSource("heldout", 40, ["products"])}, "too few"),
    ],
)
def test_errors_are_clear(tokenizer_folder, files, changes, message):
    with pytest.raises(UserError, match=message):
        data(tokenizer_folder, files, **changes).setup("fit")


def test_a_bad_row_names_its_line(tokenizer_folder, files, tmp_path):
    rows = toggle_rows(3)
    rows[1]["messages"].pop()
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(UserError, match=r"bad\.jsonl:2: no assistant turn"):
        data(tokenizer_folder, files, train=JsonlSource(str(bad))).setup("fit")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"train: no usable row in .*empty\.jsonl"):
        data(tokenizer_folder, files, train=JsonlSource(str(tmp_path / "empty.jsonl"))).setup("fit")


def test_a_blend_trains_in_stages(tokenizer_folder, files):
    entries = [BlendEntry(JsonlSource(str(files[1])), stage=2), BlendEntry(JsonlSource(str(files[0])), epochs=2)]
    module = data(tokenizer_folder, files, train=entries, packing=False, micro_batch_size=1)
    texts = [module.encoder.tokenizer.decode(batch.tokens[0]) for batch in module.train_dataloader()]
    assert len(texts) == 89
    assert ["question 10" in text and "question 10<" not in text for text in texts] == [False] * 80 + [True] * 9


LIMITS = [{"limit_train_batches": 3}, {"limit_train_batches": 0.3}, {"overfit_batches": 3}]


@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_limited_run_repeats_its_first_batches_and_resumes_within_them(
    tokenizer_folder, files, tmp_path, variant, limit
):
    """As a smaller data set would be: Lightning promises that an epoch is these batches."""
    if "stream" in variant and 0.3 in limit.values():
        pytest.skip("a share of a stream is unknown: Lightning refuses it")
    first_epoch, limited, resumed = Recorder(), Recorder(), Recorder()
    trainer(tmp_path, max_epochs=1).fit(first_epoch, data(tokenizer_folder, files, **VARIANTS[variant])) if (
        "stream" not in variant
    ) else trainer(tmp_path, max_steps=10).fit(first_epoch, data(tokenizer_folder, files, **VARIANTS[variant]))
    length = 3 if 3 in limit.values() else int(0.3 * len(first_epoch.seen))
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[saving], **limit).fit(
        limited, data(tokenizer_folder, files, **VARIANTS[variant])
    )
    assert limited.seen == first_epoch.seen[:length] * 3
    for stop in (1, length, length + 1):
        resumed = Recorder()
        trainer(tmp_path, max_epochs=3, **limit).fit(
            resumed, data(tokenizer_folder, files, **VARIANTS[variant]), ckpt_path=tmp_path / f"step={stop}.ckpt"
        )
        assert resumed.seen == limited.seen[stop:]


def test_a_limit_beyond_the_data_changes_nothing(tokenizer_folder, files, tmp_path):
    whole, limited = Recorder(), Recorder()
    trainer(tmp_path).fit(whole, data(tokenizer_folder, files))
    trainer(tmp_path, limit_train_batches=1000).fit(limited, data(tokenizer_folder, files))
    assert limited.seen == whole.seen


def test_keys_that_nobody_reads_are_named_once_per_source(tokenizer_folder, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero.rank_zero_info", lines.append)
    made = toggle_rows(6)
    first = write_jsonl(tmp_path / "a.jsonl", [{**row, "id": 1, "license": "mit"} for row in made[:4]])
    second = write_jsonl(tmp_path / "b.jsonl", [{**made[4], "license": "mit", "note": ""}, made[5]])
    blend = [BlendEntry(JsonlSource(str(file)), epochs=2) for file in (first, second)]
    data = ChatData(str(tokenizer_folder), blend, sequence_length=512, micro_batch_size=1)
    assert data.train_plan
    said = [
        f"{first}: keys that nobody reads: id, license (4 rows)",
        f"{second}: keys that nobody reads: license (1 row)",
    ]
    assert lines == said
    stream = ChatData(
        str(tokenizer_folder), JsonlSource(str(first)), sequence_length=512, micro_batch_size=1, streaming=True
    )
    rows = stream.train_plan.rows(stream.train_plan.start())
    for _ in range(20):  # several epochs
        next(rows)
    assert lines == [*said, said[0]]


def test_a_stream_of_several_files_says_that_they_are_not_mixed(tokenizer_folder, files, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("lnlit.data.planned.rank_zero_info", said.append)
    several = JsonlSource([str(file) for file in files])
    trainer(tmp_path, max_steps=1).fit(
        Recorder(), data(tokenizer_folder, files, train=several, streaming=True, shuffle_buffer_size=16)
    )
    assert any("2 files are streamed one after the other" in line for line in said)
    said.clear()
    blend = [BlendEntry(JsonlSource(str(file)), weight=1) for file in files]
    trainer(tmp_path, max_steps=1).fit(Recorder(), data(tokenizer_folder, files, train=blend, streaming=True))
    assert not any("one after the other" in line for line in said)

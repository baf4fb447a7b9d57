"""`PreferenceData`: rows of every form become packed groups whose labels, owners and rewards agree."""

import json
from itertools import chain
from pathlib import Path

import lightning as L
import pytest
import torch
from chat_samples import SHARED, write_jsonl
from lightning.pytorch.callbacks import ModelCheckpoint

from lnlit.data.chat import ChatEncoder, Document
from lnlit.data.preference import Group, PreferenceData, collate_groups
from lnlit.data.preference_rows import PreferenceRows, preference_row
from lnlit.data.sources import JsonlSource
from lnlit.data.split import SplitSource
from lnlit.errors import UserError
from lnlit.interfaces import IGNORE

ASK = [{"role": "user", "content": "Why?"}]
YES, NO = ({"role": "assistant", "content": text} for text in ("Because.", "No."))
CANONICAL = {"messages": ASK, "completions": ["Because.", "No."], "rewards": [1.0, 0.0]}
SHAREGPT = [{"from": "human", "value": "Why?"}]

FORMS = {
    "two conversations": {"chosen": [*ASK, YES], "rejected": [*ASK, NO]},
    "prompt and texts": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "prompt messages and replies": {"prompt": ASK, "chosen": [YES], "rejected": [NO]},
    "prompt text and conversations": {"prompt": "Why?", "chosen": [*ASK, YES], "rejected": [*ASK, NO]},
    "messages and texts": {"messages": ASK, "chosen": "Because.", "rejected": "No."},
    "input and texts": {"input": "Why?", "chosen": "Because.", "rejected": "No."},
    "from and value": {
        "conversations": SHAREGPT,
        "chosen": {"from": "gpt", "value": "Because."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "HH dialogues": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: Because.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
    },
    "completions": {"prompt": "Why?", "completions": ["Because.", [NO]], "rewards": [1, 0]},
    "itself": CANONICAL,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form):
    assert preference_row(FORMS[form]) == CANONICAL


def test_other_keys_stay():
    row = {**FORMS["prompt and texts"], "thinking": "on", "margin": 3}
    assert preference_row(row) == {**CANONICAL, "thinking": "on", "margin": 3}


@pytest.mark.parametrize(
    ("given", "rewards"),
    [
        ({}, [1.0, 0.0]),
        ({"rewards": [0.5, 2]}, [0.5, 2.0]),
        ({"score_chosen": 8, "score_rejected": 3.5}, [8.0, 3.5]),
        ({"rewards": [None, None]}, [1.0, 0.0]),
        ({"rewards": None}, [1.0, 0.0]),
        ({"rewards": [4.0, None]}, [4.0, None]),
        ({"rewards": [float("nan"), 1]}, [None, 1.0]),
    ],
)
def test_rewards_of_a_pair(given, rewards):
    assert preference_row({**FORMS["prompt and texts"], **given})["rewards"] == rewards


def test_turns_of_one_speaker_are_joined():
    text = "\n\nHuman: Hi\n\nHuman: Why?\n\nAssistant: Because.\n\nAssistant: Really."
    row = preference_row({"chosen": text, "rejected": "\n\nHuman: Hi\n\nHuman: Why?\n\nAssistant:"})
    assert row["messages"] == [{"role": "user", "content": "Hi\n\nWhy?"}]
    assert row["completions"] == ["Because.\n\nReally.", ""]


@pytest.mark.parametrize(
    "rejected", ["\n\nHuman: When?\n\nAssistant: No.", "\n\nHuman: Why?\n\nAssistant: a\n\nHuman: b"]
)
def test_what_cannot_be_compared_has_no_completions(rejected):
    row = preference_row({"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": rejected})
    assert row["completions"] == row["rewards"] == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a"}, "expected the keys chosen and rejected, or completions and rewards; got keys: chosen"),
        ({"chosen": "a", "rejected": "b"}, "must be a dialogue"),
        ({"chosen": [YES], "rejected": [NO]}, "a completion needs a prompt"),
        ({"prompt": "q", "completions": ["a", "b"], "rewards": [1]}, "expected a list of 2 numbers"),
        ({"prompt": "q", "completions": ["a", "b"], "rewards": [1, "good"]}, "expected numbers or null, got 'good'"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "must have role and content"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    file = write_jsonl(tmp_path / "bad.jsonl", [FORMS["HH dialogues"], row])
    with pytest.raises(UserError, match=message) as caught:
        list(PreferenceRows(JsonlSource(str(file))).rows())
    assert f"{file}:2: " in str(caught.value)


# batches


def rows(count: int, offset: int = 0) -> list[dict]:
    """Three completions each, of two turns, whose lengths vary."""
    made = []
    for n in range(offset, offset + count):
        talk = [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "and?"}, ASK[0]]
        texts = [f"{letter * (1 + (n + 3 * k) % 7)} {n}" for k, letter in enumerate("abc")]
        made.append({"messages": talk, "completions": texts, "rewards": [n, n + 2.0, n + 0.5]})
    return made


def data(tokenizer_folder, tmp_path, made, **settings) -> PreferenceData:
    file = write_jsonl(tmp_path / f"{len(made)}.jsonl", made)
    given = {"sequence_length": 96, "micro_batch_size": 2, "completions": 3, **settings}
    module = PreferenceData(str(tokenizer_folder), JsonlSource(str(file)), **given)
    module.setup("fit")
    return module


def owned(batch, samples: int) -> list[list[int]]:
    """Each sample's learned tokens, by `sample_N`."""
    labels = batch.tokens.labels[batch.tokens.labels != IGNORE]
    return [labels[batch.sample_N == sample].tolist() for sample in range(samples)]


def test_labels_owners_and_rewards_agree(tokenizer_folder, tokenizer, tmp_path):
    made = rows(23)
    expected = {}
    for row in made:
        for text, reward in zip(row["completions"], row["rewards"], strict=True):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            expected[tuple(ids), reward] = expected.get((tuple(ids), reward), 0) + 1
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = {}
    for batch in data(tokenizer_folder, tmp_path, made).train_dataloader():
        samples = batch.rewards_PK.numel()
        assert batch.rewards_PK.shape[1] == 3 and sum(batch.tokens.lengths) == batch.tokens.tokens.numel()
        for tokens, reward in zip(owned(batch, samples), batch.rewards_PK.flatten().tolist(), strict=True):
            assert tokens.pop() == end  # a completion ends its turn, and earlier replies are not learned
            found[tuple(tokens), reward] = found.get((tuple(tokens), reward), 0) + 1
    assert found == expected


def last_reply(document: Document) -> Document:
    """The document with loss on its last run of learned tokens alone."""
    mask = list(document.loss_mask)
    at = len(mask)
    while at and not mask[at - 1]:
        at -= 1
    while at and mask[at - 1]:
        at -= 1
    return Document(document.tokens, [False] * at + mask[at:])


def test_documents_are_those_of_the_chat_encoder_with_loss_on_the_last_reply(tokenizer_folder, tokenizer, tmp_path):
    module = data(tokenizer_folder, tmp_path, rows(1))
    row = rows(1)[0]
    (group,) = module.train_reader.encode([row])
    assert isinstance(group, Group)
    for document, text in zip(group.completions(), row["completions"], strict=True):
        chat = {"messages": [*row["messages"], {"role": "assistant", "content": text}]}
        alone = ChatEncoder(tokenizer).encode(chat)
        assert list(document.tokens) == list(alone.tokens)
        learned = [token for token, yes in zip(document.tokens, document.loss_mask, strict=True) if yes]
        prompt = module.encoder.encode_prompt(row["messages"])
        assert list(document.tokens)[: len(prompt)] == prompt
        assert learned == list(document.tokens)[len(prompt) :][: len(learned)]
        assert sum(alone.loss_mask) > len(learned)  # the earlier reply had loss too
        assert last_reply(alone) == document


def test_each_epoch_has_every_prompt_once_in_another_order(tokenizer_folder, tmp_path):
    loader = data(tokenizer_folder, tmp_path, rows(23)).train_dataloader()
    first, second = ([batch.rewards_PK[:, 0].tolist() for batch in loader] for _ in range(2))
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(23))


def test_validation_keeps_the_order_and_has_every_prompt(tokenizer_folder, tmp_path):
    val = JsonlSource(str(write_jsonl(tmp_path / "val.jsonl", rows(5, offset=50))))
    loader = data(tokenizer_folder, tmp_path, rows(7), val=val).val_dataloader()
    for _ in range(2):
        assert int(next(iter(loader)).rewards_PK[0, 0]) == 50
        assert sorted(p for batch in loader for p in batch.rewards_PK[:, 0].tolist()) == list(range(50, 55))


def test_two_ranks_share_the_prompts_and_the_steps(tokenizer_folder, tmp_path):
    seen, steps = [], set()
    for rank in range(2):
        loader = data(tokenizer_folder, tmp_path, rows(23), micro_batch_size=1).train_dataloader()
        loader.set_rank(rank, 2)
        batches = list(loader)
        steps.add(len(batches))
        seen += [prompt for batch in batches for prompt in batch.rewards_PK[:, 0].tolist()]
    assert len(steps) == 1 and sorted(seen) == list(range(23))


def test_a_row_without_prompts_is_all_padding():
    batch = collate_groups([[]], completions=3, length=8, pad_id=5)
    assert batch.rewards_PK.shape == (0, 3) and len(batch.sample_N) == 0
    assert batch.tokens.tokens.tolist() == [[5] * 8] and (batch.tokens.labels == IGNORE).all()


def test_of_more_completions_worst_best_and_what_is_evenly_between_stay(tokenizer_folder, tmp_path):
    row = {"prompt": "q", "completions": [f"answer {n}" for n in range(5)], "rewards": [3, 9, 1, None, 5]}
    for count, kept in ((2, [9, 1]), (3, [9, 1, 5]), (4, [3, 9, 1, 5])):
        module = data(tokenizer_folder, tmp_path, [row], completions=count)
        assert next(iter(module.train_dataloader())).rewards_PK.tolist() == [kept]


def test_what_is_left_out_is_counted(tokenizer_folder, tmp_path, capfd):
    made = [
        *rows(4),
        {"prompt": "q", "completions": ["a", "b", "c"], "rewards": [1, None, 2]},
        {"prompt": "q", "completions": ["a", "b"], "rewards": [1, 2]},
        {"prompt": "q", "completions": ["a", "b" * 400, "c"], "rewards": [1, 2, 3]},
        {"prompt": "q", "completions": ["a", "b" * 400, "c", "d"], "rewards": [1, 2, 3, 4]},
    ]
    tally = data(tokenizer_folder, tmp_path, made).train_reader.tally
    assert (tally.rows, tally.no_reward, tally.unpaired, tally.too_long) == (5, 1, 1, 1)
    assert "5 prompts with 3 completions each" in str(tally)
    assert "dropped: 1 too long, 1 no reward, 1 unpaired" in str(tally)
    with pytest.raises(UserError, match=r"8.jsonl:7: \d+ tokens, and sequence_length is 96"):
        data(tokenizer_folder, tmp_path, made, too_long="error")


def test_refusals(tokenizer_folder, tmp_path):
    with pytest.raises(UserError, match="2 or more; got 1"):
        data(tokenizer_folder, tmp_path, rows(2), completions=1)
    with pytest.raises(UserError, match=r"train: no usable row in .*dropped: 2 unpaired"):
        data(tokenizer_folder, tmp_path, rows(2), completions=4)


def test_other_rewards_are_other_data(tokenizer_folder, tmp_path):
    made = rows(9)
    state = data(tokenizer_folder, tmp_path, made).train_dataloader().state_dict()
    data(tokenizer_folder, tmp_path, made).train_dataloader().load_state_dict(state)
    made[4]["rewards"][1] += 1
    with pytest.raises(UserError, match="made with other data"):
        data(tokenizer_folder, tmp_path, made).train_dataloader().load_state_dict(state)


def test_prompts_are_held_out_by_what_the_user_says(tmp_path):
    made = [
        {"chosen": f"\n\nHuman: {n}\n\nAssistant: a", "rejected": f"\n\nHuman: {n}\n\nAssistant: b"} for n in range(60)
    ]
    source = PreferenceRows(JsonlSource(str(write_jsonl(tmp_path / "hh.jsonl", made))))
    sides = [list(SplitSource(source, side, 20).rows()) for side in ("train", "heldout")]
    questions = [{row["messages"][0]["content"] for row in side} for side in sides]
    assert not questions[0] & questions[1] and len(questions[0] | questions[1]) == 60 and questions[1]


# under a trainer


class Recorder(L.LightningModule):
    """Notes which prompts each training step saw, by their rewards."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[float]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.rewards_PK[:, 0].tolist())
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: L.LightningModule, source: L.LightningDataModule, steps: int, folder: Path, ckpt_path=None, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    if ckpt_path is None:
        settings["callbacks"] = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(
        max_steps=steps,
        use_distributed_sampler=False,
        enable_checkpointing=ckpt_path is None,
        default_root_dir=folder,
        **quiet,
        **settings,
    )
    trainer.fit(module, source, ckpt_path=ckpt_path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("accumulate", "precision"), [(1, "bf16-true"), (2, "32-true")])
def test_a_resumed_run_sees_exactly_the_remaining_prompts(tokenizer_folder, tmp_path, streaming, accumulate, precision):
    settings = {"accumulate_grad_batches": accumulate, "precision": precision}
    made = {"streaming": streaming, "shuffle_buffer_size": 8}
    whole = Recorder()
    fit(whole, data(tokenizer_folder, tmp_path, rows(23), **made), 12 // accumulate, tmp_path / "whole", **settings)
    assert len(whole.seen) == 12
    for checkpoint in sorted((tmp_path / "whole").glob("*.ckpt"))[:-1]:
        done = int(checkpoint.stem.split("=")[1])
        rest = Recorder()
        again = data(tokenizer_folder, tmp_path, rows(23), **made)
        fit(rest, again, 12 // accumulate, tmp_path / "rest", ckpt_path=checkpoint, **settings)
        assert rest.seen == whole.seen[done * accumulate :], checkpoint


# the public data


@pytest.mark.skipif(not (SHARED / "hh_rlhf").is_dir(), reason="needs the shared data folder")
def test_public_pairs_are_read(tokenizer_folder):
    hh = PreferenceRows(JsonlSource(str(SHARED / "hh_rlhf" / "*.jsonl.gz")))
    usable = [len(row["completions"]) for row in hh.rows()]
    assert len(usable) == 8552 and sum(count == 2 for count in usable) >= 8530
    orca = list(PreferenceRows(JsonlSource(str(SHARED / "preference" / "dpo_en_demo.json"))).rows())
    assert len(orca) == 300 and all(len(row["completions"]) == 2 for row in orca)
    assert all(json.dumps(row) and row["messages"][-1]["role"] == "user" for row in orca)


def test_unpacked_rows_are_prompts(tokenizer_folder, tmp_path):
    """A step then has as many prompts as rows, which is how papers count a batch of preferences."""
    rows = [{"prompt": f"{n}?", "chosen": "yes " * n, "rejected": "no"} for n in range(1, 9)]
    source = JsonlSource(str(write_jsonl(tmp_path / "pairs.jsonl", rows)))
    batches = {}
    for packing in (True, False):
        data = PreferenceData(str(tokenizer_folder), source, 128, 2, packing=packing)
        data.setup("fit")
        batches[packing] = list(data.train_dataloader())
    assert [len(batch.rewards_PK) for batch in batches[False]] == [2] * 4
    assert len(batches[True]) < 4
    assert all(batch.tokens.tokens.shape[1] < 256 for batch in batches[False])  # padded to the longest
    said = [sorted((batch.tokens.labels != IGNORE).sum() for batch in batches[p]) for p in (True, False)]
    assert sum(said[0]) == sum(said[1])

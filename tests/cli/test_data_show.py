"""`lnlit data show`: packed rows with their loss mask, and what became of the rows."""

import json
import re
import sys

import pytest
import yaml

TALK = {"prompt": "Why?", "completion": "Because.", "id": 7}


@pytest.fixture
def show(lnlit, tiny_model, tmp_path):
    """`show(rows, options...)` runs the command on a configuration of these rows."""

    def run(rows, *options, data="ChatData", name="data.yaml", **settings):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"tokenizer": str(tiny_model), "sequence_length": 128, "micro_batch_size": 1, **settings}
        given.setdefault("train", {"class_path": "jsonl", "init_args": {"paths": str(file)}})
        given = {key: value for key, value in given.items() if value is not None}
        config = {"model": {"class_path": "none of its business"}, "data": {"class_path": data, "init_args": given}}
        (tmp_path / name).write_text(yaml.safe_dump(config))
        return lnlit("data", "show", str(tmp_path / name), *options)

    return run


def test_what_is_learned_is_between_marks(show, tmp_path):
    code, out, err = show([TALK, {**TALK, "completion": "x" * 300}], "--rows", "2")
    assert code == 0, err
    assert "=== row 1 of 2: 1 document, 128 tokens" in out
    assert "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{+Because.<|im_end|>+}" in out
    assert "train: 2 rows" in out and "1 truncated" in out
    assert f"train: {tmp_path}/rows.jsonl: keys that nobody reads: id (2 rows)" in out


def test_colours_on_a_terminal_and_no_codes_of_the_rows_own(show, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = show([{**TALK, "completion": "a\x1b[2Jb"}])
    assert "\x1b[32ma\\x1b[2Jb<|im_end|>\x1b[0m" in out


def test_a_turn_that_is_not_learned_is_not_marked(show):
    talk = [{"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "bad"), ("user", "r"))]
    talk[1]["weight"] = 0
    _, out, _ = show([{"messages": [*talk, {"role": "assistant", "content": "good"}]}])
    assert "bad<|im_end|>" in out and "{+bad" not in out and "{+good<|im_end|>+}" in out


def test_streams_texts_and_preferences(show, tmp_path):
    _, out, _ = show([TALK], "--rows", "3", streaming=True)
    assert out.count("=== row") == 3 and "train so far: 3 rows" in out
    _, out, _ = show([{"text": "some words", "title": "t"}], data="TextData")
    assert "{+some words" in out and "keys that nobody reads: title (1 row)" in out
    _, out, _ = show(
        [{"system": "Be brief.", "prompt": "Why?", "chosen": "Because.", "rejected": "No."}], data="PreferenceData"
    )
    assert "--- completion 1, reward 1" in out and "--- completion 2, reward 0" in out
    assert out.count("Be brief.") == 2 and "{+No.<|im_end|>+}" in out


def test_prompts_of_a_policy(show, tmp_path):
    settings = {"rollout": {"prompts_per_rollout": 1, "samples_per_prompt": 2, "max_new_tokens": 8}}
    settings |= {"rewards": [{"reward": {"class_path": "math_answer"}}], "engine": {"class_path": "native"}}
    source = {
        "class_path": "jsonl",
        "init_args": {"paths": str(tmp_path / "rows.jsonl"), "columns": {"question": "prompt"}},
    }
    experience = {"train": None, "sequence_length": None, "micro_batch_size": None}
    code, out, err = show(
        [{"question": "1 + 1?", "answer": "2"}], data="PromptData", prompts=source, **settings, **experience
    )
    assert code == 0, err
    assert "keys for rewards: answer" in out and out.count("1 + 1?") == 1 and "prompts: 1 row of" in out


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"question": "q", "answer": "a"}], (), "rows.jsonl:1: expected the key .* columns: {question: prompt"),
        ([{"prompt": "q", "solution": "a"}], (), r"rows.jsonl:1: no assistant turn \(nobody reads the keys solution\)"),
        ([TALK], ("--data.init_args.sequence_lenght", "5"), "Did you mean 'sequence_length'"),
        ([TALK, {"prompt": "a\ud83d", "completion": "b"}], (), "rows.jsonl:2: broken text at character 1"),
        ([TALK], ("--model", "x"), "unknown option '--model'"),
        ([TALK], ("--rows", "-1"), "--rows: expected a number of rows"),
        ([TALK], ("--data.init_args.train.init_args.columns", "{quesion: prompt}"), "no column 'quesion'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(show, rows, options, message):
    code, _, err = show(rows, *options)
    assert code == 2 and len(err.strip().splitlines()) == 1

    assert re.search(message, err), err


def test_no_configuration_is_a_help_and_no_data_an_error(lnlit, tmp_path):
    assert lnlit("data")[0] == 0
    assert "unknown command 'sow'" in lnlit("data", "sow")[2]
    assert "there is no file" in lnlit("data", "show", "none.yaml")[2]
    (tmp_path / "stage.yaml").write_text("stage: annotate\ndata: {class_path: jsonl}\n")
    code, _, err = lnlit("data", "show", str(tmp_path / "stage.yaml"))
    assert code == 2 and "has no data for lnlit fit" in err

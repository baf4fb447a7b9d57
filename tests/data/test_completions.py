"""What a completion says, where a turn ends and what day it is, over tokenizers and templates of several kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_samples import SHARED
from template_corpus import TEMPLATES, tokenizer_for

import lnlit
from lnlit.checkpoint.templates import TEMPLATES as OURS
from lnlit.checkpoint.templates import put_template
from lnlit.data.chat import ChatEncoder
from lnlit.data.preference import Group, encode_groups
from lnlit.data.sources import JsonlSource
from lnlit.data.tokenizer import load_tokenizer
from lnlit.end_of_turn import end_ids
from lnlit.errors import UserError
from lnlit.interfaces import RewardRequest
from lnlit.rewards.format import FormatReward
from lnlit.thinking import answer_of

ASKED = [{"role": "user", "content": "What is 1 + 2?"}]


def completed(name: str, text: str) -> str:
    """What a reward is shown where a model of the template says `text` and ends its turn."""
    encoder = ChatEncoder(tokenizer_for(name))
    said = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    end = encoder.tokenizer.convert_tokens_to_ids(TEMPLATES[name].end)
    return encoder.completion(encoder.encode_prompt(ASKED), [*said, end])


@pytest.mark.parametrize("name", ["chatml", "chatml/tags", "r1_distill_old/tags", "hermes_tools/tags"])
@pytest.mark.parametrize(
    ("text", "on", "off", "answer"),
    [
        ("<think>1 + 2</think>It is 3.", 1, 0, "It is 3."),
        ("It is 3.", 0, 1, "It is 3."),
        ("<think>it may be 3", 0, 0, ""),
        ("It is 3. <think>Or 4", 0, 0, "It is 3. "),
        ("it is 3</think>", 0, 0, ""),
    ],
)
def test_tags_that_are_control_tokens_are_judged_like_others(name, text, on, off, answer):
    said = completed(name, text)
    assert said == text
    requests = [
        RewardRequest([{"role": "system", "content": f"detailed thinking {mode}"}], said, False)
        for mode in ("on", "off")
    ]
    assert [FormatReward().score(request) for request in requests] == [on, off]
    assert answer_of(said) == answer


@pytest.mark.parametrize("name", ["r1_distill_new", "qwen3_thinking/tags"])
def test_thinking_that_the_prompt_opens_is_part_of_what_is_judged(name):
    thought, cut_off = completed(name, "1 + 2</think>\n\nIt is 3."), completed(name, "It may be 3")
    assert thought == "<think>\n1 + 2</think>\n\nIt is 3." and cut_off == "<think>\nIt may be 3"
    messages = [{"role": "system", "content": "detailed thinking on"}]
    assert [FormatReward().score(RewardRequest(messages, said, False)) for said in (thought, cut_off)] == [1, 0]
    assert answer_of(thought).strip() == "It is 3." and answer_of(cut_off) == ""


@pytest.mark.parametrize("name", ["chatml", "llama2", "qwen3", "smollm3"])
def test_a_user_who_types_the_tag_opens_no_thinking(name):
    encoder = ChatEncoder(tokenizer_for(name))
    prompt = encoder.encode_prompt([{"role": "user", "content": "what is <think>"}])
    assert encoder.completion(prompt, encoder.tokenizer("3", add_special_tokens=False)["input_ids"]).strip() == "3"


def test_an_empty_thought_in_the_prompt_opens_none():
    encoder = ChatEncoder(tokenizer_for("qwen3"))
    _, prompt = encoder.prompt({"messages": ASKED, "chat_template_kwargs": {"enable_thinking": False}})
    assert encoder.tokenizer.decode(prompt).endswith("<think>\n\n</think>\n\n")
    assert encoder.completion(prompt, encoder.tokenizer("3", add_special_tokens=False)["input_ids"]) == "3"


def test_completions_are_read_in_one_place():
    root = Path(lnlit.__file__).parent
    assert [path.name for path in root.rglob("*.py") if "skip_special_tokens" in path.read_text()] == []


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "unended"])
def test_a_turn_ends_with_the_templates_token_and_the_end_of_sequence(name):
    tokenizer, template = tokenizer_for(name), TEMPLATES[name]
    assert end_ids(tokenizer) == sorted({*tokenizer.convert_tokens_to_ids([template.end, template.eos])})


def test_further_ends_beside_the_tokenizer_are_honoured(tmp_path):
    tokenizer = tokenizer_for("llama31")
    tokenizer.save_pretrained(tmp_path)
    eot, eom, other = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|eom_id|>", "<|begin_of_text|>"])
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": eom}))
    assert ChatEncoder(load_tokenizer(tmp_path)).end_ids() == sorted([eot, eom])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [eot, other]}))
    assert ChatEncoder(load_tokenizer(tmp_path)).end_ids() == sorted([eot, other])


def test_a_turn_that_ends_with_what_stops_nothing_is_refused(tmp_path):
    """Llama 3.1 ends a call of a tool of its own with <|eom_id|>, an end only where generation_config says so."""
    tokenizer = tokenizer_for("llama31")
    tokenizer.chat_template = (
        "{%- for m in messages -%}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content -}}"
        "{{- '<|eom_id|>' if 'call' in m.content else '<|eot_id|>' -}}{%- endfor -%}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt else '' -}}"
    )
    row = {
        "messages": [*ASKED, {"role": "assistant", "content": "call"}, *ASKED, {"role": "assistant", "content": "3"}]
    }
    with pytest.raises(UserError, match=r"message 2: .*does not end this turn .* with a token that stops generation"):
        ChatEncoder(tokenizer).encode(row)
    tokenizer.save_pretrained(tmp_path)
    ends = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|eom_id|>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    document = ChatEncoder(load_tokenizer(tmp_path)).encode(row)
    learned = [token for token, yes in zip(document.tokens, document.loss_mask, strict=True) if yes]
    assert tokenizer.decode(learned) == "call<|eom_id|>3<|eot_id|>"


@pytest.mark.parametrize("name", ["llama32", "smollm3", "granite", "mistral_v7"])
def test_the_same_data_are_the_same_tokens_on_any_day(name, monkeypatch):
    from datetime import date, datetime

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 12, 24)

    row = {"messages": [*ASKED, {"role": "assistant", "content": "3"}]}
    today = ChatEncoder(tokenizer_for(name)).encode(row)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    tokenizer = tokenizer_for(name)
    assert "2031" in tokenizer.apply_chat_template(row["messages"], tokenize=False)  # the template does ask for the day
    assert ChatEncoder(tokenizer).encode(row) == today
    assert "2024" in tokenizer.decode(today.tokens)
    chat = ChatEncoder(tokenizer, date=date(2031, 12, 24))
    assert chat.tokenizer.decode(chat.encode(row).tokens) == tokenizer.apply_chat_template(
        row["messages"], tokenize=False
    )


@pytest.mark.parametrize("name", ["space_prompt", "space_prompt/prepend", "mistral_v3", "phi3", "chatml"])
def test_the_completions_of_a_prompt_share_its_tokens_with_generation(name):
    encoder = ChatEncoder(tokenizer_for(name))
    row = {"messages": ASKED, "completions": ["World", " World", "é", "3"], "rewards": [1.0, 0.0, 0.5, 0.2]}
    (group,) = encode_groups(encoder, [row])
    assert isinstance(group, Group)
    prompt = encoder.encode_prompt(ASKED)
    for document in group.completions():
        assert list(document.tokens[: len(prompt)]) == prompt
        assert not any(document.loss_mask[: len(prompt)]) and document.loss_mask[len(prompt)]


def test_a_pair_is_not_refused_for_what_an_earlier_turn_lost():
    encoder = ChatEncoder(tokenizer_for("qwen3"))
    before = [
        *ASKED,
        {"role": "assistant", "content": "<think>\n1 + 2\n</think>\n\n3"},
        {"role": "user", "content": "sure?"},
    ]
    (group,) = encode_groups(encoder, [{"messages": before, "completions": ["yes", "no"], "rewards": [1.0, 0.0]}])
    assert sum(group.loss_mask) > 2
    v1 = ChatEncoder(tokenizer_for("nemotron_super_v1"))
    with pytest.raises(UserError, match=r"leaves out .* the thought \(1 \+ 2\)"):
        encode_groups(v1, [{"messages": ASKED, "completions": ["<think>1 + 2</think>3", "3"], "rewards": [1.0, 0.0]}])


@pytest.mark.data
@pytest.mark.skipif(not (SHARED / "sft_toggle").is_dir(), reason="needs ../shared/data/sft_toggle")
def test_rows_that_think_are_refused_or_learned_whole(tmp_path, record_property):
    rows = list(JsonlSource(str(SHARED / "sft_toggle" / "*.gz")).rows())[:400]
    on, off = ([row for row in rows if row["reasoning"] == mode][:20] for mode in ("on", "off"))
    assert len(on) == len(off) == 20
    tokenizer = tokenizer_for("nemotron_super_v1")
    strips = ChatEncoder(tokenizer)
    for row in on:
        with pytest.raises(UserError, match="leaves out something that the assistant says"):
            strips.encode(row)
    tokenizer.save_pretrained(tmp_path)
    put_template("nemotron", tmp_path)
    tokenizer.chat_template = (tmp_path / "chat_template.jinja").read_text()
    keeps = ChatEncoder(tokenizer)
    counts = {}
    for mode, some in (("on", on), ("off", off)):
        documents = keeps.encode_many(some)
        for row, document in zip(some, documents, strict=True):
            learned = [token for token, yes in zip(document.tokens, document.loss_mask, strict=True) if yes]
            assert tokenizer.decode(learned) == row["output"] + "<|eot_id|>"
        counts[mode] = sum(sum(document.loss_mask) for document in documents)
        record_property(f"loss tokens of 20 rows, thinking {mode}", counts[mode])
    assert counts["on"] > 2 * counts["off"]


def test_ours_are_in_the_corpus():
    assert {f"ours/{name}" for name in OURS} <= set(TEMPLATES)

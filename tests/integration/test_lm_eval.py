"""The harness on our models: the same numbers and texts as by its own model class, and what it leaves to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval")
pytest.importorskip("lnlit_lm_eval", reason="needs plugins/lnlit-lm-eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lnlit_lm_eval import LnlitLM  # noqa: E402

from lnlit.errors import UserError  # noqa: E402
from lnlit.testing.tiny import mixed_spec, tiny_folder  # noqa: E402

TEXTS = ["One and two", " three  four", "Fünf", "one, two, three, four and so on", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("harness") / "model")


@pytest.fixture(scope="module")
def ours(folder: Path) -> LnlitLM:
    return LnlitLM(str(folder), dtype="float32")


def request(kind: str, *args: Any) -> Instance:
    return Instance(kind, {}, args, 0)


def generations(*prompts: str, **settings: Any) -> list[Instance]:
    return [request("generate_until", prompt, {"max_gen_toks": 24, **settings}) for prompt in prompts]


def test_numbers_and_texts_are_those_of_the_harness_own_model(folder: Path, ours: LnlitLM):
    theirs = HFLM(str(folder), device="cpu", dtype="float32", batch_size=3)
    pairs = [request("loglikelihood", front, back) for front in ["", *TEXTS] for back in TEXTS]
    found = ours.loglikelihood(pairs, disable_tqdm=True)
    for (one, greedy), (other, also) in zip(found, theirs.loglikelihood(pairs, disable_tqdm=True), strict=True):
        assert one == pytest.approx(other, abs=1e-4) and greedy == also
    texts = [request("loglikelihood_rolling", text) for text in [*TEXTS, "a long text " * 60, ""]]
    rolled = ours.loglikelihood_rolling(texts, disable_tqdm=True)
    for one, other in zip(rolled, theirs.loglikelihood_rolling(texts, disable_tqdm=True), strict=True):
        assert one == pytest.approx(other, abs=1e-3, rel=1e-6)
    greedy = generations(*TEXTS, until=["e"], do_sample=False) + generations(*TEXTS, until="t")
    assert ours.generate_until(greedy, disable_tqdm=True) == theirs.generate_until(greedy, disable_tqdm=True)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    begun = [*chat, {"role": "assistant", "content": "The answer is"}]
    assert ours.apply_chat_template(begun, False) == theirs.apply_chat_template(begun, False)


def test_a_child_that_transformers_cannot_read_is_evaluated(tmp_path):
    child = tiny_folder(tmp_path / "child", mixed_spec())
    rows = [{"q": f"What is {n}?", "a": ["one", "two", "a few"], "right": n % 3} for n in range(6)]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}}}
    shared |= {"test_split": "test", "doc_to_text": "{{q}}"}
    choice = {
        "task": "choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{a}}",
        "doc_to_target": "{{right}}",
    }
    choice |= {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], **shared}
    said = {"task": "said", "output_type": "generate_until", "doc_to_target": "{{a[right]}}", "repeats": 3, **shared}
    said |= {"generation_kwargs": {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "until": ["\n\n\n"]}}
    said |= {"filter_list": [{"name": "all", "filter": [{"function": "take_first"}]}]}
    said |= {"metric_list": [{"metric": "exact_match"}]}
    model = LnlitLM(str(child), dtype="float32")
    found = lm_eval.simple_evaluate(model=model, tasks=[choice, said], bootstrap_iters=0)
    assert found is not None and 0 <= found["results"]["choice"]["acc,none"] <= 1
    answers = [sample["resps"][0] for sample in found["samples"]["said"]]
    assert all(len({*each}) == 3 for each in answers)  # three repeats, three texts
    again = lm_eval.simple_evaluate(model=model, tasks=[said], bootstrap_iters=0)
    assert again is not None and [sample["resps"][0] for sample in again["samples"]["said"]] == answers
    other = LnlitLM(str(child), dtype="float32", seed=1)
    assert other.generate_until(generations("What is 1?", do_sample=True, temperature=1.0)) != model.generate_until(
        generations("What is 1?", do_sample=True, temperature=1.0)
    )


def test_a_sample_does_not_depend_on_what_else_is_asked(ours: LnlitLM):
    sampled = {"do_sample": True, "temperature": 0.9, "top_p": 0.9}
    alone = ours.generate_until(generations("Once", **sampled) * 2, disable_tqdm=True)
    among = ours.generate_until(
        generations("Once", "Another, longer one", "Once", **sampled) + generations("Once"), disable_tqdm=True
    )
    assert [among[0], among[2]] == alone and alone[0] != alone[1]


@pytest.mark.parametrize("setting", [{"num_beams": 4}, {"top_k": 50, "do_sample": True}, {"max_length": 9}])
def test_settings_that_lnlit_has_not_are_refused(setting: dict[str, Any], ours: LnlitLM):
    (name,) = set(setting) - {"do_sample"}
    with pytest.raises(UserError, match=f"generates with {name}="):
        ours.generate_until(generations("a", **setting))
    neutral = {"num_beams": 1, "top_k": None, "repetition_penalty": 1.0, "do_sample": False, "top_p": 0.4}
    assert len(ours.generate_until(generations("a", **neutral), disable_tqdm=True)) == 1


def test_the_toggle_is_in_the_system_prompt(folder: Path):
    thinking = LnlitLM(str(folder), thinking="on")
    text = thinking.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text.startswith("<|im_start|>system\ndetailed thinking on<|im_end|>") and "Hi" in text
    with pytest.raises(UserError, match="batch_size"):
        LnlitLM(str(folder), batch_size="auto")

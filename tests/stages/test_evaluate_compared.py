"""Models that are compared: by what they find likely, question by question, and token by token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
from evaluate_and_die import QUESTIONS, Says, answer_files, lines, results

from lnlit.checkpoint.load import frozen_decoder
from lnlit.data.chat import ChatEncoder
from lnlit.data.sources import JsonlSource
from lnlit.data.tokenizer import load_tokenizer
from lnlit.errors import UserError
from lnlit.eval import compared as eval_compared
from lnlit.eval.likelihood import log_likelihoods
from lnlit.eval.runner import Settings
from lnlit.eval.tasks.multiple_choice import MultipleChoice
from lnlit.eval.tasks.perplexity import Perplexity
from lnlit.stages.evaluate import _short_names, evaluate
from lnlit.testing.tiny import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("policy") / "model"))


CHOICES = [{"context": f"{n} and {n} are", "choices": [str(n), str(2 * n), "no"], "answer": n % 3} for n in range(20)]


def compared(model: str, out: Path, rows: list[dict], **settings) -> dict:
    file = out.with_suffix(".rows.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate([model], [MultipleChoice(JsonlSource(str(file)))], str(out), **settings)
    return results(out)["results"][0]


def test_likelihoods_are_computed_once(model, tmp_path, monkeypatch):
    decoder, asked = frozen_decoder(model, "cpu", torch.float32), []
    few = Settings(questions_per_round=8, likelihood_dtype="float32")
    monkeypatch.setattr(eval_compared, "log_likelihoods", lambda *args: asked.extend(args[2]) or log_likelihoods(*args))
    cell = compared(model, tmp_path / "out", CHOICES, settings=few)
    task = MultipleChoice(JsonlSource(str(tmp_path / "out.rows.jsonl")))
    questions = list(task.questions())
    rows = log_likelihoods(decoder, load_tokenizer(model), questions)
    right = [task.values(question, row)["acc"] for question, row in zip(questions, rows, strict=True)]
    assert cell["value"] == pytest.approx(fmean(right)) and cell["questions"] == 20 and len(asked) == 20
    assert compared(model, tmp_path / "out", CHOICES, settings=few) == cell and len(asked) == 20
    compared(model, tmp_path / "out", [*CHOICES, {"context": "one", "choices": ["a", "b"], "answer": 0}], settings=few)
    assert len(asked) == 21
    compared(model, tmp_path / "out", CHOICES)
    assert len(asked) == 41, "another dtype"


def test_models_are_compared_question_by_question(model, tmp_path, tmp_path_factory):
    other = str(tiny_folder(tmp_path_factory.mktemp("other") / "parent", seed=1))
    evaluate([model], [Says()], str(tmp_path / "out"), against=other, thinking=["off"])
    data = results(tmp_path / "out")
    assert [*data["models"]] == ["model", "parent"] and data["against"] == "parent"
    ours, theirs = (cell["value"] for cell in data["results"])
    (letters, *_) = data["differences"]
    assert letters["value"] == pytest.approx(ours - theirs) and letters["questions"] == QUESTIONS
    rows = lines(tmp_path / "out" / "questions.jsonl")
    pairs = [[one["values"]["letters"][0] for one in row["results"]] for row in rows]
    assert letters["better"] == sum(a > b for a, b in pairs) and letters["worse"] == sum(a < b for a, b in pairs)


def test_models_are_compared_at_the_same_tokens(model, tmp_path, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("others")
    other = str(tiny_folder(folder / "parent", seed=1))
    shutil.copytree(other, folder / "copy")
    exact = Settings(likelihood_dtype="float32", divergence_questions=9)
    settings = {"against": other, "thinking": ["off"], "settings": exact}
    evaluate([model, str(folder / "copy")], [Says()], str(tmp_path / "out"), **settings)
    ours, copies = results(tmp_path / "out")["divergences"]
    assert (copies["kl"]["value"], copies["agreement"]["value"]) == (pytest.approx(0, abs=1e-6), 1)
    encoder, decoders = (
        ChatEncoder(load_tokenizer(other), "off"),
        [frozen_decoder(each, "cpu") for each in (other, model)],
    )
    (file,) = (file for file in answer_files(tmp_path / "out") if file.parent.name == "parent")
    kls, tokens = [], 0
    for question, entry in list(zip(Says().questions(), lines(file)[1:], strict=True))[:9]:
        _, ids = encoder.prompt({"messages": question.prompts[0]})
        answer = encoder.tokenizer(entry["answers"][0][0]["text"], add_special_tokens=False)["input_ids"]
        one, two = (
            decoder(torch.tensor([[*ids, *answer]]))[0, len(ids) - 1 : -1].log_softmax(-1) for decoder in decoders
        )
        kls.append(float(torch.nn.functional.kl_div(two, one, log_target=True, reduction="batchmean")))
        tokens += len(answer)
    assert ours["kl"]["value"] == pytest.approx(fmean(kls), rel=1e-4) and ours["tokens"] == tokens
    monkeypatch.setattr("lnlit.eval.runner.frozen_decoder", None)
    evaluate([model, str(folder / "copy")], [Says()], str(tmp_path / "out"), **settings)
    assert results(tmp_path / "out")["divergences"][0] == ours


def test_the_results_of_somebody_else_stay(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("results.json", "results.md", "index.html", "questions.jsonl"):
        (out / name).write_text('{"mine": 1}')
        with pytest.raises(UserError, match=rf"{name} is there already, and is no earlier result"):
            compared(model, out, CHOICES)
        assert [file.name for file in out.iterdir()] == [name]
        assert (out / name).read_text() == '{"mine": 1}'
        (out / name).unlink()


def test_a_perplexity_beyond_all_numbers_is_none_in_the_results(model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": word * 200}) + "\n" for word in ("abc", "bcd", "cab")))
    evaluate([model], [Perplexity(JsonlSource(str(file)))], str(tmp_path / "out"))
    found = results(tmp_path / "out")["results"][0]["totals"]
    assert found["word_perplexity"] == {"value": None, "low": None, "high": None, "questions": 3}
    assert found["bits_per_byte"]["low"] <= found["bits_per_byte"]["value"] <= found["bits_per_byte"]["high"]
    assert "inf" in (tmp_path / "out" / "results.md").read_text()


def test_every_model_has_a_name_of_its_own_that_is_the_name_of_a_folder(monkeypatch, tmp_path):
    """Two of one name would share their answers, and of the tables one of them would be gone."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert _short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert _short_names(["."]) == ["model"] and _short_names([".", "../a"]) == ["model", "a"]
    for given in (["x/a b", "x/a-b"], ["a b", "a-b"], ["1/m", "2/m"], ["../m", "m"], [".", "../model"], ["/", ".."]):
        found = _short_names(given)
        assert len({*found}) == len(given) and not any("/" in name or set(name) <= {"."} for name in found), found

"""Benchmarks read their datasets whole, ask what they should, and refuse what is no row of theirs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "rewards"))

from benchmark_rows import BENCHMARKS, isolation
from bfcl_answers import files
from fake_judge import FakeJudge, completion, parts

from lnlit import registry
from lnlit.data.sources import HuggingFaceSource, JsonlSource
from lnlit.errors import UserError
from lnlit.eval.figures import outcome, totals_of_answers
from lnlit.eval.tasks.arena_hard import ArenaHard
from lnlit.eval.tasks.bfcl import BFCL
from lnlit.eval.tasks.hub import HubFiles
from lnlit.eval.tasks.ifeval import IFEval
from lnlit.eval.tasks.judgebench import JudgeBench
from lnlit.eval.tasks.mmlu import MMLUGenerative
from lnlit.interfaces import Answer, GenerationTask, Question, RewardRequest, RewardResult
from lnlit.rewards.pair_judge import Judge

SHARED = Path(__file__).parents[3] / "shared/data"
here = pytest.mark.skipif(not (SHARED / "gsm8k").is_dir(), reason="needs ../shared/data")


def judged(task: GenerationTask, question: Question, text: str, prompt: int = 0) -> Answer:
    """A text as an answer to one of a question's prompts."""
    request = RewardRequest(question.prompts[prompt], text, False, question.row)
    return Answer(
        text, 1, False, False, {name: RewardResult(reward.score(request)) for name, reward in task.rewards().items()}
    )


def answered(task: GenerationTask, question: Question, *texts: str) -> dict[str, list[float | None]]:
    """The values of a question whose prompts are answered with these texts in turn."""
    answers = [[judged(task, question, text, at)] for at, text in enumerate(texts)]
    return {name: list(values) for name, values in task.values(answers).items()}


@pytest.fixture
def rows_file(tmp_path) -> Callable[..., str]:
    def write(*rows: Any, name: str = "rows.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    return write


def shared(name: str) -> JsonlSource:
    return JsonlSource(str(SHARED / name))


@here
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "file", "questions", "groups"),
    [
        ("gsm8k", "gsm8k/test.jsonl", 1319, 1),
        ("math500", "math500/test.jsonl", 500, 7),
        ("aime24", "aime/aime24.jsonl", 30, 1),
        ("aime25", "aime/aime25.jsonl", 30, 1),
        ("ifeval", "ifeval/input_data.jsonl", 541, 1),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", 164, 1),
        ("mmlu_generative", "mmlu/test.jsonl.gz", 14042, 57),
        ("judgebench", "judgebench/gpt4o.jsonl", 350, 4),
    ],
)
def test_a_dataset_is_read_whole(name, file, questions, groups):
    task = registry.build("task", name, source=shared(file))
    found = list(task.questions())
    assert len({question.key for question in found}) == len(found) == questions
    assert len({question.group for question in found}) == groups
    assert all(messages[-1]["content"].strip() for question in found for messages in question.prompts)


@here
@pytest.mark.data
def test_the_questions_of_bfcl_are_read_with_their_answers():
    questions, answers = files()
    source = JsonlSource([*questions, str(SHARED / "bfcl/irrelevance.jsonl")])
    found = list(BFCL(source, JsonlSource(answers)).questions())
    assert len(found) == 2591 and len({question.group for question in found}) == 9
    few = list(BFCL(source, JsonlSource(answers), rows=18).questions())
    assert Counter(question.group for question in few) == dict.fromkeys((question.group for question in found), 2)
    assert [question for question in found if question.key == few[0].key] == few[:1]
    system = [question for question in found if len(question.prompts[0]) > 1]
    assert len(system) == 49 and all(question.prompts[0][0]["role"] == "system" for question in system)


@here
@pytest.mark.data
def test_arena_hard_pairs_each_request_with_the_baselines_answer():
    judge = Judge("http://localhost:9/v1", "m")
    sources = (shared("arena_hard_v01/question.jsonl"), shared("arena_hard_v01/gpt-4-0314.jsonl"))
    found = list(ArenaHard(judge, *sources).questions())
    assert len(found) == 500 and all(question.row["baseline"].strip() for question in found)


@here
@pytest.mark.data
def test_labelled_solutions_of_gsm8k_are_judged_as_their_labels_say():
    task = registry.build("task", "gsm8k", source=shared("gsm8k/test.jsonl"))
    labelled = shared("gsm8k/example_model_solutions.jsonl").rows()
    for question, row in islice(zip(task.questions(), labelled, strict=True), 0, None, 40):
        assert question.row["question"] == row["question"]
        for solution in (value for value in row.values() if isinstance(value, dict)):
            right = answered(task, question, solution["solution"])["accuracy"]
            assert right == [float(solution["is_correct"])], solution["solution"]


@here
@pytest.mark.data
@pytest.mark.skipif(sys.platform == "win32", reason="no sandbox on Windows")
def test_reference_solutions_of_humaneval_pass():
    source = shared("humaneval/HumanEval.jsonl.gz")
    task = registry.build("task", "humaneval", source=source, isolation=isolation())
    for question in islice(task.questions(), 0, None, 20):
        code = question.row["prompt"] + question.row["canonical_solution"]
        assert answered(task, question, f"```python\n{code}\n```")["accuracy"] == [1], question.key
        assert answered(task, question, f"```python\n{question.row['prompt']}\n```")["accuracy"] == [0], question.key


PAIRS = """class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b

def total(pairs):
    return sum(pair.a + pair.b for pair in pairs)"""
#: (code, imports, test) in the forms that MBPP's sanitized rows have. They are no rows of it.
PROGRAMS = [
    ("def shared(a, b): return tuple(set(a) & set(b))", [], "assert set(shared((3, 4), (4, 5))) == set((4,))"),
    ("import heapq\ndef most(n, k): return heapq.nlargest(k, n)", [], "assert most([1, 5, 3], 2) == [5, 3]"),
    ("def volume(r): return 4.18879 * r**3", ["import math"], "assert math.isclose(volume(1), 4.189, rel_tol=0.001)"),
    ("def find(s): return None", [], "assert find('a') == None"),
    ("from collections import Counter\ndef freq(w): return Counter(w)", [], "assert freq(['a', 'a']) == {'a': 2}"),
    ("def squares(n):\n    for i in range(n): yield i, i * i", [], "assert list(squares(2)) == [(0, 0), (1, 1)]"),
    ("def change(l):\n    l.append(1)\n    return l", [], "assert change([0]) == [0, 1]"),
    ("import re\ndef words(t): return re.findall(r'\\w+', t)", [], "assert words('a b.') == ['a', 'b']"),
    (PAIRS, [], "assert total([Pair(1, 2), Pair(3, 4)]) == 10"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="no sandbox on Windows")
def test_programs_of_mbpps_schema_pass_their_tests(rows_file):
    rows = [
        {"task_id": number, "prompt": "Write it.", "code": code, "test_imports": imports, "test_list": [test, test]}
        for number, (code, imports, test) in enumerate(PROGRAMS)
    ]
    task = registry.build("task", "mbpp", source=JsonlSource(rows_file(*rows)), isolation=isolation())
    for question in task.questions():
        code, test = question.row["code"], question.row["test_list"][0]
        assert test in question.prompts[0][0]["content"]
        assert answered(task, question, f"```python\n{code}\n```")["accuracy"] == [1], code
        name = code.rpartition("def ")[2].partition("(")[0]
        assert answered(task, question, f"```python\ndef {name}(*_): return 7\n```")["accuracy"] == [0], code


def test_a_pair_is_judged_in_both_orders(rows_file):
    arguments, _ = BENCHMARKS["judgebench"](rows_file)
    task = JudgeBench(**arguments)
    question = next(iter(task.questions()))
    first, second = (messages[-1]["content"] for messages in question.prompts)
    assert first.index("\n4\n") < first.index("\n5\n") and second.index("\n5\n") < second.index("\n4\n")

    def values(*texts: str) -> tuple[float | None, ...]:
        found = answered(task, question, *texts)
        return tuple(found[name][0] for name in ("accuracy", "inconsistent", "undecided"))

    a, b, none = "\\boxed{A}", "<think>A?</think>\\boxed{B}", "Both are fine."
    assert values(a, b) == (1, 0, 0)
    assert values(b, a) == (0, 0, 0)
    assert values(a, a) == values(b, b) == (0, 1, 0)
    assert values(a, none) == (0, 0, 0.5)
    assert values(none, none) == (0, 0, 1)
    swapped = {**question.row, "label": "B>A"}
    assert answered(task, Question("b", question.prompts, swapped), b, a)["accuracy"] == [1]
    unjudged = [[Answer("", 1, False, False, dict.fromkeys(("right", "decided"), RewardResult(None)))]] * 2
    assert task.values(unjudged)["accuracy"] == [None]


def test_arena_answers_are_compared_in_both_orders(rows_file):
    pytest.importorskip("httpx2")
    endpoint = FakeJudge()
    arguments, _ = BENCHMARKS["arena_hard"](rows_file)
    task = ArenaHard(**{**arguments, "judge": Judge(endpoint.url, "m", retries=0)})
    question = next(iter(task.questions()))
    assert question.row["baseline"] == "0"

    def values(text: str, number: Callable[[dict[str, str]], int]) -> list[float | None]:
        def behave(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
            shown = parts(body)
            assert "baseline" not in str(body) and "reference" not in str(body)
            return 200, completion(f"So.\nVERDICT {shown['nonce']} {number(shown)}")

        endpoint.behave = behave
        found = answered(task, question, text)
        return [found[name][0] for name in ("win_rate", "inconsistent")]

    try:
        assert values("good 1", lambda shown: 4 if "good" in shown["second"] else 0) == [1, 0]
        assert values("good 2", lambda shown: 3 if "good" in shown["second"] else 1) == [0.75, 0]
        assert values("bad 3", lambda shown: 0 if "bad" in shown["second"] else 4) == [0, 0]
        assert values("any 4", lambda shown: 4) == [0.5, 1]
        assert values("any 5", lambda shown: 2) == [0.5, 0]
        assert values("any 6", lambda shown: 5) == [None, None]
    finally:
        endpoint.close()


def test_instructions_of_all_prompts_are_counted_together(rows_file):
    kinds = ["punctuation:no_comma", "detectable_format:title", "startend:quotation"]
    rows = [
        {"prompt": f"Write {n}.", "instruction_id_list": kinds[:n], "kwargs": [{} for _ in range(n)]} for n in (1, 3, 2)
    ]
    task = IFEval(JsonlSource(rows_file(*rows)))
    questions = list(task.questions())
    texts = ["a, b", "<<a>>", "Sure:\n<<a, b>>\n*c*"]  # 0 of 1, 2 of 3, 1 of 2
    found = {
        each.key: outcome(task, "", [[judged(task, each, text), judged(task, each, "")]], None)
        for each, text in zip(questions, texts, strict=True)
    }
    pooled = totals_of_answers(task, questions, found)
    assert list(pooled) == ["strict_instructions", "loose_instructions"]
    total = pooled["strict_instructions"]
    assert total.value == pytest.approx((0 + 2 + 1) / 6 / 2) and total.low is not None and total.high is not None
    assert 0 <= total.low < total.value < total.high <= 1
    unjudged = Answer("", 1, False, False, dict.fromkeys(task.rewards(), RewardResult(None, "a test")))
    found[questions[1].key] = outcome(task, "", [[unjudged]], None)
    assert totals_of_answers(task, questions, found)["strict_instructions"].value == pytest.approx(1 / 3 / 2)
    assert totals_of_answers(task, [], found) == {}
    right = {each.key: outcome(task, "", [[judged(task, each, '"<<a>>"')]], None) for each in questions}
    total = totals_of_answers(task, questions, right)["strict_instructions"]
    assert total.value == total.high == 1 and total.low is not None and total.low < 0.5


def test_rows_of_a_dataset_sorted_by_group_are_taken_from_each(rows_file):
    arguments, _ = BENCHMARKS["mmlu_generative"](rows_file)
    assert [question.group for question in MMLUGenerative(**arguments).questions()] == ["algebra", "algebra", "logic"]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("gsm8k", {"question": "1 + 1?", "answer": "2"}, "answer: got '2'; expected a solution that ends in `#### 18`"),
        ("math500", {"problem": "", "answer": "1"}, "problem: got ''; expected a text"),
        ("math500", {"problem": "x", "answer": "N/A"}, "answer: 'N/A' is no answer"),
        ("aime24", {"answer": "1000"}, "got '1000'; expected a whole number from 0 to 999"),
        ("aime25", {"answer": None}, "got None; expected a whole number"),
        ("ifeval", {"kwargs": [{}]}, "2 kinds, but kwargs has 1"),
        ("ifeval", {"instruction_id_list": ["punctuation:commas", "detectable_format:title"]}, "punctuation:no_comma"),
        ("humaneval", {"test": "def check("}, "the row's tests are not Python"),
        ("humaneval", {"entry_point": None}, "entry_point: got None; expected a text"),
        ("mbpp", {"test_list": "assert f(1)"}, "test_list: expected a list of Python lines"),
        ("mbpp", {"test_list": []}, "test_list: got no test"),
        ("mbpp", {"test_imports": ["import numpy"]}, "the tests need numpy"),
        ("bfcl", {"question": "Rome?"}, "question: expected one turn with its messages"),
        ("bfcl", {"function": None}, "function must be a list of schemas"),
        ("bfcl", {"id": "live_simple_9"}, "no ground_truth for live_simple_9: .*answers.jsonl has none"),
        ("mmlu_generative", {"choices": ["1"]}, "choices: got 1 choices; expected at least 2"),
        ("mmlu_generative", {"answer": 4}, "got 4; expected the index of one of 4 choices"),
        ("judgebench", {"label": "A=B"}, "label: got 'A=B'; expected A>B or B>A"),
        ("judgebench", {"response_B": "4", "response_A": "4"}, "are the same"),
        ("arena_hard", {"uid": "9"}, "has no answer to 9"),
        ("reasoning_gym", {"task": "coin_flip"}, "pays 1 for the answer 0"),
        ("reasoning_gym", {"answer": ...}, "row needs answer"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_in_one_line(name, change, says, rows_file, tmp_path):
    if name == "gsm8k":
        arguments, good = {"source": JsonlSource(rows_file({"question": "1?", "answer": "#### 1"}))}, {}
    else:
        arguments, _ = BENCHMARKS[name](rows_file)
    file = tmp_path / "rows.jsonl"
    good = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    bad = {key: value for key, value in {**good, **change}.items() if value is not ...}
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(bad) + "\n")
    count = len(file.read_text(encoding="utf-8").splitlines())
    with pytest.raises(UserError, match=says) as raised:
        list(registry.build("task", name, **{**arguments, **({"rows": 50} if "rows" in arguments else {})}).questions())
    message = str(raised.value)
    assert message.startswith(f"{file}:{count}: ") and "\n" not in message


def test_no_rows_and_a_hub_out_of_reach_are_told(monkeypatch, rows_file):
    with pytest.raises(UserError, match="rows: got 0; expected at least 1"):
        MMLUGenerative(rows=0)

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UserError, match=r"possible_answer/BFCL_v3_live_simple.json.*: no route. Check the network"):
        list(BFCL().questions())


def test_the_hubs_files_are_read_as_they_are(monkeypatch, tmp_path):
    asked = []

    def download(repository: str, file: str, repo_type: str, revision: str | None) -> str:
        asked.append((repository, file, repo_type, revision))
        path = tmp_path / file.replace("/", "_")
        path.write_text('{"a": 1}\n{"a": 2}\n' if file == "b/one.json" else '[{"a": 3}]')
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    source = HubFiles("owner/data", ["b/one.json", "two.json"], revision="abc")
    assert list(source.rows(1)) == [{"a": 2}, {"a": 3}]
    assert source.where(1) == f"{tmp_path / 'b_one.json'}:2"
    assert asked[0] == ("owner/data", "b/one.json", "dataset", "abc")


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in ("arena_hard", "reasoning_gym", "bfcl")])
def test_without_a_source_the_public_dataset_is_read(name):
    source = registry.build("task", name).source
    assert isinstance(source, HuggingFaceSource) and "/" in source.path

"""Steps that ask a model: what it says is read or counted, and no answer is asked for twice."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from talking import model

from lnlit.curation.asking import filled
from lnlit.curation.edit import Edit, Select
from lnlit.curation.problems import ClassifyProblems, ExtractAnswer, ExtractProblems
from lnlit.curation.questions import Subtopics, VaryQuestions, WriteQuestions, question_of
from lnlit.curation.solutions import BestOf, Generate, Judge, MajorityVote, OnOffPairs
from lnlit.curation.step import Step
from lnlit.data.rows import conversation
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, NoVerdictError, Reward, RewardResult
from lnlit.stages.curate import curate


def test_problems_of_posts(rows_in, curated):
    talk = {
        "two": "Here:\n<problem>What is 1?</problem> and <problem>\nWhat is 2?\n</problem>",
        "nothing": "NONE",
        "odd": "I like it.",
        "slow": None,
        "long": "<problem>What is...",
    }
    rows = [{"text": text, "n": n} for n, text in enumerate(("two", "nothing", "odd", "slow", "long", ""))]
    kept, dropped = curated(rows_in(rows), [ExtractProblems(model(talk), "text")])
    assert [(row["prompt"], row["n"]) for row in kept] == [("What is 1?", 0), ("What is 2?", 0)]
    reasons = {"no_problem": 1, "unreadable_reply": 1, "unanswered_timed_out": 1, "cut_off": 1, "no_text": 1}
    assert dropped["ExtractProblems"] == reasons


def kinds(**yes):
    return "\n".join(
        f"- {kind}: {'yes' if yes.get(kind) else 'no'}" for kind in ("proof", "multiple_choice", "yes_no", "invalid")
    )


def test_problems_by_kind(rows_in, curated):
    talk = {
        "Show": kinds(proof=True),
        "Which": kinds(multiple_choice=True, invalid=True),
        "Is it": kinds(yes_no=True),
        "above": kinds(invalid=True),
        "Find": f"<think>yes_no: yes?</think>\n{kinds()}",
        "Compute": "It is fine.",
    }
    rows = [{"prompt": f"{word} the thing"} for word in ("Show", "Which", "Is it", "In the above,", "Find", "Compute")]
    kept, dropped = curated(rows_in(rows), [ClassifyProblems(model(talk))])
    assert kept == [{"prompt": "Find the thing", "kinds": []}]
    expected = {"proof": 1, "multiple_choice": 1, "yes_no": 1, "invalid": 1, "unreadable_reply": 1}
    assert dropped["ClassifyProblems"] == expected
    kept, _ = curated(rows_in(rows), [ClassifyProblems(model(talk), drop=["proof"])], name="b.jsonl")
    assert kept[0] == {"prompt": "Which the thing", "kinds": ["multiple_choice", "invalid"]}
    with pytest.raises(UserError, match=r"unknown kind 'proofs'. Allowed: proof"):
        ClassifyProblems(model(talk), drop=["proofs"])


def test_answers_of_discussions(rows_in, curated):
    talk = {"seven": "So \\boxed{7}.", "open": "NONE", "odd": "It is seven."}
    rows = [{"prompt": "How many?", "posts": text} for text in ("seven", "open", "odd")]
    kept, dropped = curated(rows_in(rows), [ExtractAnswer(model(talk), "posts")])
    assert [row["answer"] for row in kept] == ["7", None] and dropped["ExtractAnswer"] == {"unreadable_reply": 1}


class Length(Reward):
    """The number of words, without a verdict for one that says `unsure`."""

    def score(self, request):
        if "unsure" in request.completion:
            raise NoVerdictError("unsure", "who knows")
        return float(len(request.completion.split()))


class Exclamations(BatchReward):
    def score_batch(self, requests):
        return [RewardResult(float(request.completion.count("!"))) for request in requests]


def test_solutions_are_generated_voted_on_and_judged(rows_in, curated):
    """Right answers by hand: the vote of `easy` is 4, `hard` has no majority, `known` keeps its answer."""
    talk = {
        "easy": ["<think>2+2</think>\\boxed{4}", "<think>a</think>\\boxed{4.0}", "<think>b</think>\\boxed{5}"],
        "hard": [f"\\boxed{{{n}}}" for n in range(5)],
        "known": "<think>c</think>\\boxed{9}",
        "slow": None,
        "none": "I do not know.",
    }
    rows = [{"prompt": word, "solution": "x", "output": "old"} for word in ("easy", "hard", "slow", "none")]
    rows.append(
        {"messages": [{"role": "user", "content": "known"}, {"role": "assistant", "content": "?"}], "answer": "9"}
    )
    solver = model(talk, samples=40, thinking="on")
    kept, dropped = curated(rows_in(rows), [Generate([solver]), MajorityVote(at_least=0.5)])
    answers = Counter((row.get("prompt") or row["messages"][0]["content"], row["answer"]) for row in kept)
    assert answers["known", "9"] == 40 and answers["easy", "4"] in range(18, 36) and len(answers) == 2
    assert dropped["Generate"] == {"unanswered_timed_out": 1}
    assert dropped["MajorityVote"]["minority"] == 40 - answers["easy", "4"]
    assert dropped["MajorityVote"]["no_answer"] == 40 and dropped["MajorityVote"]["no_majority"] == 40
    for row in kept:  # a row to learn from
        said = conversation(row).messages
        assert [message["role"] for message in said] == ["system", "user", "assistant"]
        assert said[0]["content"] == "detailed thinking on" and said[2]["content"] == row["completion"]
        assert "output" not in row and row["generated"].keys() == {"model", "tokens", "seed"}


def test_rewards_filter_and_choose(rows_in, curated):
    rows = [{"prompt": "q", "completion": text} for text in ("a b c", "a", "unsure", "", "a b c d")]
    kept, dropped = curated(rows_in(rows), [Judge(Length(), at_least=3.0, column="words")])
    assert [(row["completion"], row["words"]) for row in kept] == [("a b c", 3.0), ("a b c d", 4.0)]
    assert dropped["Judge"] == {"below_threshold": 1, "unjudged": 1, "no_completion": 1}


def test_the_best_of_each_prompt(rows_in, curated):
    talk = {"q": ["a", "b!", "c!!", "d!!!"]}
    generated = Generate([model(talk, 30, "on"), model(talk, 30, "off")])
    steps = [generated, Judge(Exclamations(), at_least=None), BestOf(2), OnOffPairs()]
    kept, dropped = curated(rows_in([{"prompt": f"q{n}"} for n in range(5)]), steps)
    assert [(row["prompt"], row["thinking"]) for row in kept] == [
        (f"q{n}", mode) for n in range(5) for mode in ("on", "off")
    ]
    assert {row["completion"] for row in kept} == {"d!!!"} and {row["reward"] for row in kept} == {3.0}
    assert dropped["BestOf"] == {"not_best": 280} and dropped["OnOffPairs"] == {"has_a_pair": 10}


def test_prompts_without_both_modes_are_dropped(rows_in, curated):
    on, off = model({"q": "yes"}, thinking="on"), model({"q1": "yes", "q2": None}, thinking="off")
    kept, dropped = curated(rows_in([{"prompt": "q1"}, {"prompt": "q2"}]), [Generate([on, off]), OnOffPairs()])
    assert [row["prompt"] for row in kept] == ["q1", "q1"] and dropped["OnOffPairs"] == {"no_partner": 1}


MCQ = "Question: What is it?\nA) one\nB) two\nC) three\nD) four\nAnswer: B"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (MCQ, "B"),
        (f"**{MCQ}** (two)", "B"),
        (MCQ.replace(")", "."), "B"),
        (MCQ.replace("D) four\n", ""), None),
        (MCQ.replace("two", "one"), None),
        (MCQ.replace("Answer: B", "Answer: E"), None),
        (MCQ.replace("Answer: B", ""), None),
        ("What is it?", None),
        ("", None),
    ],
)
def test_the_form_of_a_question(text, letter):
    found = question_of(text)
    assert (found and found["answer"]) == letter
    if found:
        assert found["choices"] == ["one", "two", "three", "four"] and found["prompt"].count("\n") == 5


def test_questions_by_topic_subtopic_and_difficulty(rows_in, curated):
    lists = model({"physics": "1. optics\n2. heat\n- optics\n3. sound", "odd": "", "slow": None})
    writes = model({r"about (\w+).*easy": MCQ.replace("it", "{n}"), "hard": "I cannot."})
    varies = model({"What is (\\w+)": [MCQ.replace("it", "{n} too"), MCQ.replace("it", "{n}"), "no"]}, samples=20)
    steps = [Subtopics(lists, 2, ["easy", "hard"]), WriteQuestions(writes), VaryQuestions(varies)]
    kept, dropped = curated(rows_in([{"topic": "physics"}, {"topic": "slow"}, {"topic": "odd"}, {"n": 1}]), steps)
    expected = [(subtopic, f"What is {subtopic}{too}?") for subtopic in ("optics", "heat") for too in ("", " too")]
    assert [(row["subtopic"], row["prompt"].partition("\n")[0]) for row in kept] == expected
    assert [row.get("variation") for row in kept] == [None, True, None, True]
    assert dropped["Subtopics"] == {"unanswered_timed_out": 1, "no_subtopics": 1, "no_topic": 1}
    assert dropped["WriteQuestions"] == {"form": 2}


def test_answers_are_edited_and_selected(rows_in, curated):
    critic = model({"Answer:\n(first|third)": "{n} is short", "Answer:\nsecond": "fine", "Answer:\nslow": None})
    editor = model({"(\\w+) is short": "better {n}", "fine": "second", "empty": ""})
    chooses = model({"q1": "Answer 2 is best", "q2": "77", "q3": "1"})
    first = model({"q1": ["first", "second", "third"], "q2": ["first", "second"], "q3": ["slow", "first"]}, samples=12)
    rows = [{"prompt": f"q{n}"} for n in (1, 2, 3)]
    kept, dropped = curated(
        rows_in(rows), [Generate([first]), Edit(critic, editor), Select(chooses, prompts_per_batch=2)]
    )
    assert [row["prompt"] for row in kept] == ["q1", "q3"]
    assert kept[0]["completion"] in ("better first", "second", "better third") and kept[0]["unedited"]
    assert kept[1]["completion"] == "better first" and dropped["Select"]["unreadable_reply"] == 12
    assert set(dropped["Edit"]) == {"unanswered_timed_out"}


def test_braces_of_formulas_stay():
    assert filled("{a} in \\frac{1}{2} and {b}", {"a": "x{b}", "c": 1}) == "x{b} in \\frac{1}{2} and {b}"
    with pytest.raises(UserError, match=r"Select.prompt: has no \{answers\}"):
        Select(model({}), prompt="{prompt}")


class Fails(Step):
    def __init__(self, after):
        super().__init__()
        self._left = after

    def each(self, row):
        self._left -= 1
        if self._left < 0:
            raise UserError("stopped")
        return row


@pytest.mark.parametrize("after", [0, 7, 13, 22])
def test_no_answer_is_asked_for_twice(rows_in, tmp_path, after):
    """A task that fails in the middle goes on with the answers that it has; the file is that of a run in one go."""
    source = rows_in([{"prompt": f"q{n}"} for n in range(10)])

    def run(stops, log, out):
        talk = {"q(\\d+)": ["a{n}", "b{n}", "c{n}"]}
        asks = Generate([model(talk, 3, "on", log=str(tmp_path / log))], rows_per_batch=4)
        votes = ClassifyProblems(model({"q": kinds()}, log=str(tmp_path / log)), rows_per_batch=4)
        curate(source, [asks, votes, Fails(stops)], str(tmp_path / out), tasks=1)

    run(1000, "whole.log", "whole.jsonl")
    with pytest.raises(UserError, match="stopped"):
        run(after, "log", "out.jsonl")
    run(1000, "log", "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    asked, whole = (Counter((tmp_path / name).read_text().split()) for name in ("log", "whole.log"))
    assert asked == whole and max(whole.values()) == 1


def test_batches_and_tasks_do_not_change_answers(rows_in, tmp_path):
    source = rows_in([{"prompt": f"q{n}"} for n in range(11)])
    for size, tasks in ((1, 1), (64, 1), (3, 4)):
        steps = [Generate([model({"q": [f"answer {n}" for n in range(50)]}, 4)], rows_per_batch=size)]
        curate(source, steps, str(tmp_path / f"{size}.jsonl"), tasks=tasks)
    texts = {(tmp_path / f"{size}.jsonl").read_text() for size in (1, 3, 64)}
    assert len(texts) == 1
    completions = [json.loads(line)["completion"] for line in texts.pop().splitlines()]
    assert len(set(completions)) > 15


def test_another_seed_or_model_is_another_pipeline(rows_in, tmp_path):
    source, out = rows_in([{"prompt": f"q{n}"} for n in range(20)]), tmp_path / "out.jsonl"
    found = []
    for seed, word in ((0, "a"), (1, "a"), (1, "b")):
        curate(source, [Generate([model({"q": [f"{word}{n}" for n in range(9)]}, seed=seed)])], str(out))
        found.append(out.read_text())
    assert len(set(found)) == 3

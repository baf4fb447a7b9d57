"""Each kind of instruction has a text that obeys it and one that nearly does; the verdicts are IFEval's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import RewardRequest
from lnlit.rewards.instructions import InstructionsReward
from lnlit.rewards.verifiable import VERIFIERS, obeys_all

pytest.importorskip("langdetect")
pytest.importorskip("punkt")

IFEVAL = Path(__file__).parents[3] / "shared/data/ifeval/input_data.jsonl"
ENGLISH = "the weather was good and we went to the river with all of our friends"
JSON = '{"a": [1]}'

CASES = [
    ("keywords:existence", {"keywords": ["rain", "sun"]}, ["Rain, then SUN", "rainy sunday"], ["rain", ""]),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, ["A cat"], ["a dog"]),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "less than"}, ["a dog"], ["A cat"]),
    ("keywords:forbidden_words", {"forbidden_words": ["art"]}, ["a start", "party"], ["Art!", "state of the art"]),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": "at least"}, ["Ee"], ["e"]),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 1, "let_relation": "less than"}, ["a"], ["#"]),
    ("language:response_language", {"language": "de"}, ["Das Wetter ist heute wirklich schön.", "123"], [ENGLISH]),
    ("language:response_language", {"language": "hi"}, ["मौसम आज बहुत अच्छा है"], [ENGLISH]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     ["One. Two.", "One! two"], ["Dr. Smith went to St. Louis.", "One\n\nTwo"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["One."], ["One. Two."]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b c", "it's so"], ["a, b!"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["a b"], ["a-b c"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     ["a\n***\nb", "***a***b***"], ["a", "a\n\nb", "a******b", "a***b***c"]),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Once"},
     ["a\n\nonce more", 'a\n\n"Once, more'], ["Once a\n\nb", "a\n\nonce\n\nc", "a\nonce", "a\n\noncemore"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b]"], ["[a] (b)", "[a]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["a\nP.S. b", "p. s. b"], ["PS: b", "a"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S. b", "p.p.s b"], ["P.S. b"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n- b", " * a\n * b\n"],
     ["* a", "* a\n* b\n* c", "** a\n** b"]),
    ("detectable_format:constrained_response", {}, ["My answer is no."], ["My answer is No.", "no"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* *b*", "**a**\n**b**"],
     ["*a*", "*a* **", "* *  * *"]),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     ["SECTION 1 a SECTION2 b"], ["Section 1 Section 2", "SECTION a SECTION b", "SECTION 1"]),
    ("detectable_format:json_format", {}, [JSON, f"```json\n{JSON}\n```", f"```\n{JSON}```", "3"],
     [f"Here: {JSON}", "{'a': 1}", "[" * 9999]),
    ("detectable_format:title", {}, ["<<a>>\nb", "b <<a>>"], ["<<>>", "<a>", "<<a\nb>>", "<< >>"]),
    ("combination:two_responses", {}, ["a******b", "******a******b"], ["a******a", "a***b", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, ["say it. It."], ["Well, say it."]),
    ("startend:end_checker", {"end_phrase": "The end."}, ["So. The END.", '"the end."\n'], ["The end. So."]),
    ("startend:quotation", {}, ['"a"', ' "a"\n'], ['"a', '"', "'a'", 'a"']),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
     ["NASA and US", "I AM"], ["Nasa US", "A b"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"},
     ["NASA and us"], ["NASA and US"]),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, "DAS WETTER IST HEUTE WIRKLICH SCHÖN"]),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.title(), "das wetter ist heute wirklich schön"]),
    ("punctuation:no_comma", {}, ["a; b."], ["a, b"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_kind(kind, arguments, good, bad):
    for text in good:
        assert obeys_all(text, [kind], [arguments]) == [True], text
    for text in [*bad, " \n"]:
        assert obeys_all(text, [kind], [arguments]) == [False], text


def test_every_kind_is_covered():
    assert {case[0] for case in CASES} == set(VERIFIERS)


def request(completion: str, **row) -> RewardRequest:
    kinds = ["punctuation:no_comma", "keywords:existence", "startend:quotation", "detectable_format:title"]
    arguments = [{}, {"keywords": ["rain"], "relation": None}, None, {}]
    return RewardRequest([], completion, False, {"instruction_id_list": kinds, "kwargs": arguments, **row})


@pytest.mark.parametrize(
    ("completion", "share", "everything"),
    [
        ('"<<rain>>"', 1, 1),
        ("rain", 0.5, 0),
        ("<think>rain, <<a>></think>, so", 0, 0),
        ('<think>a, b</think>\n"<<rain>>"', 1, 1),
        ("<think>rain</think>", 0, 0),
        ("", 0, 0),
    ],
)
def test_what_follows_the_thinking_is_judged(completion, share, everything):
    assert InstructionsReward().score(request(completion)) == share
    assert InstructionsReward("all").score(request(completion)) == everything


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kwargs": [{}]}, "4 kinds, but kwargs has 1"),
        ({"kwargs": None}, "needs the lists instruction_id_list and kwargs"),
        ({"instruction_id_list": []}, "needs the lists"),
        ({"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, "Did you mean 'punctuation:no_comma'"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}, "keywords:existence: does not take {}"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "more than"}],
            },
            "'at least' or 'less than', got 'more than'",
        ),
    ],
)
def test_a_row_that_cannot_be_judged_is_a_mistake_of_the_setup(row, message):
    with pytest.raises(UserError, match=message):
        InstructionsReward().score(request("a", **row))


@pytest.mark.parametrize("before", ["", "<think>so</think>", "<think>so</think>\n\n", "so\n</think>\n\n\n"])
def test_lines_behind_the_thinking_are_no_part_of_the_answer(before):
    second = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}
    row = {"instruction_id_list": ["length_constraints:nth_paragraph_first_word"], "kwargs": [second]}
    assert InstructionsReward().score(RewardRequest([], f"{before}First.\n\nThen.", False, row)) == 1
    row = {"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
    introduced = RewardRequest([], f'{before}Sure:\n"so"', False, row)
    assert [InstructionsReward("all", judging).score(introduced) for judging in ("strict", "loose")] == [0, 1]
    stars = {"instruction_id_list": ["detectable_format:constrained_response"], "kwargs": [{}]}
    bold = RewardRequest([], f"{before}My answer is **yes**.", False, stars)
    assert [InstructionsReward("all", judging).score(bold) for judging in ("strict", "loose")] == [0, 1]


def test_an_unknown_score_is_refused():
    with pytest.raises(UserError, match="share or all"):
        InstructionsReward("most")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="strict or loose"):
        InstructionsReward(judging="lenient")  # type: ignore[arg-type]


@pytest.mark.data
def test_every_row_of_ifeval_can_be_judged():
    if not IFEVAL.exists():
        pytest.skip(f"{IFEVAL} is absent")
    rows = [json.loads(line) for line in IFEVAL.read_text(encoding="utf-8").splitlines()]
    scores = [InstructionsReward().score(RewardRequest([], "Yes.", False, row)) for row in rows]
    assert len(scores) == 541 and 0 < sum(scores) / len(scores) < 0.5


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "needs the lists instruction_id_list and kwargs"),
        ({"instruction_id_list": None, "kwargs": [{}]}, "needs the lists"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "1 kinds, but kwargs has 0"),
        ({"instruction_id_list": ["punctuation:no_commas"], "kwargs": [{}]}, "no_comma"),
        ({"instruction_id_list": [None], "kwargs": [{}]}, "must be of texts"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": ["x"]}, "must be of mappings"),
        ({"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{}]}, "does not take"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"relation": "more", "num_words": 3}],
            },
            "at least",
        ),
        ({"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "xx"}]}, "unknown key 'xx'"),
    ],
)
def test_a_row_that_nothing_can_be_judged_by_is_found_before_anything_is_sampled(row, says):
    with pytest.raises(UserError, match=says):
        InstructionsReward().check_row(row)
    InstructionsReward().check_row({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]})

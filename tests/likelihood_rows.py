"""Rows of tasks whose answers are likelihoods, as they are on the hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lnlit.data.sources import JsonlSource

SCENES = [
    {"activity_label": "Roof repair", "ctx_a": "A man [header] sits.", "ctx_b": "he then", "label": "2",
     "endings": ["looks [title] up.", "is  gone.", "[step] falls", "sings"]},
    {"activity_label": "Cooking", "ctx_a": "Water boils. [title] Now add salt.", "ctx_b": "", "label": "0",
     "endings": ["Stir.", "Stir it", "Wait", "A long ending that says nothing of it"]},
]  # fmt: skip
EXAM = [
    {"id": "1", "question": "What is ice?", "answerKey": "B",
     "choices": {"text": ["fire", "water that is frozen", "air"], "label": ["A", "B", "C"]}},
    {"id": "2", "question": "Which is largest? ", "answerKey": "4",
     "choices": {"text": ["an ant", "a cat", "a dog", "the sun"], "label": ["1", "2", "3", "4"]}},
]  # fmt: skip
OPEN_BOOK = [{"question_stem" if key == "question" else key: value for key, value in row.items()} for row in EXAM]
GOALS = [
    {"goal": "Open a jar", "sol1": "Turn the lid.", "sol2": "Hit the jar with a hammer until it opens.", "label": 0},
    {"goal": "dresser\n", "sol1": "x", "sol2": "yy", "label": 1},
]
BLANKS = [
    {"sentence": "The cup fell on the rug because the _ was wet.", "option1": "cup", "option2": "rug", "answer": "2"},
    {"sentence": "Ann asked Bob since _ knew.", "option1": "Ann", "option2": "Bob", "answer": "1"},
]
PASSAGES = [{"text": "He had lost his keys. She gave him her keys"}, {"text": '"Stop!" he said. "Don\'t stop"'}]
LETTERS = [
    {"subject": "moral_disputes", "question": f" Question {n}?\n", "choices": ["a", "b ", "c", "d"], "answer": n % 4}
    for n in range(4)
]
WORKED = [
    {"subject": "moral_disputes", "question": f"Worked {n}?", "choices": list("wxyz"), "answer": 3 - n % 4}
    for n in range(6)
]
PAGES = [
    {"page": " \n = Title = \n \n It cost 1 @,@ 000 @.@ 5 francs ( about 3 ) ; \" so it is \" said [ him ] , 's . \n"},
    {"page": " = = Part = = \n the boys ' { x } 12 @-@ 3 ° N : why ? No ! \n \n = = = Deep = = = \n end"},
]  # fmt: skip

_ROWS: dict[str, list[dict[str, Any]]] = {
    "hellaswag": SCENES,
    "arc_easy": EXAM,
    "arc_challenge": EXAM,
    "openbookqa": OPEN_BOOK,
    "piqa": GOALS,
    "multiple_choice": [{"context": "1 + 1 =", "choices": ["1", "2", "3"], "answer": "B"}],
    "winogrande": BLANKS,
    "lambada": PASSAGES,
    "mmlu": LETTERS,
    "perplexity": [{"text": "To be, or not."}, {"text": "To be."}],
    "wikitext": PAGES,
}


def _case(name: str) -> Callable[[Callable[..., str]], tuple[dict[str, Any], list[Any]]]:
    def arguments(file: Callable[..., str]) -> tuple[dict[str, Any], list[Any]]:
        worked = {"examples": JsonlSource(file(*WORKED, name="worked.jsonl"))} if name == "mmlu" else {}
        return {"source": JsonlSource(file(*_ROWS[name])), **worked}, []

    return arguments


#: name -> a function that gives the arguments of a small task; there are no answers to judge.
LIKELIHOODS = {name: _case(name) for name in _ROWS}

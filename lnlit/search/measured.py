"""What was measured of whole children, in a journal: no child and no change is measured twice, also after an
interruption.

    {"child": ["kv3+i1536", "kv1+noop", ...], "text": "data", "kl": 1.25, "seconds": 0.9}
    {"around": ["kv3+i1536", "kv1+noop", ...], "changes": [[0, "attention", "noop", 0.2], ...], "seconds": 0.8}
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lnlit.interfaces import Problem, Solution
from lnlit.journal import Journal
from lnlit.progress import track
from lnlit.search.children import Children, added, changes
from lnlit.search.choice import At
from lnlit.search.library import Library

Names = tuple[str, ...]
#: The text that a search looks at; all others decide nothing.
LOOKED_AT = "data"


class MeasuredChildren:
    """Measures children of a library and remembers it.

    Args:
        problem: The problem that says which choices there are.
        library: The library that they come from.
        texts: The children by the name of the text that they are measured on, `LOOKED_AT` among them.
        journal: The journal of what is measured.
    """

    def __init__(self, problem: Problem, library: Library, texts: Mapping[str, Children], journal: Journal) -> None:
        self.library, self.texts, self.journal = library, texts, journal
        self.wanted = [
            [library.choice(At(layer, "block", choice.name)) for choice in problem.allowed(layer)]
            for layer in range(len(problem.layers))
        ]
        #: Seconds of measuring whole children of each text, and of scoring changes under "changes".
        self.seconds = dict.fromkeys([*texts, "changes"], 0.0)
        self.changes_scored = 0
        self._values: dict[tuple[str, Names], float] = {}
        self._changes: dict[Names, dict[At, float]] = {}
        for _, entry in journal.numbered():
            self._take(entry)

    def count(self, text: str = LOOKED_AT) -> int:
        """How many different children were measured on a text."""
        return sum(text == name for name, _ in self._values)

    def realised(self, child: Solution, text: str = LOOKED_AT) -> float:
        """KL(parent || child) in nats per token of a text."""
        if (text, child.choice) not in self._values:
            begin = time.perf_counter()
            scorer = self.texts[text].scorer(self.library.choices(child.choice))
            self._add({"child": child.choice, "text": text, "kl": scorer.own_values["kl"]}, begin)
        return self._values[text, child.choice]

    def changes(self, child: Solution) -> list[dict[str, float]]:
        """By layer, what each choice in place of the child's own adds to what it realises."""
        own = self.library.choices(child.choice)
        scored = self._changes.setdefault(child.choice, {})
        per_layer = zip(self.library.layers, own, self.wanted, strict=True)
        ats = [at for layer, each in enumerate(per_layer) for at in changes(each[0], layer, each[1], each[2])]
        if missing := [at for at in ats if at not in scored]:
            scorer = self.texts[LOOKED_AT].scorer(own)
            for group in track(scorer.in_passes(missing), "refine", "change", total=len(missing), size=len):
                begin = time.perf_counter()
                found = [[*vars(score.candidate).values(), score.score] for score in scorer.scores(group)]
                self._add({"around": child.choice, "changes": found}, begin)
        return [added(layer, *each, scored) for layer, each in enumerate(zip(own, self.wanted, strict=True))]

    def _add(self, entry: dict[str, Any], begin: float) -> None:
        entry["seconds"] = round(time.perf_counter() - begin, 4)
        self.journal.append(entry)
        self._take(entry)

    def _take(self, entry: Mapping[str, Any]) -> None:
        if "child" in entry:
            self._values[entry["text"], tuple(entry["child"])] = entry["kl"]
            self.seconds[entry["text"]] += entry["seconds"]
        else:
            found = {At(layer, slot, name): score for layer, slot, name, score in entry["changes"]}
            self._changes.setdefault(tuple(entry["around"]), {}).update(found)
            self.seconds["changes"] += entry["seconds"]
            self.changes_scored += len(found)

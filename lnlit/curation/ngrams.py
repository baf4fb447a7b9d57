"""Which benchmark questions a text repeats, by the share of their n-grams that it has."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

#: How LaTeX is set rather than what it says, so that the same formula written twice has the same words.
_SETTING = re.compile(
    r"\\(begin|end)\s*\{[^}]*\}|\\(left|right|displaystyle|text|textrm|textbf|mathrm|mbox|qquad|quad)(?![a-z])"
    r"|\\[,;:! \\]|\[/?asy\]"
)
_THOUSANDS = re.compile(r"(?<=\d)(\{?,\}?(\\!)?|\\,)(?=\d{3}(?!\d))")
_SUBSCRIPT = re.compile(r"_([a-z\d])")
_FRACTION = re.compile(r"\\[dt]?frac(\s*([a-z\d])\s*([a-z\d])(?![a-z\d]))?")
#: Words, numbers and the signs that make one formula another.
_WORD = re.compile(r"[^\W\d_]+|\d+|[=+\-*/<>^!|%]")


def words(text: str) -> list[str]:
    """The words of a text in lower case, with numbers and the signs of formulas, without punctuation."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = _FRACTION.sub(r" frac \2 \3 ", _SUBSCRIPT.sub(r" \1 ", _THOUSANDS.sub("", text)))
    return _WORD.findall(_SETTING.sub(" ", text))


def grams(said: Sequence[str], size: int) -> set[int]:
    """The n-grams of a list of words, as hashes. A shorter list is one n-gram."""
    if len(said) <= size:
        return {hash(tuple(said))} if said else set()
    return {hash(tuple(said[start : start + size])) for start in range(len(said) - size + 1)}


class Index:
    """The n-grams of benchmark questions, to look a text's up in.

    Args:
        questions: Questions, each with the name of its benchmark.
        size: The number of words in an n-gram.
    """

    def __init__(self, questions: Iterable[tuple[str, str]], size: int) -> None:
        self.size = size
        self.names: list[str] = []
        self.texts: list[str] = []
        self._counts: list[int] = []
        self._having: defaultdict[int, list[int]] = defaultdict(list)
        self._whole: dict[int, int] = {}
        for name, text in questions:
            said = words(text)
            if not said:
                continue
            number = len(self.names)
            self.names.append(name)
            self.texts.append(text)
            self._whole.setdefault(hash(tuple(said)), number)
            own = grams(said, size) if len(said) >= size else set()  # a short one is looked for as a whole
            self._counts.append(len(own))
            for gram in own:
                self._having[gram].append(number)

    def __len__(self) -> int:
        return len(self.names)

    def found(self, text: str) -> Iterator[tuple[int, float]]:
        """(number of a question, share of its n-grams that the text has) of all that have any in common, the largest
        share first. A question that is the text itself has the share 1."""
        said = words(text)
        if (number := self._whole.get(hash(tuple(said)))) is not None:
            yield number, 1.0
        common: Counter[int] = Counter()
        for gram in grams(said, self.size):
            common.update(self._having.get(gram, ()))
        shares = ((number, count / self._counts[number]) for number, count in common.items())
        yield from sorted(shares, key=lambda each: (-each[1], each[0]))

"""Log-likelihoods of a task's continuations by one model, kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, is_dataclass
from typing import TYPE_CHECKING

from lnlit.errors import UserError
from lnlit.eval.answers import AnswerFile
from lnlit.eval.figures import Outcome
from lnlit.eval.likelihood import log_likelihoods
from lnlit.interfaces import Continuations, Likelihood, LikelihoodTask
from lnlit.models.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def compare(
    questions: Sequence[Continuations],
    decoder: Callable[[], Decoder],
    tokenizer: PreTrainedTokenizerBase,
    found: AnswerFile,
    per_round: int,
    batch_tokens: int,
    what: str,
) -> None:
    """Computes the likelihoods that the file lacks, round by round.

    Args:
        decoder: Loads the model, which happens only if something is lacking.
        per_round: The number of questions between two writes to disk.
        batch_tokens: Tokens that go through the model together.
        what: A word or two for the progress report and for errors.
    """
    for part in found.rounds(questions, digest, per_round, what):
        try:
            likelihoods = list(log_likelihoods(decoder(), tokenizer, part, batch_tokens))
        except UserError as error:
            raise UserError(f"{what}: {error}") from error
        found.append(
            [
                {"question": each.key, "of": digest(each), "likelihoods": [list(astuple(one)) for one in row]}
                for each, row in zip(part, likelihoods, strict=True)
            ]
        )


def outcome(task: LikelihoodTask, question: Continuations, found: AnswerFile) -> Outcome:
    """What came out of one question, of which the file has the likelihoods."""
    row = [Likelihood(*one) for one in found.found[digest(question)]["likelihoods"]]
    return Outcome(question.group, {}, task.values(question, row))


def cut(questions: Sequence[Continuations], found: AnswerFile) -> int:
    """The number of questions whose context was longer than the model's."""
    rows = [found.found[digest(each)]["likelihoods"] for each in questions]
    return sum(any(Likelihood(*one).left_out for one in row) for row in rows)


def digest(question: Continuations) -> str:
    """A digest of all that the likelihoods of a question depend on besides the model."""
    windows = asdict(question.windows) if is_dataclass(question.windows) else None
    read = [question.context, list(question.continuations), windows]
    return hashlib.sha256(json.dumps(read, default=list).encode(errors="surrogatepass")).hexdigest()

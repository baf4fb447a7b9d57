"""Converts chat rows to tokens: the model's own chat template, the thinking toggle, and an exact loss mask.

The toggle is the system prompt `detailed thinking on` or `detailed thinking off` (Llama-Nemotron section 3). Loss is on
what the assistant says and on the token that ends its turn; headers and the turns of users, systems and tools carry
none.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lnlit.data.messages import Message
from lnlit.data.pieces import Piece, PieceTokenizer
from lnlit.data.rows import Conversation, asked, conversation
from lnlit.data.said import marked, missing, unshown
from lnlit.data.tokenizer import check_tokenizer
from lnlit.end_of_turn import OWN_TAGS, control_texts, end_ids
from lnlit.errors import UserError, shown
from lnlit.thinking import TAGS, Thinking, opened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: What a chat template that prints today's date prints: the same day whenever a run begins or goes on, so that the same
#: data are the same tokens. It is the date that Llama 3.2's template falls back to.
DATE = datetime.date(2024, 7, 26)

#: Brackets of a placeholder for a control token's text in a message: Unicode noncharacters, which no tokenizer has.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"

#: What to do about a template that does not say all.
_OTHER_TEMPLATE = "`lnlit import MODEL OUT --template NAME` puts another one into a copy of the model."


@dataclass(frozen=True)
class Document:
    """One conversation or text as tokens. `loss_mask[i]` is true if token i is learned."""

    tokens: Sequence[int]
    loss_mask: Sequence[bool]

    def __len__(self) -> int:
        return len(self.tokens)

    def piece(self, start: int, stop: int) -> Document:
        return Document(self.tokens[start:stop], self.loss_mask[start:stop])


@dataclass(frozen=True)
class _Rendered:
    """Template output with placeholders. `replies` are the character ranges [start, end) that carry loss, and `cuts`
    the positions where an assistant's turn begins."""

    text: str
    replies: list[tuple[int, int]]
    cuts: list[int]


class ChatEncoder:
    """Encodes rows to `Document`s and prompts to token ids, and decodes completions to text, with one tokenizer and its
    chat template.

    The text of a control token inside a message (a user typing `<|im_end|>`) stays text. Training tokens of a prompt
    equal those of `encode_prompt` and `prompt`, which generation sees. All that a learned turn says is learned, or the
    row is refused.

    Args:
        tokenizer: A tokenizer with a chat template.
        thinking: The toggle for rows without one.
        date: The date for templates that print today's.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, thinking: Thinking | None = None, date: datetime.date = DATE
    ) -> None:
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.thinking: Thinking | None = thinking
        self.date = date
        self._pieces = PieceTokenizer(tokenizer)
        specials = control_texts(tokenizer)
        self._theirs = _any_of([*specials, _OPEN, _CLOSE])
        self._assistants = _any_of([*(text for text in specials if text not in OWN_TAGS), _OPEN, _CLOSE])

    def encode(self, row: Mapping[str, Any]) -> Document:
        """Encodes one row. Raises `UserError` for a malformed row, a row without assistant turns, a row of which the
        template drops something to be learned, and an unusable template."""
        return self.encode_many([row])[0]

    def encode_many(self, rows: Iterable[Mapping[str, Any]]) -> list[Document]:
        """Many rows at once, tokenised on all cores."""
        return self.encode_conversations(conversation(row, self.thinking) for row in rows)

    def encode_replies(self, rows: Iterable[Mapping[str, Any]]) -> list[Document]:
        """Many rows that end with the assistant's turn, which alone carries loss."""
        return self.encode_conversations(_last_alone(conversation(row, self.thinking)) for row in rows)

    def encode_conversations(self, conversations: Iterable[Conversation]) -> list[Document]:
        """Encodes several conversations. The turns that are `learned` carry loss."""
        stand_ins: list[str] = []
        rendered = [self._render_learned(said, stand_ins) for said in conversations]
        pieces = [self._cut(item, stand_ins) for item in rendered]
        encoded = iter(self._pieces.encode([piece for item in pieces for piece in item]))
        documents = []
        for item, own in zip(rendered, pieces, strict=True):
            ids: list[int] = []
            mask: list[bool] = []
            for _ in own:
                piece_ids, starts = next(encoded)
                ids += piece_ids
                mask += [any(begin <= at < end for begin, end in item.replies) for at in starts]
            documents.append(Document(ids, mask))
        return documents

    def encode_prompt(self, messages: Sequence[Message], thinking: Thinking | None = None) -> list[int]:
        """Tokens to generate from: the conversation so far, with the toggle, up to the assistant's header."""
        return self._prompt_ids(conversation({"messages": list(messages)}, thinking or self.thinking))

    def prompt(self, row: Mapping[str, Any]) -> tuple[list[Message], list[int]]:
        """(conversation up to what the assistant must answer, its tokens) of a row. Both are empty if only the
        assistant speaks."""
        said = asked(row, self.thinking)
        if all(message["role"] == "system" for message in said.messages):
            return [], []
        return said.messages, self._prompt_ids(said)

    def completion(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The assistant's text in answer to a prompt: without control tokens, but with thinking tags, including an
        opening tag that the prompt ends with."""
        tail = opened(str(self.tokenizer.decode(list(prompt_ids[-16:]))))
        return tail + str(self.tokenizer.decode([token for token in token_ids if token not in self._silent]))

    def end_ids(self) -> list[int]:
        """The ids of tokens that end generation."""
        return list(self._end_ids)

    @cached_property
    def _end_ids(self) -> list[int]:
        return end_ids(self.tokenizer)

    @cached_property
    def _end(self) -> re.Pattern[str]:
        return _any_of([str(text) for text in self.tokenizer.convert_ids_to_tokens(self._end_ids)])

    @cached_property
    def _silent(self) -> set[int]:
        """Control tokens that are not part of what is said."""
        specials = [text for text in control_texts(self.tokenizer) if text not in OWN_TAGS]
        return set(self.tokenizer.convert_tokens_to_ids(specials))  # type: ignore[arg-type]

    @cached_property
    def _headers(self) -> re.Pattern[str]:
        """Control tokens at the start of a turn: they end the turn before."""
        prompt = self._render([{"role": "user", "content": "a"}], Conversation([], ()), prompt=True)
        others = (*self._end.findall(prompt), *OWN_TAGS)
        return _any_of({text for text in _any_of(control_texts(self.tokenizer)).findall(prompt) if text not in others})

    def _prompt_ids(self, said: Conversation) -> list[int]:
        stand_ins: list[str] = []
        said = self._safe(said, stand_ins)
        messages = said.messages
        text = self._render(messages, said, prompt=True)
        self._check_shown(said, text, prompt=True)
        cuts = [start for start in self._starts(messages, said, text).values() if start is not None]
        pieces = self._cut(_Rendered(text, [], cuts), stand_ins)
        return [token for ids, _ in self._pieces.encode(pieces) for token in ids]

    def _safe(self, said: Conversation, stand_ins: list[str]) -> Conversation:
        """Messages and tools with every control token's text replaced by a numbered placeholder. A missing content
        becomes empty text: transformers would drop the key, which many templates do not expect."""

        def replaced(match: re.Match[str]) -> str:
            stand_ins.append(match.group())
            return f"{_OPEN}{len(stand_ins) - 1}{_CLOSE}"

        def clean(value: Any, foreign: re.Pattern[str]) -> Any:
            if isinstance(value, str):
                return foreign.sub(replaced, value)
            if isinstance(value, dict):
                return {key: clean(item, foreign) for key, item in value.items()}
            return [clean(item, foreign) for item in value] if isinstance(value, list) else value

        foreign = {"assistant": self._assistants}
        messages = [
            {
                **clean(message, foreign.get(message["role"], self._theirs)),
                "role": message["role"],
                **({"content": ""} if message.get("content") is None else {}),
            }
            for message in said.messages
        ]
        return replace(said, messages=messages, tools=clean(said.tools, self._theirs))

    def _render(self, messages: list[Message], of: Conversation, prompt: bool = False) -> str:
        """Renders some of the messages of a conversation, with its tools."""
        try:
            template = self.tokenizer.get_chat_template(tools=of.tools)  # type: ignore[arg-type]
            text = self.tokenizer.apply_chat_template(
                messages,
                of.tools,
                chat_template=dated(template, self.date),
                tokenize=False,
                add_generation_prompt=prompt,
                **of.template_arguments,
            )
        except Exception as error:  # a template may raise anything, e.g. jinja's TemplateError for two user turns
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"the chat template refuses the conversation ({roles}): {error}") from error
        return str(text)

    def _check_shown(self, said: Conversation, text: str, prompt: bool = False) -> None:
        """Raises `UserError` if the text lacks something that the row says outside the assistant's turns."""
        template = self.tokenizer.get_chat_template(tools=said.tools)  # type: ignore[arg-type]
        for name, value in said.template_arguments.items():
            if value not in (None, "", [], {}) and not re.search(rf"\b{re.escape(name)}\b", template):
                raise UserError(
                    f"the row sets {name} to {shown(value)}, and the chat template has no such variable. Take one that "
                    f"has it, or leave the key out: columns: {{{name}: null}} or {{chat_template_kwargs: null}}."
                )
        without_tools = ""
        if said.tools:
            with suppress(UserError):  # a template may refuse calls of tools that it was not told
                without_tools = self._render(said.messages, replace(said, tools=None), prompt)
        with suppress(UserError):  # then the text itself has to do
            told = marked(said)
            said, text = told, self._render(told.messages, told, prompt)
        lost = unshown(said, text, without_tools)
        if lost is not None:
            raise UserError(
                "the chat template leaves out something that the row says, so the model would never see it: "
                f"{lost}. {_OTHER_TEMPLATE}"
            )

    def _starts(self, messages: list[Message], said: Conversation, text: str) -> dict[int, int | None]:
        """The position where each assistant's turn begins: after the prompt that it answers, or None if the text does
        not begin with that prompt or there is none."""
        found: dict[int, int | None] = {}
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                try:
                    before = self._render(messages[:turn], said, prompt=True)
                except UserError:  # for example, no message comes before
                    found[turn] = None
                else:
                    found[turn] = len(before) if text.startswith(before) else None
        return found

    def _render_learned(self, said: Conversation, stand_ins: list[str]) -> _Rendered:
        turns = [index for index, learned in enumerate(said.learned) if learned]
        if not turns:
            unread = f" (nobody reads the keys {', '.join(said.unread)})" if said.unread else ""
            raise UserError(f"no assistant turn{unread}, so there is nothing to learn; drop the row or add an answer")
        said = self._safe(said, stand_ins)
        messages = said.messages
        text = self._render(messages, said)
        self._check_shown(said, text)
        starts = self._starts(messages, said, text)
        replies = [self._reply(messages, said, turn, text, starts) for turn in turns]
        return _Rendered(text, replies, [start for start in starts.values() if start is not None])

    def _reply(
        self, messages: list[Message], said: Conversation, turn: int, text: str, starts: Mapping[int, int | None]
    ) -> tuple[int, int]:
        """The range of a turn's words and end token. It includes an opening thinking tag at the end of its prompt."""
        start = starts[turn]
        if start is None:
            raise UserError(self._why_no_start(messages, said, turn, text))
        ending = self._end.search(text, start)
        header = self._headers.search(text, start)
        following = min((at for later, at in starts.items() if later > turn and at is not None), default=len(text))
        if ending is None or ending.end() > following or (header is not None and header.start() < ending.start()):
            names = ", ".join(self.tokenizer.convert_ids_to_tokens(self._end_ids))
            raise UserError(
                f"message {turn + 1}: the chat template does not end this turn of the assistant with a token that "
                f"stops generation ({names}). Add the one that it ends with to eos_token_id in the model's "
                "generation_config.json, or take another template."
            )
        tail = len(opened(text[:start]))
        lost = missing(messages[turn], text[start - tail : ending.start()])
        if lost is not None:
            raise UserError(
                f"message {turn + 1}: the chat template leaves out something that the assistant says, so it would not "
                f"be learned: {lost}. {_OTHER_TEMPLATE}"
            )
        return start, ending.end()

    def _why_no_start(self, messages: list[Message], said: Conversation, turn: int, text: str) -> str:
        if not turn:
            return "message 1: the assistant speaks first, without a prompt. Give the message `weight: 0`."
        prompt = self._render(messages[:turn], said, prompt=True)
        bare = self._render(messages[:turn], said)
        header = prompt[len(bare) :] if prompt.startswith(bare) else ""
        tag = header.find(TAGS[0])
        if tag >= 0 and text.startswith(prompt[: len(bare) + tag]):
            return (
                f"message {turn + 1}: the chat template ends the prompt of this turn with {header[tag:]!r}, and the "
                "turn itself does not begin with it, so training would show another prompt than generation sees. Give "
                f"the turn its thought, or take a template that leaves the thinking to the assistant: {_OTHER_TEMPLATE}"
            )
        return (
            f"message {turn + 1}: the chat template changes earlier messages when later ones are added, so this turn "
            "would be learned after another prompt than generation sees. Learn the last turn of each row alone "
            f"(`weight: 0` on the others), or take a template that only appends: {_OTHER_TEMPLATE}"
        )

    def _cut(self, rendered: _Rendered, stand_ins: Sequence[str]) -> list[Piece]:
        """The positions at which to split the text before tokenisation: around placeholders and after prompts."""
        spans = [match.span() for match in re.finditer(f"{_OPEN}\\d+{_CLOSE}", rendered.text)]
        pieces = self._pieces.pieces(rendered.text, rendered.cuts, spans)
        return [replace(piece, text=stand_ins[int(piece.text[1:-1])]) if piece.literal else piece for piece in pieces]


@runtime_checkable
class _TeachesChats(Protocol):
    tokenizer_name: str
    encoder: Any


def chat_folder(data: object) -> str | None:
    """The folder whose chat template a data module uses, or None if it uses none."""
    if not isinstance(data, _TeachesChats) or not isinstance(data.encoder, ChatEncoder):
        return None
    folder = Path(data.tokenizer_name)
    return str(folder.resolve()) if folder.is_dir() else None


def _last_alone(said: Conversation) -> Conversation:
    if not said.messages or said.messages[-1]["role"] != "assistant":
        raise UserError("the last message must be the assistant's")
    return replace(said, learned=(False,) * (len(said.messages) - 1) + (True,))


@cache
def dated(template: str, date: datetime.date) -> str:
    """A chat template for which the date is always the same day at midnight."""
    if "strftime_now" not in template:
        return template
    letters = "aAwdbBmyYHIpMSfjUWcxXeFDTR"
    codes = {f"%{mark}{letter}": date.strftime(f"%{mark}{letter}") for mark in ("-", "") for letter in letters}
    said = "".join(f".replace({code!r}, {value!r})" for code, value in codes.items())
    # After a variable, unlike after a block, jinja keeps the line break that the template may begin with.
    return f"{{%- macro strftime_now(format) -%}}{{{{- format{said} -}}}}{{%- endmacro -%}}{{{{ '' }}}}{template}"


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of the texts, the longest first, or nothing if there are none."""
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

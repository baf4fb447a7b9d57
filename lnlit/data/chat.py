"""Chat rows to tokens: the model's own chat template, the thinking toggle, and an exact loss mask.

The toggle is the system prompt `detailed thinking on` or `detailed thinking off` (Llama-Nemotron section 3). Loss is
on what the assistant says and on the token that ends its turn; headers, users, systems and tools carry none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lnlit.data.messages import Message
from lnlit.data.rows import Conversation, asked, conversation
from lnlit.data.tokenizer import check_tokenizer, special_texts
from lnlit.errors import UserError
from lnlit.thinking import Thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Brackets of a stand-in for a control token's text inside a message. Unicode noncharacters: no tokenizer has them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


@dataclass(frozen=True)
class Document:
    """One conversation or text as tokens; `loss_mask[i]` says whether token i is to be learned."""

    tokens: Sequence[int]
    loss_mask: Sequence[bool]

    def __len__(self) -> int:
        return len(self.tokens)

    def piece(self, start: int, stop: int) -> Document:
        return Document(self.tokens[start:stop], self.loss_mask[start:stop])


@dataclass(frozen=True)
class _Rendered:
    """Template output with stand-ins, and the character ranges [start, end) that carry loss."""

    text: str
    replies: list[tuple[int, int]]


class ChatEncoder:
    """Rows to `Document`s and prompts to token ids, by one tokenizer and its chat template.

    A control token's text inside a message (a user typing `<|im_end|>`) stays text. Training tokens of a prompt equal
    those of `encode_prompt` and `prompt`, which is what generation sees.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, thinking: Thinking | None = None) -> None:
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.thinking: Thinking | None = thinking
        self._backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        specials = "|".join(re.escape(text) for text in special_texts(tokenizer))
        self._special = re.compile(specials or r"(?!)")
        self._literal = re.compile("|".join(filter(None, [specials, _OPEN, _CLOSE])))
        self._marks_replies = "generation %}" in str(tokenizer.chat_template).replace("-%}", " %}")
        self._splits_anywhere = self._ids("\nx") == self._ids("\n") + self._ids("x")

    def encode(self, row: Mapping[str, Any]) -> Document:
        """One row. Raises `UserError` for a malformed row, one without assistant turns, or an unusable template."""
        return self.encode_many([row])[0]

    def encode_many(self, rows: Iterable[Mapping[str, Any]]) -> list[Document]:
        """Many rows at once, tokenised on all cores."""
        stand_ins: list[str] = []
        rendered = [self._render_row(row, stand_ins) for row in rows]
        pieces = [self._pieces(item) for item in rendered]
        texts = [text for item in pieces for _, text in item if not text.startswith(_OPEN)]
        encoded = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        documents = []
        for item, row_pieces in zip(rendered, pieces, strict=True):
            ids: list[int] = []
            mask: list[bool] = []
            for start, text in row_pieces:
                if text.startswith(_OPEN):
                    piece, offsets = self._literal_ids(text, stand_ins), None
                else:
                    encoding = next(encoded)
                    piece, offsets = encoding.ids, encoding.offsets
                ids += piece
                starts = [start] * len(piece) if offsets is None else [start + first for first, _ in offsets]
                mask += [any(begin <= at < end for begin, end in item.replies) for at in starts]
            documents.append(Document(ids, mask))
        return documents

    def encode_prompt(self, messages: Sequence[Message], thinking: Thinking | None = None) -> list[int]:
        """Tokens to generate from: the conversation so far, with the toggle, up to the assistant's header."""
        return self._prompt_ids(conversation({"messages": list(messages)}, thinking or self.thinking))

    def prompt(self, row: Mapping[str, Any]) -> tuple[list[Message], list[int]]:
        """A row's conversation up to what the assistant has to answer, and its tokens. Both are empty where nothing was
        said but by the assistant."""
        said = asked(row, self.thinking)
        if all(message["role"] == "system" for message in said.messages):
            return [], []
        return said.messages, self._prompt_ids(said)

    def _prompt_ids(self, said: Conversation) -> list[int]:
        stand_ins: list[str] = []
        text = self._render(self._safe(said.messages, stand_ins), said, prompt=True)
        ids: list[int] = []
        for _, piece in self._pieces(_Rendered(text, [])):
            ids += self._literal_ids(piece, stand_ins) if piece.startswith(_OPEN) else self._ids(piece)
        return ids

    def end_ids(self) -> list[int]:
        """The tokens that end generation: the template's end of turn and the tokenizer's end of sequence."""
        document = self.encode({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
        last = [token for token, learned in zip(document.tokens, document.loss_mask, strict=True) if learned][-1]
        eos = self.tokenizer.eos_token_id
        return sorted({last} | ({eos} if isinstance(eos, int) else set()))

    def _ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _literal_ids(self, stand_in: str, stand_ins: list[str]) -> list[int]:
        """Tokens of a control token's text as ordinary text."""
        self._backend.encode_special_tokens = True
        try:
            return self._ids(stand_ins[int(stand_in[1:-1])])
        finally:
            self._backend.encode_special_tokens = False

    def _safe(self, messages: list[Message], stand_ins: list[str]) -> list[Message]:
        """Messages with every control token's text replaced by a numbered stand-in."""

        def replace(match: re.Match[str]) -> str:
            stand_ins.append(match.group())
            return f"{_OPEN}{len(stand_ins) - 1}{_CLOSE}"

        def clean(value: Any) -> Any:
            if isinstance(value, str):
                return self._literal.sub(replace, value)
            if isinstance(value, dict):
                return {key: clean(item) for key, item in value.items()}
            return [clean(item) for item in value] if isinstance(value, list) else value

        return [{**clean(message), "role": message["role"]} for message in messages]

    def _render(self, messages: list[Message], of: Conversation, prompt: bool = False) -> str:
        """Some of the messages of a conversation, with its tools."""
        try:
            text = self.tokenizer.apply_chat_template(
                messages, of.tools, tokenize=False, add_generation_prompt=prompt, **of.template_arguments
            )
        except Exception as error:  # a template may raise anything, e.g. jinja's TemplateError for two user turns
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"the chat template refuses the conversation ({roles}): {error}") from error
        return str(text)

    def _render_row(self, row: Mapping[str, Any], stand_ins: list[str]) -> _Rendered:
        said = conversation(row, self.thinking)
        messages = self._safe(said.messages, stand_ins)
        turns = [index for index, learned in enumerate(said.learned) if learned]
        if not turns:
            raise UserError("no assistant turn, so there is nothing to learn; drop the row or add an answer")
        if self._marks_replies:
            return self._render_marked(messages)
        text = self._render(messages, said)
        return _Rendered(text, [self._reply_range(messages, said, turn, text) for turn in turns])

    def _reply_range(self, messages: list[Message], said: Conversation, turn: int, text: str) -> tuple[int, int]:
        """Where an assistant turn's text and end token stand, by rendering the conversation up to it and through it."""
        before = self._render(messages[:turn], said, prompt=True)
        through = text if turn + 1 == len(messages) else self._render(messages[: turn + 1], said)
        if not (text.startswith(through) and through.startswith(before)):
            raise UserError(
                "the chat template changes earlier turns when a later one is added (e.g. it strips earlier thinking), "
                "so the loss mask would be wrong. Use one assistant turn per row, or a template with "
                "{% generation %} marks."
            )
        return self._through_end_token(text, len(before), len(through))

    def _render_marked(self, messages: list[Message]) -> _Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        context: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        template = self.tokenizer.get_chat_template()
        try:
            rendered: Any = render_jinja_template(
                [messages], chat_template=template, return_assistant_tokens_mask=True, **context
            )
        except Exception as error:
            raise UserError(f"the chat template refuses the conversation: {error}") from error
        text, ranges = rendered[0][0], rendered[1][0]
        following = [start for start, _ in ranges[1:]] + [len(text)]
        replies = []
        for (start, end), limit in zip(ranges, following, strict=True):
            ending = self._special.match(text, end)  # some templates close the mark before the end token
            replies.append((start, min(ending.end(), limit) if ending else end))
        return _Rendered(text, [self._through_end_token(text, start, end) for start, end in replies])

    def _through_end_token(self, text: str, start: int, end: int) -> tuple[int, int]:
        """Cuts what the template adds after the end of turn (ChatML's newline): a model stops before it."""
        ends = [match.end() for match in self._special.finditer(text, start, end)]
        if not ends:
            raise UserError(
                "the chat template ends an assistant turn without a special token, so the model would never learn "
                "to stop. Add the end-of-turn token to the template."
            )
        return start, ends[-1]

    def _pieces(self, rendered: _Rendered) -> list[tuple[int, str]]:
        """(start, text) parts to tokenise apart: stand-ins, and replies where the tokenizer allows it.

        A prompt is tokenised alone at generation; splitting before each reply gives training the very same tokens
        (`\\n` and a reply that starts with `\\n` would otherwise merge). A SentencePiece tokenizer that puts a space
        before each text cannot be split so.
        """
        cuts = {0, len(rendered.text)}
        if self._splits_anywhere:
            cuts.update(start for start, _ in rendered.replies)
        for match in re.finditer(f"{_OPEN}\\d+{_CLOSE}", rendered.text):
            cuts.update(match.span())
        return [(start, rendered.text[start:end]) for start, end in pairwise(sorted(cuts))]

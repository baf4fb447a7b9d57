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

from lnlit.data.tokenizer import check_tokenizer, special_texts
from lnlit.errors import UserError
from lnlit.thinking import Thinking, toggle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

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


def row_messages(row: Mapping[str, Any], thinking: Thinking | None = None) -> list[Message]:
    """A row's conversation with its system prompt in front.

    Reads `messages`; or Hugging Face's `prompt` and `completion`, each text or messages, the second where there is one;
    or the Llama-Nemotron schema (`input`: text or messages, `output`: text). The system prompt is the
    row's `system_prompt`; or else the toggle from the row's `thinking` or `reasoning`; or else from the argument. It
    precedes a system message that the conversation already has.
    """
    messages = _conversation(row)
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"a message must be a mapping with role and content, got {message!r}")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise UserError(f"the content of a {message['role']} message must be text, got {message.get('content')!r}")
    return _with_system(messages, _system_prompt(row, thinking))


def _conversation(row: Mapping[str, Any]) -> list[Message]:
    if "messages" in row:
        if not isinstance(row["messages"], list) or not row["messages"]:
            raise UserError(f"messages: expected a list with at least one message, got {row['messages']!r}")
        return row["messages"]
    if "prompt" in row:
        return [*_turns(row["prompt"], "user"), *_turns(row.get("completion", []), "assistant")]
    if "input" not in row or "output" not in row:
        keys = ", ".join(map(str, row)) or "none"
        raise UserError(
            "expected the key messages, or prompt with or without completion (Hugging Face's), or input and output "
            f"(Llama-Nemotron's); got keys: {keys}"
        )
    prompt = [{"role": "user", "content": row["input"]}] if isinstance(row["input"], str) else row["input"]
    if not isinstance(prompt, list) or not isinstance(row["output"], str):
        raise UserError("expected input as text or a list of messages, and output as text")
    return [*prompt, {"role": "assistant", "content": row["output"]}]


def _turns(given: Any, role: str) -> list[Message]:
    """Text as a turn of `role`; turns as they are."""
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    if not isinstance(given, list):
        raise UserError(f"expected prompt and completion as text or lists of messages, got {given!r}")
    return given


def _system_prompt(row: Mapping[str, Any], thinking: Thinking | None) -> str | None:
    if row.get("system_prompt"):
        return str(row["system_prompt"])
    for value in (row.get("thinking"), row.get("reasoning"), thinking):
        if value is not None:
            return toggle(value)
    return None


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None:
        return list(messages)
    first = messages[0] if messages else None
    if first is None or first["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if first["content"].startswith(system):
        return list(messages)
    return [{**first, "content": f"{system}\n\n{first['content']}"}, *messages[1:]]


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
        return self._prompt_ids(row_messages({"messages": list(messages)}, thinking or self.thinking))

    def prompt(self, row: Mapping[str, Any]) -> tuple[list[Message], list[int]]:
        """A row's conversation up to what the assistant has to answer, and its tokens. Both are empty where nothing was
        said but by the assistant."""
        messages = row_messages(row, self.thinking)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if all(message["role"] == "system" for message in messages):
            return [], []
        return messages, self._prompt_ids(messages)

    def _prompt_ids(self, messages: list[Message]) -> list[int]:
        stand_ins: list[str] = []
        text = self._render(self._safe(messages, stand_ins), prompt=True)
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

    def _render(self, messages: list[Message], prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template may raise anything, e.g. jinja's TemplateError for two user turns
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"the chat template refuses the conversation ({roles}): {error}") from error
        return str(text)

    def _render_row(self, row: Mapping[str, Any], stand_ins: list[str]) -> _Rendered:
        messages = self._safe(row_messages(row, self.thinking), stand_ins)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise UserError("no assistant turn, so there is nothing to learn; drop the row or add an answer")
        if self._marks_replies:
            return self._render_marked(messages)
        text = self._render(messages)
        return _Rendered(text, [self._reply_range(messages, turn, text) for turn in turns])

    def _reply_range(self, messages: list[Message], turn: int, text: str) -> tuple[int, int]:
        """Where an assistant turn's text and end token stand, by rendering the conversation up to it and through it."""
        before = self._render(messages[:turn], prompt=True)
        through = text if turn + 1 == len(messages) else self._render(messages[: turn + 1])
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

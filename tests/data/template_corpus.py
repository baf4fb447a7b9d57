# ruff: noqa: RUF001
"""Chat templates of many families, written anew from their documented behaviour, with small tokenizers of their kind,
and what each makes of a turn: the oracle, in Python, that the encoder is held against."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lnlit.checkpoint import templates

FOLDER = Path(__file__).parent / "templates"
OURS = Path(templates.__file__).parent
TAGS = ("<think>", "</think>")
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
R1_TOOLS = tuple(
    f"<｜tool▁{what}｜>"
    for what in (
        "calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep",
        "outputs▁begin", "outputs▁end", "output▁begin", "output▁end",
    )
)  # fmt: skip

Message = dict[str, Any]


def _json_calls(message: Message, key: str) -> list[str]:
    functions = [call["function"] for call in message["tool_calls"]]
    return [json.dumps({"name": f["name"], key: f["arguments"]}, ensure_ascii=False) for f in functions]


def _hermes_calls(message: Message, always_break: bool = True) -> str:
    calls = [f"<tool_call>\n{call}\n</tool_call>" for call in _json_calls(message, "arguments")]
    content = message.get("content") or ""
    return content + ("\n" if content or always_break else "") + "\n".join(calls)


def _qwen3(message: Message, opened: bool) -> str:
    """Thoughts stay after the last question only, and the last message of all gets an empty one where it has none;
    the prompt says that where thinking is off."""
    content, thought = message.get("content") or "", message.get("reasoning_content") or ""
    if not thought and "</think>" in content:
        head, _, content = content.partition("</think>")
        thought, content = head.split("<think>")[-1].strip("\n"), content.lstrip("\n")
    shows = not message["answered"] and (message["last"] or thought)
    said = content
    if message.get("tool_calls"):
        said = _hermes_calls({**message, "content": content}, always_break=False)
    said = f"<think>\n{thought}\n</think>\n\n" + said.lstrip("\n") if shows else said
    return said.removeprefix("<think>\n" if opened else "<think>\n\n</think>\n\n" if message["thinking_off"] else "")


@dataclass(frozen=True)
class Template:
    """`said` is what stands in a turn in front of `end`; the markers in `specials` are control tokens."""

    specials: tuple[str, ...]
    end: str
    said: Callable[[Message], str] = lambda message: message["content"]
    calls: Callable[[Message], str] | None = None
    bos: str | None = None
    eos: str | None = None
    kind: Literal["bytes", "prepend", "metaspace"] = "bytes"
    swallows_space: bool = False  # its control tokens do
    ordinary: tuple[str, ...] = ()  # tokens of their own that are not marked as special
    accepts_plain: bool = True

    def expected(self, message: Message) -> str | None:
        """The text that a turn is to teach; None where the template has no words for a tool call."""
        if message.get("tool_calls"):
            return None if self.calls is None else self.calls(message) + self.end
        return self.said(message) + self.end


def _trimmed(message: Message) -> str:
    return message["content"].strip()


def _llama31_call(message: Message) -> str:
    return _json_calls(message, "parameters")[0]


def _mistral_calls(message: Message) -> str:
    calls = [{**call["function"], "id": call["id"]} for call in message["tool_calls"]]
    return f"[TOOL_CALLS] {json.dumps(calls, ensure_ascii=False)}"


def _granite_calls(message: Message) -> str:
    return f"<|tool_call|>{json.dumps([call['function'] for call in message['tool_calls']], ensure_ascii=False)}"


def _nemotron_calls(message: Message) -> str:
    return f"{message['content'] or ''}<TOOLCALL>[{', '.join(_json_calls(message, 'arguments'))}]</TOOLCALL>"


def _ours(message: Message, said: str | None = None) -> str:
    thought = message.get("reasoning_content")
    before = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    return before + (message["content"] if said is None else said)


def _r1_calls(message: Message, between: str = "") -> str:
    said = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{call['function']['name']}\n```json\n"
        f"{json.dumps(call['function']['arguments'], ensure_ascii=False)}\n```<｜tool▁call▁end｜>"
        for call in message["tool_calls"]
    ]
    return f"<｜tool▁calls▁begin｜>{between.join(said)}<｜tool▁calls▁end｜>"


def _nemotron(thinks: Message) -> str:
    return thinks["content"]


TEMPLATES: dict[str, Template] = {
    "llama2": Template(("<s>", "</s>"), "</s>", lambda m: f" {m['content'].strip()} ", None, "<s>", "</s>", "prepend"),
    "llama3": Template(LLAMA3, "<|eot_id|>", _trimmed, None, LLAMA3[0], "<|eot_id|>"),
    "llama31": Template(LLAMA3, "<|eot_id|>", _trimmed, _llama31_call, LLAMA3[0], "<|eot_id|>"),
    "llama32": Template(LLAMA3, "<|eot_id|>", _trimmed, _llama31_call, LLAMA3[0], "<|eot_id|>"),
    "nemotron_super_v1": Template(LLAMA3, "<|eot_id|>", _trimmed, None, LLAMA3[0], "<|eot_id|>"),
    "nemotron_super_v1_5": Template(LLAMA3, "<|eot_id|>", _nemotron, _nemotron_calls, LLAMA3[0], "<|eot_id|>"),
    "r1_distill_old": Template(R1, R1[1], calls=_r1_calls, bos=R1[0], eos=R1[1]),
    "r1_distill_old/tags": Template((*R1, *TAGS), R1[1], calls=_r1_calls, bos=R1[0], eos=R1[1]),
    "r1_distill_old/ordinary": Template(
        R1[:2], R1[1], calls=_r1_calls, bos=R1[0], eos=R1[1], ordinary=(*R1[2:], *R1_TOOLS, *TAGS)
    ),
    "r1_distill_new": Template(
        R1, R1[1], lambda m: m["content"].removeprefix("<think>\n"), _r1_calls, R1[0], R1[1], accepts_plain=False
    ),
    "chatml": Template(CHATML, "<|im_end|>", eos="<|im_end|>"),
    "chatml/base": Template(CHATML, "<|im_end|>", eos="<|endoftext|>"),
    "chatml/tags": Template((*CHATML, *TAGS), "<|im_end|>", eos="<|im_end|>"),
    "chatml/metaspace": Template(("<s>", *CHATML), "<|im_end|>", eos="<|im_end|>", kind="metaspace"),
    "chatml/prepend": Template(("<s>", *CHATML), "<|im_end|>", eos="<|im_end|>", kind="prepend"),
    "chatml_prints_none": Template(CHATML, "<|im_end|>", eos="<|im_end|>"),
    "qwen25": Template(CHATML, "<|im_end|>", calls=lambda m: _hermes_calls(m, False), eos="<|im_end|>"),
    "qwen3": Template(CHATML, "<|im_end|>", lambda m: _qwen3(m, False), lambda m: _qwen3(m, False), eos="<|im_end|>"),
    "qwen3_thinking/tags": Template(
        (*CHATML, *TAGS), "<|im_end|>", lambda m: _qwen3(m, True), lambda m: _qwen3(m, True), None, "<|im_end|>",
        accepts_plain=False,
    ),
    "mistral_v1": Template(("<s>", "</s>"), "</s>", lambda m: f" {m['content']}", None, "<s>", "</s>", "prepend"),
    "mistral_v3": Template(
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[AVAILABLE_TOOLS]"), "</s>",
        lambda m: f" {m['content'].strip()}", _mistral_calls, "<s>", "</s>", "metaspace",
    ),
    "mistral_v7": Template(
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "</s>", bos="<s>", eos="</s>"
    ),
    "phi3": Template(
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|end|>",
        bos="<s>", eos="<|endoftext|>", kind="prepend", swallows_space=True,
    ),
    "phi4": Template((*CHATML, "<|im_sep|>"), "<|im_end|>", eos="<|im_end|>"),
    "zephyr": Template(("<s>", "</s>"), "</s>", bos="<s>", eos="</s>", kind="prepend"),
    "gemma": Template(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", _trimmed, None, "<bos>", "<eos>"
    ),
    "smollm2": Template(CHATML, "<|im_end|>", bos="<|im_start|>", eos="<|im_end|>"),
    "smollm3": Template(CHATML, "<|im_end|>", lambda m: m["content"].lstrip("\n"), eos="<|im_end|>"),
    "command_r": Template(
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>",
         "<|CHATBOT_TOKEN|>"),
        "<|END_OF_TURN_TOKEN|>", _trimmed, None, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>",
    ),
    "granite": Template(
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"), "<|end_of_text|>",
        calls=_granite_calls, eos="<|end_of_text|>",
    ),
    "hermes_tools": Template(("<s>", *CHATML), "<|im_end|>", calls=_hermes_calls, bos="<s>", eos="<|im_end|>"),
    "hermes_tools/tags": Template(
        ("<s>", *CHATML, *TAGS, "<tool_call>", "</tool_call>"), "<|im_end|>", calls=_hermes_calls, bos="<s>",
        eos="<|im_end|>",
    ),
    "marked": Template(LLAMA3, "<|eot_id|>", bos=LLAMA3[0], eos="<|eot_id|>"),
    "space_prompt": Template(("</s>",), "</s>", eos="</s>", kind="metaspace"),
    "space_prompt/prepend": Template(("</s>",), "</s>", eos="</s>", kind="prepend"),
    "ours/chatml": Template(CHATML, "<|im_end|>", _ours, lambda m: _ours(m, _hermes_calls(m, False)), eos="<|im_end|>"),
    "ours/chatml/metaspace": Template(
        ("<s>", *CHATML, *TAGS), "<|im_end|>", _ours, lambda m: _ours(m, _hermes_calls(m, False)), None, "<|im_end|>",
        "metaspace",
    ),
    "ours/deepseek_r1/ordinary": Template(
        R1[:2], R1[1], _ours, lambda m: _ours(m, (m["content"] or "") + _r1_calls(m, "\n")), R1[0], R1[1],
        ordinary=(*R1[2:], *R1_TOOLS, *TAGS),
    ),
    "ours/nemotron": Template(
        LLAMA3, "<|eot_id|>", _ours, lambda m: _ours(m, _nemotron_calls(m)), LLAMA3[0], "<|eot_id|>"
    ),
    "ours/deepseek_r1": Template(
        (*R1, *R1_TOOLS), R1[1], _ours, lambda m: _ours(m, (m["content"] or "") + _r1_calls(m, "\n")), R1[0], R1[1]
    ),
    "unended": Template(("</s>",), "</s>", eos="</s>", accepts_plain=False),
}  # fmt: skip

_TEXT = [
    "user assistant system: What is 1 + 2? The answer is 3. World, hello World!\n\n<think>\nstep by step\n</think>",
    'detailed thinking on off [INST] [/INST] {"name": "look_up", "arguments": {"word": "tree"}} <tool_call>',
]


@cache
def _trained(kind: str) -> str:
    """A small tokenizer of the kind, without control tokens, as JSON."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(_TEXT * 5, trainer)
        return tokenizer.to_str()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)  # type: ignore[assignment]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *byte_tokens], show_progress=False)
    learner.train_from_iterator(_TEXT * 5, trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            model["vocab"],
            [tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if kind == "prepend":  # as Llama 2's: a space in front of every text, that after a control token too
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    else:  # as Mistral's newer ones: in front of the first text alone
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer.to_str()


def tokenizer_of(template: str, kind: str, specials: Sequence[str], **named: Any) -> Any:
    """A tokenizer in memory. Control tokens swallow the space behind them where `swallows_space` says so."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_trained(kind))
    swallows, ordinary = named.pop("swallows_space", False), named.pop("ordinary", ())
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in ordinary])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False, rstrip=swallows) for text in specials])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = template
    return tokenizer


def tokenizer_for(name: str) -> Any:
    """The tokenizer of a template in `TEMPLATES`."""
    entry = TEMPLATES[name]
    named = {
        "eos_token": entry.eos,
        "bos_token": entry.bos,
        "swallows_space": entry.swallows_space,
        "ordinary": entry.ordinary,
    }
    folder, file = (OURS, name.split("/")[1]) if name.startswith("ours/") else (FOLDER, name.partition("/")[0])
    text = (folder / f"{file}.jinja").read_text(encoding="utf-8")
    return tokenizer_of(text, entry.kind, entry.specials, **{k: v for k, v in named.items() if v is not None})

"""Texts on which readers of one tokenizer are compared, and GGUF files that hold a vocabulary and nothing else."""

# ruff: noqa: RUF001
from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import gguf
from gguf import TokenType

_FIXED = (
    "Hello, world!",
    " leading",
    "trailing ",
    "  two  spaces  ",
    "it's we're I'LL they've 'tis DON'T",
    "0",
    "1 12 1234 12345",
    "3.14159 1,000,000 0x1F",
    "\n\n\n",
    "a\r\nb\r\n\r\nc",
    "\t\t\t\t",
    "                 ",
    "\n \n\t \n",
    "x                                        y",
    "====================",
    "def f(x):\n    return x**2  # comment\n\n\nclass A:\n\tpass\n",
    "for (int i = 0; i < 10; ++i) { a[i] += b[i]->c; }",
    '<div class="a">&nbsp;</div>',
    '{"key": [1, 2.5, null, true]}',
    "http://example.com/path?q=1#frag",
    "C:\\Users\\x",
    "½ ² ٣٤٥ Ⅳ ①",
    "日本語のテキストです。漢字",
    "中文字符测试，包括标点符号。",
    "한국어 문장입니다.",
    "Привет, мир!",
    "Γειά σου",
    "مرحبا بالعالم",
    "שלום",
    "😀😃 👩\u200d👩\u200d👧 🇩🇪 👍🏽",
    "é ñ ü ß İ ŉ",
    "zero\u200dwidth\ufeff",
    "\xa0nbsp\u2003em\u3000wide\u2028ls\x85nel",
    "∑∫√ αβγ → ⟨x⟩",
    "€£¥ •…“”",
    "\x00\x01\x7f",
    "�",
    "",
    "<0x0A> <0x41>",
    "▁ a ▁▁ x▁y",
    "Ġ Ċ ĉ",
    "</ s> < s> <|im_start |> s> </s",
    "camelCase SCREAMING_SNAKE",
    "ab1 2cd3",
)
_POOLS = (
    "abcdefghij klmnop qrstuv ",
    "ABCdef 0123456789.,!?'\" ",
    "  \n\t\r ab1_",
    "日本語中文한국어かな 。",
    "éüñßøž αβγδ привет ",
    "😀👍🎉 x1 ",
    "(){}[]<>+-*/=&|^%$#@~`\\:; ax0\n",
    "\xa0\u2003\u3000 \n a",
)


def texts(special: Sequence[str] = ()) -> list[str]:
    """Over 250 texts: code, runs of white space, digits, emoji, CJK, lookalikes of control tokens, and `special`."""
    inside = [f"{before}{token}{after}" for token in special for before in ("", "x ") for after in ("", " y", token)]
    generator = random.Random(0)
    pools = [generator.choice(_POOLS) + generator.choice(_POOLS) for _ in range(200)]
    drawn = ["".join(generator.choice(pool) for _ in range(generator.randint(1, 60))) for pool in pools]
    return [*_FIXED, *inside, *drawn]


def write_vocabulary(
    file: Path,
    model: str,
    tokens: Sequence[str],
    types: Sequence[TokenType],
    *,
    scores: Sequence[float] | None = None,
    merges: Sequence[str] | None = None,
    pre: str | None = None,
    **more: int,
) -> Path:
    """A GGUF file as llama.cpp's converter writes one with --vocab-only. `more` are keys of `tokenizer.ggml.`."""
    writer = gguf.GGUFWriter(file, "llama")
    sizes = ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count", "head_count_kv")
    for name, size in zip(sizes, (128, 32, 1, 56, 4, 2), strict=True):
        getattr(writer, f"add_{name}")(size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_types([int(kind) for kind in types])
    if scores is not None:
        writer.add_token_scores(list(scores))
    if merges is not None:
        writer.add_token_merges(list(merges))
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    for key, value in more.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file

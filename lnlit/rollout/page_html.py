"""Pieces of the page of rollouts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.html import safe
from lnlit.rollout.line_chart import number_text
from lnlit.rollout.sample import Sample

#: What these pieces look like.
STYLE = """
:root { --c0: #0b5fa5; --c1: #d55e00; --c2: #009e73; --c3: #b8860b; --c4: #b0569a; --c5: #4f6d7a; }
@media screen and (prefers-color-scheme: dark) { :root { --c0: #6cb4ee; --c1: #ff9655; --c2: #3fd0a4; --c3: #e8bd4a;
  --c4: #e59bcf; --c5: #9fb4bf; } }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.2rem 2rem; }
.charts > figure { margin: 0; max-width: 44rem; }
svg { display: block; width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--muted); }
.end { text-anchor: end; } .middle { text-anchor: middle; } .grid { stroke: var(--line); }
polyline { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
polyline.dashed { stroke-width: 1.4; stroke-dasharray: 5 4; }
circle.dot, rect { fill: var(--c); } circle.hit { fill: transparent; } circle.hit:hover { fill: var(--c); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; margin: .3rem 0 0; padding: 0;
  font-size: .9rem; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .45em; border-radius: .2em;
  background: var(--c); }
.asked { border-top: 1px solid var(--line); margin-top: 1.2rem; padding-top: 1rem; break-inside: avoid; }
.turns { display: grid; grid-template-columns: 4.5rem 1fr; gap: .1rem .8rem; align-items: baseline;
  margin-bottom: .8rem; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .8rem; }
.side { min-width: 0; border: 1px solid var(--line); border-top: 3px solid var(--c, var(--line)); border-radius: .5rem;
  padding: .7rem .9rem; }
.role { color: var(--muted); font-size: .8rem; margin: 0; }
.reward { font-weight: 650; font-variant-numeric: tabular-nums; }
pre { margin: 0; max-height: 22rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.side pre { margin: .5rem 0 0; }
@media print { pre { max-height: none; } }
"""
#: Characters that are shown of a long text's start and end.
_HEAD, _TAIL = 4000, 2000


def charts(*drawn: tuple[str, str]) -> str:
    """(title, chart)s side by side where there is room; empty without any."""
    figures = [f"<figure>\n<h3>{safe(title)}</h3>\n{chart}</figure>" for title, chart in drawn if chart]
    return f'<div class="charts">\n{chr(10).join(figures)}\n</div>' if figures else ""


def answers(asked: Sample, shown: Sequence[tuple[str, Sample]]) -> str:
    """A prompt, and completions of it side by side, each under what it is called."""
    turns = [(str(message.get("role", "")), _content(message)) for message in asked.prompt.messages]
    expected = asked.prompt.row.get("answer")
    if isinstance(expected, str | int | float):
        turns.append(("expected", str(expected)))
    prompt = "\n".join(f'<p class="role">{safe(role)}</p>{_pre(text)}' for role, text in turns)
    sides = "\n".join(_side(number, name, sample) for number, (name, sample) in enumerate(shown))
    return f'<div class="asked">\n<div class="turns">\n{prompt}\n</div>\n<div class="sides">\n{sides}\n</div>\n</div>'


def in_words(sample: Sample) -> tuple[str, str]:
    """(its reward, the rest of what became of it)."""
    parts = [
        f"{part} {number_text(result.value)}" if result.value is not None else f"{part} not judged: {result.error}"
        for part, result in sample.rewards.items()
    ]
    count = len(sample.rollout.token_ids)
    parts += [f"{count:,} token{'' if count == 1 else 's'}{', cut off' if sample.truncated else ''}"]
    if sample.advantage:
        parts += [f"advantage {sample.advantage:+.3g}"]
    return "no reward" if math.isnan(sample.reward) else f"reward {number_text(sample.reward)}", " · ".join(parts)


def _side(number: int, name: str, sample: Sample) -> str:
    reward, rest = in_words(sample)
    return (
        f'<div class="side c{number}"><p class="role">{safe(name)}</p><span class="reward">{safe(reward)}</span> '
        f'<span class="note">{safe(rest)}</span>{_pre(sample.text)}</div>'
    )


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(dict(message), ensure_ascii=False, default=str)


def _pre(text: str) -> str:
    if (hidden := len(text) - _HEAD - _TAIL) > 0:
        text = f"{text[:_HEAD]}\n\n[... {hidden:,} characters ...]\n\n{text[-_TAIL:]}"
    return f'<pre dir="auto">{safe(text)}</pre>'

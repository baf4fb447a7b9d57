"""What a data set is made of, by domain and thinking mode, beside Llama-Nemotron's table 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.curation.counts import aligned
from lnlit.thinking import mode, on_or_off

#: Samples of each domain and mode of Llama-Nemotron's data (table 2). Two domains are not divided by mode there.
TABLE_2 = {
    "math/on": 2_225_427,
    "math/off": 19_840_970,
    "code/on": 991_706,
    "code/off": 9_117_177,
    "science/on": 708_920,
    "chat/on": 8_574,
    "chat/off": 31_218,
    "instruction following": 56_339,
    "safety": 31_426,
}
#: Names of these domains in the published data set, and other spellings.
_ALIASES = {
    "stem": "science",
    "if": "instruction following",
    "instruction_following": "instruction following",
    "instruction-following": "instruction following",
}
#: The columns of a row's domain. The first one that it has is read.
_DOMAIN = ("category", "domain")
_MODE = ("thinking", "reasoning")
NONE = "without a domain"


def tally(row: Mapping[str, Any]) -> str:
    """The domain and the thinking mode of a row, such as `math/on`, or the domain alone if it says no mode."""
    named = next((row[key] for key in _DOMAIN if isinstance(row.get(key), str) and row[key].strip()), None)
    if named is None:
        return NONE
    domain = _ALIASES.get(named.strip().lower(), named.strip().lower())
    found = _mode(row)
    return f"{domain}/{found}" if found else str(domain)


def share_of(key: str, shares: Mapping[str, float]) -> str | None:
    """The entry of `shares` that a row with this tally belongs to: that of its domain and mode, or of its domain."""
    domain = key.rpartition("/")[0] or key
    return next((name for name in (key, domain) if name in shares), None)


def _mode(row: Mapping[str, Any]) -> str | None:
    for key in _MODE:
        value = row.get(key)
        if isinstance(value, bool) or value in ("on", "off"):
            return on_or_off(value)
    said = [{"role": "system", "content": row.get(key)} for key in ("system", "system_prompt")]
    messages = row.get("messages")
    said += messages if isinstance(messages, list) else []
    told = [one for one in said if isinstance(one, dict) and "role" in one]
    return mode([one for one in told if isinstance(one.get("content"), str)])


def domain_table(found: Mapping[str, int]) -> list[str]:
    """Samples and shares by domain and mode as lines of text, as table 2 has them, with the paper's shares where it has
    the domain."""
    total = sum(found.values())
    domains = list(dict.fromkeys(key.partition("/")[0] for key in (*TABLE_2, *sorted(found))))
    rows = [["domain", "samples", "% of total", "paper's %"]]
    for domain in domains:
        own = {key: n for key, n in found.items() if key.partition("/")[0] == domain}
        if not own:
            continue
        paper = {key: n for key, n in TABLE_2.items() if key.partition("/")[0] == domain}
        rows.append([domain, *_cells(sum(own.values()), total, sum(paper.values()))])
        for key in sorted(own, reverse=True):
            if "/" in key:
                rows.append([f"  reasoning {key.rpartition('/')[2]}", *_cells(own[key], total, paper.get(key, 0))])
    rows.append(["total", f"{total:,}", "100%", "100%"])
    return aligned(rows, left=(0,))


def _cells(samples: int, total: int, paper: int) -> list[str]:
    whole = sum(TABLE_2.values())
    return [f"{samples:,}", f"{samples / total:.2%}", f"{paper / whole:.2%}" if paper else ""]

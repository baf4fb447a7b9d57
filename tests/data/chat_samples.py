"""Rows and templates that several tests share."""

import gzip
import json
from pathlib import Path

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def toggle_rows(count: int, offset: int = 0) -> list[dict]:
    """Rows whose lengths vary and whose text tells them apart."""
    rows = []
    for number in range(offset, offset + count):
        mode = "on" if number % 2 else "off"
        answer = f"<think>\n{'step ' * (number % 7)}\n</think>\n\nit is {number}" if mode == "on" else f"it is {number}"
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"question {number}"},
                    {"role": "assistant", "content": answer},
                ],
                "thinking": mode,
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())
    return path

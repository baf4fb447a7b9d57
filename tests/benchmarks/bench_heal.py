"""How much does distillation heal of what a search breaks? The mini child of SmolLM2-135M; beside it LM loss alone.

    python tests/benchmarks/bench_heal.py [--runs runs/mini]

Reads what `lnlit run yaml/mini` left (child and healed child), trains the child once more on the same text with
cross-entropy alone, and measures KL(parent || model) and perplexity on held-out text of the same kind and of another.
Prints a table and appends it to RESULTS.md. Ten minutes on two cores, most of it training.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
import yaml

from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.data.sources import JsonlSource, TextFileSource
from lnlit.data.text import TextSample
from lnlit.models.build import build_decoder, parameter_count
from lnlit.models.decoder import Decoder

RESULTS = Path(__file__).with_name("RESULTS.md")
RECIPE = Path(__file__).parents[2] / "yaml" / "mini" / "4_distill.yaml"


def train_on_text_alone(out: Path) -> None:
    """The healing recipe with cross-entropy for loss and no teacher."""
    if (out / "model" / "config.json").is_file():
        return
    changes = {"model": {"init_args": {"teacher": None, "kl_weight": 0.0, "cosine_weight": 0.0, "lm_weight": 1.0}}}
    export = {"class_path": "ExportModel", "init_args": {"out": str(out / "model")}}
    changes["trainer"] = {"default_root_dir": str(out), "callbacks": [export]}
    out.mkdir(parents=True, exist_ok=True)
    (out / "overlay.yaml").write_text(yaml.safe_dump(changes))
    command = [sys.executable, "-m", "lnlit.cli.main", "fit", "--config", str(RECIPE)]
    subprocess.run([*command, "--config", str(out / "overlay.yaml"), "--ckpt_path", "last"], check=True)


def loaded(path: str | Path) -> Decoder:
    decoder = build_decoder(read_spec(path), "cpu")
    load_weights(decoder, path)
    return decoder.eval()


def hidden(decoder: Decoder, tokens_BT: torch.Tensor) -> Iterator[torch.Tensor]:
    for row_T in tokens_BT:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            hidden_BTD = decoder(row_T[None], read_out=lambda hidden_BTD, _: hidden_BTD)
        yield hidden_BTD[0].float()  # outside: what is computed with it is in fp32


def compare(parent: Decoder, models: dict[str, Path], tokens_BT: torch.Tensor) -> dict[str, tuple[float, float]]:
    """(KL to the parent in nats per token, perplexity) of each model, plain definitions in fp32."""
    names = {"parent": parent, **{name: loaded(path) for name, path in models.items()}}
    teacher = [torch.log_softmax(h @ parent.head_weight.float().T, -1) for h in hidden(parent, tokens_BT)]
    found = {}
    for name, decoder in names.items():
        kl = loss = 0.0
        for row_T, log_p, student_TD in zip(tokens_BT, teacher, hidden(decoder, tokens_BT), strict=True):
            with torch.inference_mode():  # a healed model has a head of its own
                log_q = torch.log_softmax(student_TD @ decoder.head_weight.float().T, -1)
                kl += float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
                loss -= float(log_q[:-1].gather(1, row_T[1:, None]).mean())
        found[name] = kl / len(tokens_BT), math.exp(loss / len(tokens_BT))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"))
    parser.add_argument("--model", default="runs/smollm2")
    parser.add_argument("--text", default="data/pydocs/valid.jsonl.gz")
    parser.add_argument("--other", default="data/wikitext2/test.txt")
    parser.add_argument("--rows", type=int, default=16, help="rows of 512 tokens")
    options = parser.parse_args()
    train_on_text_alone(options.runs / "lm_only")
    parent = loaded(options.model)
    models = {
        "child": options.runs / "child",
        "healed by KD": options.runs / "healed",
        "healed by LM loss": options.runs / "lm_only" / "model",
    }
    held_out = TextSample(JsonlSource(options.text), options.rows, 512)
    other = TextSample(TextFileSource(options.other), 1, options.rows * 512)  # one long document
    texts = {"held out": held_out, "other text": other}
    recipe = yaml.safe_load(RECIPE.read_text())
    data = recipe["data"]["init_args"]
    tokens = recipe["trainer"]["max_steps"] * data["micro_batch_size"] * data["sequence_length"]
    size = parameter_count(loaded(models["child"])) / 1e6
    lines = [f"\n## {date.today()} healing a child of SmolLM2-135M ({size:.1f} M parameters) with {tokens:,} tokens\n"]
    header = "| | " + " | ".join(f"{text}: KL | change | perplexity" for text in texts) + " |"
    lines += [header, "|---" * (3 * len(texts) + 1) + "|"]
    sample = {name: text.tokens(options.model).view(-1, 512) for name, text in texts.items()}
    found = {name: compare(parent, models, tokens_BT) for name, tokens_BT in sample.items()}
    for model in ("parent", *models):
        cells = []
        for text in texts:
            kl, perplexity = found[text][model]
            change = kl / found[text]["child"][0] - 1
            cells += [f"{kl:.4f}", "" if model in ("parent", "child") else f"{change:+.0%}", f"{perplexity:.2f}"]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    print(*lines, sep="\n")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

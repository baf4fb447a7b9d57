"""Do `lnlit eval` and `lnlit curate` get the same greedy answers from every engine?

    LNLIT_VLLM_PYTHON=.venv-vllm/bin/python python tests/benchmarks/bench_engines.py MODEL OUT [--rows 8] [--tokens 64]

By command line, with the engines native, vllm (in a process of its own) and endpoint, which is a `vllm serve` that is
started here and ended. Prints for each how many answers of GSM8K's questions and how many rows of `Generate` are
letter by letter native's, and every difference. fp32, CPU. Ten minutes on one thread. Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "gsm8k" / "test.jsonl"
SETTINGS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
NAME = "smollm2"


@contextmanager
def served(model: str, log: Path) -> Iterator[str]:
    """The URL of a vLLM server, which is ended when the block is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.environ["LNLIT_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    command += ["--generation-config", "vllm", "--max-model-len", "2048", "--enforce-eager"]
    begin, url = time.monotonic(), f"http://127.0.0.1:{port}"
    with (
        log.open("w") as stream,
        subprocess.Popen(command, env=os.environ | SETTINGS, stdout=stream, stderr=stream) as server,
    ):
        try:
            while not _answers(f"{url}/health"):
                if server.poll() is not None or time.monotonic() - begin > 300:
                    raise SystemExit(f"the server did not start: {log.read_text()[-3000:]}")
                time.sleep(1)
            print(f"vllm serve: ready after {time.monotonic() - begin:.0f} s", flush=True)
            yield f"{url}/v1"
        finally:
            server.terminate()
            server.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def lnlit(*arguments: str) -> float:
    """Runs a command, and returns the seconds that it took."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "lnlit.cli.main", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def asked(out: Path, model: str | None, engine: dict[str, Any], rows: int, tokens: int) -> dict[str, dict[str, Any]]:
    """What one engine answers: (text, tokens) by question for eval, and by row for curate."""
    out.mkdir(parents=True, exist_ok=True)
    source = {"class_path": "jsonl", "init_args": {"paths": str(DATA)}}
    few = out / "rows.jsonl"
    few.write_text("".join(json.dumps({"prompt": f"What is {n + 2} plus {n + 5}?"}) + "\n" for n in range(rows)))
    evaluation = {
        "models": [model] if model else [],
        "tasks": [{"class_path": "gsm8k", "init_args": {"source": source}}],
        "thinking": ["none", "off"],
        "rows": rows,
        "max_new_tokens": tokens,
        "engine": engine,
        "out": str(out / "eval"),
    }
    solver = {"folder": model, "engine": engine}
    sampling = {"samples_per_prompt": 1, "temperature": 0.0, "max_new_tokens": tokens}
    models = [{**solver, "sampling": sampling, "thinking": mode} for mode in (None, "off")]
    curation = {
        "source": {"class_path": "jsonl", "init_args": {"paths": str(few)}},
        "steps": [{"class_path": "Generate", "init_args": {"models": models}}],
        "tasks": 1,
        "out": str(out / "curated.jsonl"),
    }
    seconds = []
    for command, settings in (("eval", evaluation), ("curate", curation)):
        file = out / f"{command}.yaml"
        file.write_text(json.dumps(settings))  # JSON is YAML
        seconds.append(lnlit(command, "--config", str(file)))
    print(f"{out.name}: eval {seconds[0]:.0f} s, curate {seconds[1]:.0f} s", flush=True)
    found: dict[str, dict[str, Any]] = {"eval": {}, "curate": {}}
    for file in sorted((out / "eval/answers").glob("*/gsm8k*.jsonl")):
        if ".seconds." not in file.name and ".verdicts-" not in file.name:
            for line in list(map(json.loads, file.open(encoding="utf-8")))[1:]:
                mode = "off" if file.name.startswith("gsm8k.off.") else "none"
                one = line["answers"][0][0]
                found["eval"][f"{mode} {line['question']}"] = (one["text"], one["tokens"], one["finish_reason"])
    for row in map(json.loads, (out / "curated.jsonl").open(encoding="utf-8")):
        key = f"{row['generated']['model']} {row['prompt']}"
        found["curate"][key] = (row["completion"], row["generated"]["tokens"], "stop")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    many = options.rows, options.tokens
    native = {"class_path": "native", "init_args": {"dtype": "float32"}}
    own = {"dtype": "float32", "max_model_len": 2048, "kv_cache_gib": 1}
    vllm = {"class_path": "lnlit_vllm.rollout.VllmEngine", "init_args": own}
    found = {"native": asked(options.out / "native", options.model, native, *many)}
    found["vllm"] = asked(options.out / "vllm", options.model, vllm, *many)
    with served(options.model, options.out / "server.log") as url:
        endpoint = {"class_path": "endpoint", "init_args": {"url": url, "model": NAME}}
        found["endpoint"] = asked(options.out / "endpoint", None, endpoint, *many)
    for name in ("vllm", "endpoint"):
        for command, wanted in found["native"].items():
            got = found[name][command]
            texts = sum(got.get(key, ("",))[0] == one[0] for key, one in wanted.items())
            whole = sum(got.get(key) == one for key, one in wanted.items())
            print(f"{name}, {command}: {texts} of {len(wanted)} texts are native's, {whole} with length and ending")
            for key, one in wanted.items():
                if got.get(key) != one:
                    print(f"  {key}: native {one}, {name} {got.get(key)}")


if __name__ == "__main__":
    main()

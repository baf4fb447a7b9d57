"""Small rows of each benchmark whose answers are generated, in the schema of its public dataset, with answers to the
first row and what they are worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.rewards.code_sandbox import check_isolation
from lnlit.rewards.pair_judge import Judge
from lnlit.testing.task_contract import Case

File = Callable[..., str]
Small = tuple[dict[str, Any], list[Case]]


def isolation() -> str:
    try:
        check_isolation("namespaces")
    except UserError:
        return "limits"
    return "namespaces"


def math500(file: File) -> Small:
    rows = [
        {"problem": f"What is half of {n}?", "solution": "", "answer": f"\\frac{{{n}}}{{2}}", "subject": "Prealgebra",
         "level": n % 5 + 1, "unique_id": f"test/prealgebra/{n}.json"}
        for n in range(1, 5)
    ]  # fmt: skip
    cases = [("\\boxed{0.5}", 1.0), ("<think>\\boxed{1}</think>It is $\\frac12$.", 1.0), ("\\boxed{1}", 0.0), ("", 0.0)]
    return {"source": JsonlSource(file(*rows))}, cases


def aime(file: File) -> Small:
    rows = [{"id": n, "problem": f"What is {n} + 70?", "answer": f"0{n + 70}"} for n in range(1, 4)]
    return {"source": JsonlSource(file(*rows))}, [("\\boxed{71}", 1.0), ("\\boxed{071}", 1.0), ("\\boxed{72}", 0.0)]


def ifeval(file: File) -> Small:
    kinds = ["punctuation:no_comma", "detectable_format:title"]
    rows = [
        {"key": n, "prompt": f"Write {n} words.", "instruction_id_list": kinds, "kwargs": [{"num_words": None}, {}]}
        for n in range(1, 4)
    ]
    cases = [("<<a>> b", 1.0), ("<think>a, b</think><<a>>", 1.0), ("<<a>>, b", 0.0), ("Sure, here:\n<<a>>", 0.0)]
    return {"source": JsonlSource(file(*rows))}, cases


def humaneval(file: File) -> Small:
    rows = [
        {"task_id": f"HumanEval/{n}", "prompt": f'def add(x: int) -> int:\n    """Adds {n}."""\n',
         "canonical_solution": f"    return x + {n}\n", "entry_point": "add",
         "test": f"def check(candidate):\n    assert candidate(1) == {1 + n}\n"}
        for n in range(3)
    ]  # fmt: skip
    right = "```python\ndef add(x):\n    return x\n```"
    cases = [(right, 1.0), (right.replace("x\n```", "2\n```"), 0.0), ("def add(x): return x", 0.0)]
    return {"source": JsonlSource(file(*rows)), "isolation": isolation()}, cases


def mbpp(file: File) -> Small:
    rows = [
        {"source_file": "a.html", "task_id": n, "prompt": "Write a function to find the area of a circle.",
         "code": "", "test_imports": ["import math"], "test_list": [f"assert math.isclose(area({n}), math.pi*{n**2})"]}
        for n in range(1, 4)
    ]  # fmt: skip
    right = "```python\nimport math\n\ndef area(r):\n    return math.pi * r * r\n```"
    return {"source": JsonlSource(file(*rows)), "isolation": isolation()}, [(right, 1.0), ("```\n1\n```", 0.0)]


def bfcl(file: File) -> Small:
    city = {"type": "string"}
    schema = {"name": "weather", "parameters": {"type": "dict", "properties": {"city": city}, "required": ["city"]}}
    rows = [
        {"id": name, "question": [[{"role": "user", "content": "How is the weather in Rome?"}]], "function": [schema]}
        for name in ("live_simple_0-0-0", "live_irrelevance_0-0-0", "live_relevance_0-0-0")
    ]
    answers = [{"id": "live_simple_0-0-0", "ground_truth": [{"weather": {"city": ["Rome", "Roma"]}}]}]
    cases = [
        ('<TOOLCALL>[weather(city="Rome")]</TOOLCALL>', 1.0),
        ('<think>weather</think>[{"name": "weather", "arguments": {"city": "roma"}}]', 1.0),
        ('<TOOLCALL>[weather(city="Paris")]</TOOLCALL>', 0.0),
        ("It rains.", 0.0),
    ]
    return {"source": JsonlSource(file(*rows)), "answers": JsonlSource(file(*answers, name="answers.jsonl"))}, cases


def mmlu_generative(file: File) -> Small:
    rows = [
        {"question": f"What is {n} + {n}?", "subject": subject, "choices": ["1", "2", "3", "4"], "answer": n * 2 - 1}
        for subject in ("algebra", "logic")
        for n in (1, 2)
    ]
    return {"source": JsonlSource(file(*rows)), "rows": 3}, [("\\boxed{B}", 1.0), ("B. 2", 1.0), ("\\boxed{2}", 0.0)]


def judgebench(file: File) -> Small:
    rows = [
        {"pair_id": f"pair {n}", "source": "livebench-math", "question": f"What is {n} + {n}?", "label": "A>B",
         "response_A": f"{n + n}", "response_B": f"{n * n + 1}", "response_model": "gpt-4o"}
        for n in range(2, 5)
    ]  # fmt: skip
    return {"source": JsonlSource(file(*rows))}, [("\\boxed{A}", 0.0), ("\\boxed{B}", 0.0), ("Neither.", 0.0)]


def arena_hard(file: File) -> Small:
    rows = [{"uid": f"{n}", "category": "arena-hard-v0.1", "cluster": "", "prompt": f"Say {n}."} for n in range(3)]
    answers = [
        {"uid": f"{n}", "model": "gpt-4-0314",
         "messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": {"answer": f"{n}"}}]}
        for n in range(3)
    ]  # fmt: skip
    baseline = JsonlSource(file(*answers, name="baseline.jsonl"))
    return {"judge": Judge("http://localhost:9/v1", "m"), "source": JsonlSource(file(*rows)), "baseline": baseline}, []


def reasoning_gym(file: File) -> Small:
    rows = [{"question": f"{n} + 1 =", "answer": f"{n + 1}", "task": "chain_sum"} for n in range(1, 4)]
    return {"source": JsonlSource(file(*rows))}, [("\\boxed{2}", 1.0), ("2", 1.0), ("22", 0.0)]


def toggle_robustness(file: File) -> Small:
    rows = [{"question": f"What is {n} + {n}?"} for n in range(1, 4)]
    cases = [("<think>2</think>2", 0.5), ("2", 0.5), ("<think>2", 0.0), ("</think>", 0.0)]
    return {"source": JsonlSource(file(*rows))}, cases


BENCHMARKS: dict[str, Callable[[File], Small]] = {
    "math500": math500,
    "aime24": aime,
    "aime25": aime,
    "ifeval": ifeval,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "bfcl": bfcl,
    "mmlu_generative": mmlu_generative,
    "judgebench": judgebench,
    "arena_hard": arena_hard,
    "reasoning_gym": reasoning_gym,
    "toggle_robustness": toggle_robustness,
}

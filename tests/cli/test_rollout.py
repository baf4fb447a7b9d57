"""`lnlit rollout`: from prompts to a plan for a run, by the command line alone."""

from __future__ import annotations

import json

import pytest

from lnlit.cli.stage_commands import ROLLOUT

ANNOTATE = """\
stage: annotate
model: {model}
prompts:
  class_path: jsonl
  init_args:
    paths: {prompts}
reward:
  class_path: format
engine:
  class_path: native
  init_args:
    device: cpu
sampling: {{samples_per_prompt: 2, max_new_tokens: 4}}
thinking: off
out: annotated.jsonl
"""
CURRICULUM = """\
stage: curriculum
prompts:
  class_path: difficulty
  init_args:
    source:
      class_path: jsonl
      init_args:
        paths: annotated.jsonl
    pass_rate_below: null
prompt_order:
  sigma: 0.2
rollouts: 2
prompts_per_rollout: 3
out: plan.png
"""


GENERATE = """
stage: generate
model: {model}
prompts:
  class_path: jsonl
  init_args: {{paths: {prompts}}}
rewards:
  - {{reward: {{class_path: format}}, name: obeys}}
engine:
  class_path: native
  init_args: {{batch_size: 8, dtype: float32, device: cpu}}
sampling: {{samples_per_prompt: 2, max_new_tokens: 4, temperature: 0.6, top_p: 0.95}}
thinking: [on, off]
out: generated.jsonl
"""


@pytest.fixture
def recipes(tiny_model, rows_file, tmp_path):
    (tmp_path / "annotate.yaml").write_text(ANNOTATE.format(model=tiny_model, prompts=rows_file))
    (tmp_path / "curriculum.yaml").write_text(CURRICULUM)
    (tmp_path / "generate.yaml").write_text(GENERATE.format(model=tiny_model, prompts=rows_file))
    return tmp_path


def test_prompts_are_annotated_and_a_curriculum_drawn(lnlit, recipes):
    pytest.importorskip("matplotlib")
    code, out, err = lnlit("rollout", "annotate", "--config", "annotate.yaml", "--sampling.samples_per_prompt", 3)
    assert (code, out) == (0, "annotated.jsonl\n"), err
    rows = [json.loads(line) for line in (recipes / "annotated.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in rows] == [3] * 8 and rows[0]["messages"]
    assert "8 prompts, 3 completions each: mean pass rate" in err
    code, out, err = lnlit("rollout", "curriculum", "--config", "curriculum.yaml")
    assert (code, out) == (0, "plan.png\n"), err


def test_rows_are_generated(lnlit, recipes):
    code, out, err = lnlit("rollout", "generate", "--config", "generate.yaml")
    assert (code, out) == (0, "generated.jsonl\n"), err
    rows = [json.loads(line) for line in (recipes / "generated.jsonl").read_text().splitlines()]
    assert len(rows) > 0 and {len(row["completions"]) for row in rows} == {2}
    assert f"{len(rows)} prompts, {2 * len(rows)} completions of" in err and "mean pass rate" in err
    assert lnlit("rollout", "generate", "--config", "generate.yaml", "--strict")[0] == 0
    again = ["--keep.what", "right", "--keep.pass_threshold", "-1"]
    code, out, err = lnlit("rollout", "generate", "--config", "generate.yaml", *again)
    assert code == 0 and "kept (right)" in err, err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["anotate"], "did you mean 'annotate'"),
        (["annotate", "--config", "annotate.yaml", "--sampling.seeds", "4"], "did you mean 'seed'"),
        (["annotate", "--config", "annotate.yaml", "--reward", "fromat"], "did you mean 'format'"),
        (["annotate", "--config", "annotate.yaml", "--model", "nowhere"], "nowhere"),
        (["curriculum", "--config", "curriculum.yaml", "--prompt_order.sigma", "wide"], "sigma"),
        (["curriculum", "--config", "curriculum.yaml"], "no file matches 'annotated.jsonl'"),
        (["curriculum", "--config", "annotate.yaml"], "stage"),
        (["generate", "--config", "generate.yaml", "--keep", "bset"], "one of 'all', 'best', 'right'"),
        (["generate", "--config", "generate.yaml", "--thinking", "[on, maybe]"], "thinking"),
        (["generate", "--config", "generate.yaml", "--sampling.temperature", "0"], "0 is greedy"),
        (["generate", "--config", "generate.yaml", "--sampling.top_p", "95"], "sampling.top_p"),
        (["generate", "--config", "generate.yaml", "--rewards", "null", "--keep", "best"], "needs a reward"),
        (["generate", "--config", "generate.yaml", "--rounds.prompts", "0"], "rounds.prompts"),
        (["generate", "--config", "generate.yaml", "--engine", "endpoint"], "url"),
        (["generate", "--config", "generate.yaml", "--model", "null"], "model folder"),
    ],
    ids=[
        "stage",
        "key",
        "reward",
        "model",
        "value",
        "missing",
        "other-stage",
        "keep",
        "thinking",
        "greedy",
        "top_p",
        "no-reward",
        "rounds",
        "endpoint",
        "no-model",
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, says, lnlit, recipes):
    code, _, err = lnlit("rollout", *arguments)
    assert code == 2, err
    assert says.lower() in err.lower() and err.count("\n") == 1
    assert not (recipes / "plan.png").exists() and not (recipes / "annotated.jsonl").exists()


def test_help_lists_every_stage_and_each_stage_explains_itself(lnlit):
    code, out, _ = lnlit("rollout", "--help")
    assert code == 0 and all(stage in out for stage in ROLLOUT.stages)
    for stage in ROLLOUT.stages:
        code, out, err = lnlit("rollout", stage, "--help")
        assert code == 0 and "--out" in out, err

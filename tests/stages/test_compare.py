"""The table of an ablation: every run is in it, with its value or with why it has none."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from lnlit.eval.intervals import mean_of_numbers
from lnlit.stages.compare import FINISHED, Asked, Metric, Outcome, compare, results_file, run_folder

ARMS, SEEDS = ("plain", "other"), (0, 1, 2)


def results(out: Path, arm: str, seed: int, value: float | None, answers: dict[str, float] | None = None, at: int = 9):
    metrics = {} if answers is None and value == -1 else {"val/acc": value}
    data = {"step": 9, "validated_at": at, "metrics": metrics, "questions": {"val/acc": answers or {}}}
    file = results_file(run_folder(out, arm, seed), "1_fit")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(data))


def table(
    out: Path,
    outcomes: dict[tuple[str, int], str] | None = None,
    metric: Metric | None = None,
    files: tuple[str, ...] = ("1_fit", "3_solve"),
) -> list[str]:
    """The cells of the second arm."""
    ends = {(arm, seed): FINISHED for arm in ARMS for seed in SEEDS} | (outcomes or {})
    told = [Outcome(arm, seed, end, files) for (arm, seed), end in ends.items()]
    text = compare(out, Asked({"acc": metric or Metric("1_fit", "val/acc")}, ARMS, SEEDS), told)
    assert (out / "ablation.md").read_text() == text and (out / "ablation.png").stat().st_size > 5000
    row = next(line for line in text.splitlines() if line.startswith("| other"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_seeds_and_questions_are_paired(tmp_path):
    """The arms differ by 0.1 where the seeds differ by 10: an unpaired interval would see nothing."""
    plain, other = [10.0, 20.0, 30.0], [10.1, 20.1, 30.16]
    questions = [{f"q{at}": float((at + seed) % 4 < 2) for at in range(30)} for seed in SEEDS]
    better = [{q: max(value, float(q.endswith("7"))) for q, value in answers.items()} for answers in questions]
    for seed in SEEDS:
        results(tmp_path, "plain", seed, plain[seed], questions[seed])
        results(tmp_path, "other", seed, other[seed], dict(reversed(better[seed].items())))
    arm, runs, mean, difference, over_seeds, over_questions, left_out = table(tmp_path)
    assert (arm, runs, mean, difference, left_out) == ("other", "3 of 3", "20.12 ± 10", "+0.12", "")
    data = json.loads((tmp_path / "ablation.json").read_text())["metrics"]["acc"]["other"]
    by_seed = mean_of_numbers([b - a for a, b in zip(plain, other, strict=True)])
    by_question = mean_of_numbers(
        [fmean(b[q] - a[q] for a, b in zip(questions, better, strict=True)) for q in questions[0]]
    )
    seeds, asked = data["difference"]["seeds"], data["difference"]["questions"]
    assert (seeds["mean"], seeds["low"], seeds["pairs"]) == pytest.approx((by_seed.value, by_seed.low, 3))
    assert (asked["low"], asked["high"], asked["pairs"]) == pytest.approx((by_question.low, by_question.high, 30))
    assert over_seeds == f"{by_seed.low:+.3g} to {by_seed.high:+.3g} (3 pairs)" and (by_seed.low or 0) > 0
    assert over_questions.endswith("(30 pairs)")


def test_a_run_without_a_value_is_counted_by_why(tmp_path):
    for seed in SEEDS:
        results(tmp_path, "plain", seed, 1.0 + seed)
    results(tmp_path, "other", 0, None)
    results(tmp_path, "other", 1, -1)
    assert table(tmp_path, {("other", 2): "failed: exit code 1"}) == [
        "other", "0 of 3", "none", "no pair", "not known", "not known", "1 not finite, 1 without this metric, 1 failed",
    ]  # fmt: skip
    runs = json.loads((tmp_path / "ablation.json").read_text())["runs"]
    assert (
        table(tmp_path, files=("2_other",))[6] == "3 without this metric"
    )  # results of a file that the arm had before
    assert len(runs) == 6 and runs[-1]["outcome"] == "failed: exit code 1"


def test_a_metric_that_no_run_has_is_told_with_those_there_are(tmp_path):
    for arm in ARMS:
        for seed in SEEDS:
            results(tmp_path, arm, seed, 1.0)
    table(tmp_path, metric=Metric("1_fit", "val/ac"))
    assert "Did you mean 'val/acc'? Logged: val/acc." in (tmp_path / "ablation.md").read_text()


def test_one_pair_and_pairs_that_are_all_alike_have_no_interval(tmp_path):
    for seed in SEEDS:
        results(tmp_path, "plain", seed, 1.0)
        results(tmp_path, "other", seed, 1.5, at=7)
    row = table(tmp_path)
    assert row[4] == "no interval: all 3 seeds differ by the same" and row[6] == "(3 validated before the end)"
    row = table(tmp_path, {("other", 0): "failed: exit code 1", ("plain", 2): "failed: exit code 1"})
    assert row[1:5] == ["2 of 3", "1.5 ± 0", "+0.5", "no interval: one of seeds says nothing of others"]


def test_a_value_of_another_stage_is_found_in_what_it_wrote(tmp_path):
    for arm, score in zip(ARMS, (3.0, 2.0), strict=True):
        for seed in SEEDS:
            folder = run_folder(tmp_path, arm, seed)
            folder.mkdir(parents=True)
            (folder / "solution.json").write_text(json.dumps({"solutions": [{"score": score + seed * score}]}))
            (folder / "3_solve.yaml").write_text(f"stage: solve\nout: {folder}/solution.json\n")
    row = table(tmp_path, metric=Metric("3_solve", "solutions.0.score", is_fit=False))
    assert row[1:4] == ["3 of 3", "4 ± 2", "-2"]
    row = table(tmp_path, metric=Metric("3_solve", "solutions.1.score", is_fit=False))
    assert row[6] == "3 without this metric"
